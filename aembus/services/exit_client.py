"""Exits, as a member uses them: ``exits = bus.service("exit")``.

A watch that names a handler belongs to the process that asked for it and goes with it.  One that
names a point carries its data to the service and fires whoever lives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, final

from aembus import errors
from aembus.bus import Bus
from aembus.codec import encode, key_hash
from aembus.coroutines import check_awaits_nothing
from aembus.errors import AembusError, CallFailed
from aembus.event import Event
from aembus.options import EventOptions
from aembus.routing import ServiceVersion
from aembus.shm import layout
from aembus.shm.lanes import Record

_KNOWN = 1 << 32  # as the service adds it to an exit code that is known


@final
class Watch:
    """A watched process; `cancel` ends the watch."""

    __slots__ = ("_client", "_data", "_handler", "id", "name", "pid")

    def __init__(
        self,
        client: ExitClient,
        watch_id: int,
        pid: int,
        handler: Callable[..., object] | None,
        data: tuple[Any, ...],
        name: str | None,
    ) -> None:
        self._client = client
        self._handler = handler
        self._data = data
        self.id = watch_id
        self.pid = pid
        self.name = name

    def cancel(self) -> None:
        """End the watch; nothing happens if it has fired.  Idempotent.

        A handler is not called after this returns; a point may be activated, if that is under way.
        """
        self._client.unwatch(self)

    def __repr__(self) -> str:
        return f"<Watch {self.id} pid={self.pid}>"


class ExitClient:
    """The exit service's calls."""

    def __init__(self, bus: Bus, service: ServiceVersion) -> None:
        self._bus = bus
        self._ids = itertools.count(1)  # one step to all threads
        self._watches: dict[int, Watch] = {}  # with handlers
        self._event = Event("exit", self._on_exit, EventOptions(name="exit", redeliver=False))
        self.rejoin(service)

    def rejoin(self, service: ServiceVersion) -> None:
        """Watches went with the last supervisor: ask for them again."""
        self._service = service
        self._watches.clear()
        self._bus.event_struct.on_kind(layout.KIND_EXIT, self._on_exit)

    def let_go(self) -> None:
        """See OnlyClient: the watches with a handler end; those at points go on."""
        for watch in list(self._watches.values()):
            watch.cancel()

    def rebind(self, service: ServiceVersion) -> None:
        """See OnlyClient; ids go on, since exits may be under way."""
        self._service = service

    def watch(
        self,
        pid: int,
        what: str | Callable[..., object],
        *data: Any,
        key: str | bytes | int | None = None,
        name: str | None = None,
    ) -> Watch:
        """When a process has ended, call a handler or activate a point, once.

        Args:
            pid: of any process of this user, as the bus's supervisor sees pids; it need not be a
                child, and may have ended if its parent has not asked for it yet.
            what: a handler of this process, a plain function, called as ``handler(event, pid,
                exit_code, *data)``, or the name of a point, which is activated with ``(pid,
                exit_code, *data)`` even if this process is dead by then.  `exit_code` is what the
                process returned, or minus the number of the signal that ended it, or None: it has
                ended, and how is unknown (only on kernels before 6.15, if its parent was faster).
            key: for a point, as in `activate`.
            name: for a point: while a watch of this name is there, nothing else is watched.

        Blocks until the service has answered.

        Raises: ProcessNotFound if there is no such process (any more), PermissionRefused if it is
        another user's, ServiceError without descriptors for it, ValueError for a name or key with a
        handler, TypeError for a pid that is no int, for what is neither a handler nor a name and
        for an ``async def``, CallTimeout, BusBroken, BusClosed; nothing is watched then.
        """
        if not isinstance(pid, int):
            raise TypeError(f"a process is watched by its pid, an int, {pid=}")
        point = what if isinstance(what, str) else None
        if point is None and (key is not None or name is not None):
            raise ValueError(
                "only a watch that names a point can have a name or a key; leave them away, "
                f"name={name!r}, key={key!r}"
            )
        handler = None if isinstance(what, str) else what
        if not (point or callable(handler)):
            raise TypeError(
                "a watch calls a function or activates a point; give the function, uncalled, or a "
                f"point's name, got={what!r}"
            )
        check_awaits_nothing(handler, "a watch")
        watch = Watch(self, next(self._ids), pid, handler, data, name)
        payload = encode(data) if point is not None else b""
        hashed = None if key is None else key_hash(key)
        if handler is not None:
            self._watches[watch.id] = watch
        try:
            self._call("watch", pid, watch.id, point, payload, hashed, name)
        except BaseException:
            self._watches.pop(watch.id, None)
            raise
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Same as ``watch.cancel()``."""
        had_handler = watch._handler is not None
        if self._watches.pop(watch.id, None) is not None or not had_handler:
            self._bus.tell_service(self._service, "unwatch", (watch.id, watch.name))

    def _call(self, call: str, *data: Any) -> None:
        try:
            self._bus.call_service(self._service, call, data)
        except CallFailed as error:
            kind = getattr(errors, error.error_type, None)
            if isinstance(kind, type) and issubclass(kind, AembusError):
                raise kind(error.text) from None
            raise

    def _on_exit(self, record: Record) -> None:
        if record.addressee != self._bus.incarnation:
            return  # for the process that this one replaced
        watch = self._watches.pop(record.reply_id, None)
        if watch is None or watch._handler is None:
            return  # cancelled meanwhile
        code = record.deadline_ns - _KNOWN if record.deadline_ns else None
        watch._handler(self._event, watch.pid, code, *watch._data)
