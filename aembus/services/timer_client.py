"""Timers, as a member uses them: ``timer = bus.service("timer")``.

Starting and cancelling a timer is one one-way message each, since the starter makes the id.  A
timer that names a handler belongs to the process that started it and goes with it; its data never
leaves the process.  A timer that names a point carries its data to the service and fires whoever
lives.

Plain timers, with a handler and fired once after a delay, are made for numbers: there may be
millions.  Each is its handle, found by the index of its id; ids are used again with their next
generation.  A timer ends once, by its expiry or by being cancelled, and whichever comes first, in
whatever thread, takes its handler away: that is one step.

What has ended stays in its place, without its handler and data, until new timers need ids: then the
places are looked through, 1,024 at a time.  So timers that are started together lie together in
memory, here and in the service's wheel, in whatever order earlier ones ended.  Taking the place of
whichever ended last would cost cache misses at every start, once millions run.
"""

from __future__ import annotations

import datetime as dt
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Final, final

from aembus.bus import Bus
from aembus.codec import encode, key_hash
from aembus.coroutines import check_awaits_nothing
from aembus.event import Event
from aembus.masking import masked
from aembus.options import EventOptions
from aembus.routing import ServiceVersion
from aembus.services.wheel import GENERATION_BITS, next_id, timer_id
from aembus.shm import layout
from aembus.shm.lanes import Record

NS: Final = 1_000_000_000
TICK_NS: Final = 1_000_000
PERIOD_S_MIN: Final = 0.001
DELAY_S_MAX: Final = 10 * 366 * 86400.0  # ten years
IDS_AT_ONCE: Final = 1024
IDS_WORTHWHILE: Final = IDS_AT_ONCE // 4  # with fewer found among the ended there are new ones, too
FIRST_POINT_ID: Final = 1 << 62  # beyond every id that has an index
TELL_S: Final = 5.0  # how long to wait while the service's inbox is full

A_TIMER: Final = "a timer"
ENDED: Final = ("ended",)  # stands for the data of a timer that has ended

_new = object.__new__  # with four stores, half of what a call of the class costs


class Timer:
    """A timer that was started; `cancel` stops it."""

    __slots__ = ("_client", "_data", "_handler", "id")

    _client: TimerClient
    _data: Any  # a tuple of what the handler gets; if that is one thing and no tuple: that itself
    _handler: Callable[..., object]  # gone once the timer has fired or was cancelled
    id: int

    def cancel(self) -> None:
        """Stop the timer; nothing happens if it has fired.  Idempotent.

        A handler is not called after this returns; a point may be activated, if the expiry is under
        way.  Blocks while the timer service's inbox is full.  Raises: BusBroken, BusClosed; the
        handler is not called in either case.
        """
        self._client._cancel(self)

    @property
    def name(self) -> str | None:
        """The name that it was started with."""
        return None

    def __repr__(self) -> str:
        return f"<Timer {self.id:#x}>"


class _Periodic(Timer):
    """A timer with a handler that the service keeps in its book."""

    __slots__ = ("periodic",)

    periodic: bool


class _AtPoint(Timer):
    """A timer that activates a point; its id has no index."""

    __slots__ = ("_name",)

    _name: str | None

    @property
    def name(self) -> str | None:
        return self._name


