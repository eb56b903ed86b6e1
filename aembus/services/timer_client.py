"""Timers, as a member uses them: ``timer = bus.service("timer")``.

Starting and cancelling a timer is one one-way job each, since the starter makes the id.  A timer
that names a handler belongs to the process that started it and goes with it; its data never leaves
the process.  A timer that names a point carries its data to the service and fires whoever lives.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, Final, final

from aembus.bus import Bus
from aembus.codec import encode, key_hash
from aembus.event import Event
from aembus.options import EventOptions
from aembus.routing import ServiceVersion
from aembus.shm import layout
from aembus.shm.lanes import Record

NS: Final = 1_000_000_000


@final
class Timer:
    """A running timer."""

    __slots__ = ("_client", "id", "name")

    def __init__(self, client: TimerClient, timer_id: int, name: str | None = None) -> None:
        self._client = client
        self.id = timer_id
        self.name = name

    def cancel(self) -> None:
        """Stop the timer; nothing happens if it has fired.

        A handler is not called after this returns; a point may be, if the expiry is under way.
        """
        self._client.cancel(self)

    def __repr__(self) -> str:
        return f"<Timer {self.id:#x}>"


class _Running:
    __slots__ = ("data", "handler", "periodic")

    def __init__(self, handler: Callable[..., object], data: tuple[Any, ...], periodic: bool):
        self.handler = handler
        self.data = data
        self.periodic = periodic


class TimerClient:
    """The timer service's calls."""

    def __init__(self, bus: Bus, service: ServiceVersion) -> None:
        self._bus = bus
        self._running: dict[int, _Running] = {}
        # One event stands for all timers of this process: there may be millions of those.
        self._event = Event("timer", self._expire, EventOptions(name="timer", redeliver=False))
        self.rejoin(service)

    def rejoin(self, service: ServiceVersion) -> None:
        """Timers went with the last supervisor: start them again."""
        self._service = service
        self._ids = itertools.count(self._bus.incarnation << 32 | 1)
        self._running.clear()
        self._bus.event_struct.on_kind(layout.KIND_TIMER, self._expire)

    def after(
        self,
        delay: float,
        what: str | Callable[..., object],
        *data: Any,
        key: str | bytes | int | None = None,
    ) -> Timer:
        """Once, after `delay` seconds, call a handler or activate a point.

        Args:
            delay: seconds from now; never fires earlier.
            what: a handler of this process, called as ``handler(event, *data)``, or the name of
                a point, which is activated with `data` even if this process is dead by then.
            key: for a point, as in `activate`.

        Raises: InboxFull, BusBroken, ValueError for a negative delay.
        """
        return self._start(delay, 0.0, what, data, key, None)

    def every(
        self,
        period: float,
        what: str | Callable[..., object],
        *data: Any,
        key: str | bytes | int | None = None,
        name: str | None = None,
    ) -> Timer:
        """Every `period` seconds, without drift; first after one period.

        Args:
            period, what, data, key: as for `after`.
            name: for a point: one timer of this name on the whole bus, however many processes
                start it, however often they restart.

        Raises: ValueError for a period that is not positive, or a name with a handler.
        """
        if period <= 0:
            raise ValueError(f"a period must be positive, period={period}")
        if name is not None and callable(what):
            raise ValueError(f"only a timer that names a point can have a name, name={name!r}")
        return self._start(period, period, what, data, key, name)

    def _start(
        self,
        delay: float,
        period: float,
        what: str | Callable[..., object],
        data: tuple[Any, ...],
        key: str | bytes | int | None,
        name: str | None,
    ) -> Timer:
        if delay < 0:
            raise ValueError(f"a delay must not be negative, delay={delay}")
        timer_id = next(self._ids)
        due_ns = time.monotonic_ns() + int(delay * NS)
        period_ns = int(period * NS)
        if isinstance(what, str):
            hashed = None if key is None else key_hash(key)
            start = (timer_id, due_ns, period_ns, what, encode(data), hashed, name)
            self._bus.tell_service(self._service, "start_point", start)
        else:
            self._running[timer_id] = _Running(what, data, period > 0)
            try:
                self._bus.tell_service(
                    self._service, "start_handler", (timer_id, due_ns, period_ns)
                )
            except BaseException:
                self._running.pop(timer_id, None)
                raise
        return Timer(self, timer_id, name)

    def cancel(self, timer: Timer) -> None:
        """Same as ``timer.cancel()``."""
        self._running.pop(timer.id, None)
        self._bus.tell_service(self._service, "cancel", (timer.id, timer.name))

    def _expire(self, record: Record) -> None:
        if record.addressee != self._bus.incarnation:
            return  # a timer of the process that this one replaced: cancelled with it
        running = self._running.get(record.reply_id)
        if running is None:
            return  # cancelled while the expiry was under way
        if not running.periodic:
            del self._running[record.reply_id]
        running.handler(self._event, *running.data)