@final
class TimerClient:
    """The timer service's calls."""

    def __init__(self, bus: Bus, service: ServiceVersion) -> None:
        self._bus = bus
        self._growing = threading.RLock()
        self._timers: list[Timer | None] = []  # with handlers, by the index of their id
        self._free: list[int] = []  # ids to be used next
        self._looked_through = 0  # places of this round: the next ones are looked at next
        self._round = 0  # places that there were when it began; what came since is young
        self._point_ids = itertools.count(FIRST_POINT_ID)  # one step to all threads
        # One event stands for all timers of this process: there may be millions of those.
        self._event = Event("timer", self._expire, EventOptions(name="timer", redeliver=False))
        self.rejoin(service)

    def rejoin(self, service: ServiceVersion) -> None:
        """Timers went with the last supervisor: start them again."""
        for timer in self._timers:
            if timer is not None:
                _end(timer)
        self._service = service
        self._incarnation = self._bus.incarnation
        self._monotonic_ns = self._bus.clock_ns
        self._route = self._bus.numbers_route(service, "set")
        self._timers, self._free = [], []
        self._looked_through = self._round = 0
        self._bus.event_struct.on_kind(layout.KIND_TIMER, self._expire)

    def let_go(self) -> None:
        """See OnlyClient: the timers with a handler are cancelled; those at points run on."""
        for timer in self._timers:
            if timer is not None:
                timer.cancel()

    def rebind(self, service: ServiceVersion) -> None:
        """See OnlyClient; ids go on, since expiries may be under way."""
        self._route.close()
        self._service = service
        self._route = self._bus.numbers_route(service, "set")

    # --- starting -------------------------------------------------------------------------------

    def after(
        self,
        delay: float,
        what: str | Callable[..., object],
        *data: Any,
        key: str | bytes | int | None = None,
        name: str | None = None,
    ) -> Timer:
        """Once, after `delay` seconds, call a handler or activate a point.

        Args:
            delay: seconds from now, at most ten years; never fires earlier, and is rounded up to a
                millisecond.
            what: a handler of this process, a plain function, called as ``handler(event, *data)``,
                or the name of a point, which is activated with `data` even if this process is dead
                by then.
            key: for a point, as in `activate`.
            name: for a point: while a timer of this name runs on the bus, nothing is started.

        Blocks while the timer service's inbox is full, for 5 s at most.

        Raises: InboxFull, BusBroken, BusClosed, ValueError for a delay that is none, or a name or
        key with a handler, TypeError for what is neither and for an ``async def``; nothing was
        started then.
        """
        if not 0 <= delay <= DELAY_S_MAX:
            raise ValueError(f"a delay must be 0 to {DELAY_S_MAX} seconds, delay={delay}")
        due_ns = self._monotonic_ns() + int(delay * NS)
        if key is not None or name is not None or not callable(what):
            return self._start_at_point(what, data, key, name, due_ns, 0, False)
        check_awaits_nothing(what, A_TIMER)
        try:
            new_id = self._free.pop()
        except IndexError:
            new_id = self._more_ids()
        timer: Timer = _new(Timer)
        timer._client = self
        timer._handler = what
        timer._data = data[0] if len(data) == 1 and type(data[0]) is not tuple else data
        timer.id = new_id
        self._timers[new_id >> GENERATION_BITS] = timer
        tick = -(due_ns // -TICK_NS)
        publisher = self._route.publisher
        if publisher is None or not publisher.publish_numbers(new_id, tick):
            self._send(timer, tick)
        return timer

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
            period: seconds, a millisecond at least.  Periods that were missed, since the machine
                was too busy or slept, or the inbox was full, are not made up for.
            what, data, key, name: as for `after`; by its name a timer is one, however many
                processes start it, however often they restart.

        Blocks and raises: as `after` does.
        """
        if not PERIOD_S_MIN <= period <= DELAY_S_MAX:
            raise ValueError(
                f"a period must be {PERIOD_S_MIN} to {DELAY_S_MAX} seconds, period={period}"
            )
        period_ns = int(period * NS)
        due_ns = self._monotonic_ns() + period_ns
        return self._start(what, data, key, name, due_ns, period_ns, False)

    def at(
        self,
        when: dt.datetime | float,
        what: str | Callable[..., object],
        *data: Any,
        key: str | bytes | int | None = None,
        name: str | None = None,
    ) -> Timer:
        """Once, when the wall clock shows `when`, call a handler or activate a point.

        If the clock is set, the timer follows: it fires when the clock shows that time, at once if
        the clock has jumped over it.  A time that is past already fires at once.

        Args:
            when: a datetime (a naive one is local time), or seconds since the epoch.
            what, data, key, name: as for `after`.

        Blocks and raises: as `after` does.
        """
        seconds = when.timestamp() if isinstance(when, dt.datetime) else float(when)
        if not 0 <= seconds <= time.time() + DELAY_S_MAX:
            raise ValueError(f"a time must be within the next {DELAY_S_MAX} seconds, when={when}")
        return self._start(what, data, key, name, int(seconds * NS), 0, True)

    def _start(
        self,
        what: str | Callable[..., object],
        data: tuple[Any, ...],
        key: str | bytes | int | None,
        name: str | None,
        due_ns: int,
        period_ns: int,
        wall: bool,
    ) -> Timer:
        if key is not None or name is not None or not callable(what):
            return self._start_at_point(what, data, key, name, due_ns, period_ns, wall)
        check_awaits_nothing(what, A_TIMER)
        timer = _Periodic()
        timer._client, timer._handler, timer._data = self, what, data
        timer.periodic = period_ns > 0
        timer.id = self._next_id()
        self._timers[timer.id >> GENERATION_BITS] = timer
        try:
            self._tell("start_handler", timer.id, due_ns, period_ns, wall)
        except BaseException:
            _end(timer)
            raise
        return timer

    def _start_at_point(
        self,
        what: str | Callable[..., object],
        data: tuple[Any, ...],
        key: str | bytes | int | None,
        name: str | None,
        due_ns: int,
        period_ns: int,
        wall: bool,
    ) -> Timer:
        if not (isinstance(what, str) or callable(what)):
            raise TypeError(
                "a timer calls a function or activates a point; give the function, uncalled, or a "
                f"point's name, got={what!r}"
            )
        if not isinstance(what, str):
            raise ValueError(
                "only a timer that names a point can have a name or a key; leave them away, or "
                f"register the handler at a point and name that, name={name!r}, key={key!r}"
            )
        timer = _AtPoint()
        timer._client, timer._name = self, name
        timer.id = next(self._point_ids)
        hashed = None if key is None else key_hash(key)
        start = (timer.id, due_ns, period_ns, wall, what, encode(data), hashed, name)
        self._tell("start_point", *start)
        return timer

    def _next_id(self) -> int:
        try:
            return self._free.pop()
        except IndexError:
            return self._more_ids()

    def _more_ids(self) -> int:
        with masked, self._growing:
            if self._free:
                return self._free.pop()
            ids = self._ids_of_ended()
            if len(ids) < IDS_WORTHWHILE:
                first = len(self._timers)
                self._timers.extend([None] * IDS_AT_ONCE)
                step = timer_id(1, 0)
                ids += range(timer_id(first, 1), timer_id(first + IDS_AT_ONCE, 1), step)
            ids.reverse()
            found = ids.pop()
            self._free.extend(ids)
            return found

    def _ids_of_ended(self) -> list[int]:
        """Let go of the ended timers in the next places; return the ids that follow theirs."""
        timers = self._timers
        if self._looked_through == self._round:
            self._looked_through, self._round = 0, len(timers)
        begin = self._looked_through
        self._looked_through = min(begin + IDS_AT_ONCE, self._round)
        places = timers[begin : begin + IDS_AT_ONCE]
        ids = [timer.id for timer in places if timer is not None and timer._data is ENDED]
        for ended_id in ids:
            timers[ended_id >> GENERATION_BITS] = None
        return [next_id(ended_id) for ended_id in ids]

    def _send(self, timer: Timer, tick: int) -> None:
        try:
            self._route.send(timer.id, tick, TELL_S, "timer.after")
        except BaseException:
            _end(timer)
            raise

    def _tell(self, call: str, *data: Any) -> None:
        self._bus.tell_service(self._service, call, data, TELL_S)

    # --- ending -----------------------------------------------------------------------------------

    def _cancel(self, timer: Timer) -> None:
        if isinstance(timer, _AtPoint):
            self._tell("cancel", timer.id, timer.name)
        elif _end(timer):
            publisher = self._route.publisher
            if isinstance(timer, _Periodic):
                self._tell("cancel", timer.id, None)
            elif publisher is None or not publisher.publish_numbers(timer.id, 0):
                self._route.send(timer.id, 0, TELL_S, "timer.cancel")

    def _expire(self, record: Record) -> None:
        if record.addressee != self._incarnation:
            return  # a timer of the process that this one replaced: cancelled with it
        fired_id = record.reply_id
        timer = self._timers[fired_id >> GENERATION_BITS]
        if timer is None or timer.id != fired_id:
            return  # cancelled while the expiry was under way
        try:
            handler, data = timer._handler, timer._data
        except AttributeError:
            return  # another thread is cancelling it
        if (isinstance(timer, _Periodic) and timer.periodic) or _end(timer):
            if type(data) is tuple:
                handler(self._event, *data)
            else:
                handler(self._event, data)


def _end(timer: Timer) -> bool:
    """Take the timer's handler and data away; False if somebody else has done it."""
    try:
        del timer._handler  # one step to all threads and signal handlers
    except AttributeError:
        return False
    timer._data = ENDED
    return True
