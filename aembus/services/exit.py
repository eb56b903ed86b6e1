"""The exit service: says when a process has ended, and how, to a process or at a point.

Runs in the event loop of its host.  Any process of the same user can be watched: it need not be
anybody's child here, and knows nothing of it.  A watch with a handler belongs to the process that
asked for it and goes with it; one with a point fires whoever lives then, and one with a name exists
once on the bus.

One pidfd serves all watches of a process.  They hang in an epoll of their own, which costs the
event loop nothing however many there are.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from dataclasses import astuple, dataclass, field
from typing import Any, Final

from aembus.codec import decode, encode
from aembus.errors import ProcessNotFound
from aembus.routing import Target
from aembus.sender import Job
from aembus.services.base import Caller, HandOver, Host, Service, call
from aembus.shm import layout

from .gone import Gone
from .process_exit import (
    asked_exit_code,
    check_process,
    open_process,
    unasked_exit_code,
)

log = logging.getLogger("aembus")

EXITS_A_TURN: Final = 64
UNKNOWN_S: Final = 1.0  # so long the parent of an ended process has to ask, if all else fails
KNOWN: Final = 1 << 32  # added to an exit code that is known, so that it is a positive number


@dataclass(frozen=True, slots=True)
class Watch:
    """Who wants to know.

    slot, incarnation: whose process asked.
    watch_id: what that process calls it.
    point: what is activated; None: a handler of the asker.
    payload, key_hash: of the activation; the pid and the exit code come in front.
    name: there is one of this name on the bus.
    """

    slot: int
    incarnation: int
    watch_id: int
    point: str | None
    payload: bytes
    key_hash: int | None
    name: str | None

    @property
    def key(self) -> tuple[int, int, int]:
        """Who asked, and its id there."""
        return self.slot, self.incarnation, self.watch_id


@dataclass(slots=True)
class Watched:
    """A process that is watched.

    ended: it has ended, and its parent has still to ask how.
    """

    pid: int
    descriptor: int
    watches: list[Watch] = field(default_factory=list)
    ended: bool = False


class ExitService(Service):
    """Service "exit", version 1."""

    name = "exit"
    version = "1"
    client = "aembus.services.exit_client:ExitClient"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}  # by descriptor
        self._by_pid: dict[int, Watched] = {}
        self._asked: dict[tuple[int, int, int], tuple[Watched, Watch]] = {}  # by asker and its id
        self._named: dict[str, Watch] = {}
        self._gone = Gone()
        self._exits = 0
        self._unknown = 0
        self._given = False  # the watches are another version's

    async def start(self) -> None:
        """See Service."""
        self._listen()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_exits)

    # --- calls ------------------------------------------------------------------------------------

    @call
    def watch(
        self,
        caller: Caller,
        pid: int,
        watch_id: int,
        point: str | None,
        payload: bytes,
        key_hash: int | None,
        name: str | None,
    ) -> None:
        """Watch a process.

        Raises: ProcessNotFound, PermissionRefused, ServiceError.
        """
        if caller in self._gone or name in self._named:
            return
        watched = self._find(pid) or self._add(pid, open_process(pid))
        self._enter(watched, Watch(*caller, watch_id, point, payload, key_hash, name))

    @call
    def unwatch(self, caller: Caller, watch_id: int, name: str | None) -> None:
        """End a watch, whoever asked for it if it has a name; nothing happens if it has fired."""
        if name is not None:
            named = self._named.get(name)
            found = self._asked.get(named.key) if named is not None else None
        else:
            found = self._asked.get((*caller, watch_id))
        if found is not None:
            self._remove(*found)

    def _find(self, pid: int) -> Watched | None:
        watched = self._by_pid.get(pid)
        if watched is not None:
            try:
                check_process(watched.descriptor, pid)
            except ProcessNotFound:  # this pid may be another one's by now
                return None
        return watched

    def _add(self, pid: int, descriptor: int) -> Watched:
        try:
            self._epoll.register(descriptor, select.EPOLLIN)
        except BaseException:
            os.close(descriptor)
            raise
        watched = self._watched[descriptor] = self._by_pid[pid] = Watched(pid, descriptor)
        return watched

    def _enter(self, watched: Watched, watch: Watch) -> None:
        watched.watches.append(watch)
        self._asked[watch.key] = watched, watch
        if watch.name is not None:
            self._named[watch.name] = watch

    def _remove(self, watched: Watched, watch: Watch) -> None:
        watched.watches.remove(watch)
        self._asked.pop(watch.key, None)
        if watch.name is not None:
            self._named.pop(watch.name, None)
        if not watched.watches:
            self._forget(watched)

    def _forget(self, watched: Watched) -> None:
        self._epoll.unregister(watched.descriptor)
        os.close(watched.descriptor)
        del self._watched[watched.descriptor]
        if self._by_pid.get(watched.pid) is watched:
            del self._by_pid[watched.pid]

    # --- processes end ----------------------------------------------------------------------------

    def _on_exits(self) -> None:
        for descriptor, events in self._epoll.poll(0, EXITS_A_TURN):
            watched = self._watched[descriptor]
            if events & select.EPOLLHUP:
                self._tell_all(watched, asked_exit_code(descriptor))
            else:
                self._on_end(watched)

    def _on_end(self, watched: Watched) -> None:
        code = unasked_exit_code(watched.descriptor, watched.pid)
        if code is None:
            # Its parent asks just now, or it is none that can be looked at: wait for that.
            watched.ended = True
            self._epoll.modify(watched.descriptor, 0)
            asyncio.get_running_loop().call_later(UNKNOWN_S, self._give_up, watched)
        else:
            self._tell_all(watched, code)

    def _give_up(self, watched: Watched) -> None:
        if self._watched.get(watched.descriptor) is watched:
            self._tell_all(watched, asked_exit_code(watched.descriptor))

    def _tell_all(self, watched: Watched, code: int | None) -> None:
        self._exits += 1
        self._unknown += code is None
        for watch in list(watched.watches):
            self._remove(watched, watch)
            try:
                self._tell(watched.pid, watch, code)
            except Exception:  # the others want to know too
                log.exception("the exit of process %d could not be told, %s", watched.pid, watch)

    def _tell(self, pid: int, watch: Watch, code: int | None) -> None:
        if watch.point is not None:
            payload = encode((pid, code, *decode(watch.payload)))
            self.host.activate(watch.point, payload, watch.key_hash)
        elif self.host.incarnation(watch.slot) == watch.incarnation:
            job = Job(
                b"",
                kind=layout.KIND_EXIT,
                reply_id=watch.watch_id,
                deadline_ns=0 if code is None else KNOWN + code,
                addressee=watch.incarnation,
            )
            self.host.send(Target(watch.slot, 0), job)

    def on_member_gone(self, slot: int, incarnation: int) -> None:
        """End the watches with handlers of that process."""
        self._gone.add(Caller(slot, incarnation))
        for watched, watch in list(self._asked.values()):
            if watch.point is None and (watch.slot, watch.incarnation) == (slot, incarnation):
                self._remove(watched, watch)

    @property
    def in_use(self) -> bool:
        """See Service: watches with points outlive who asked for them, and go on here."""
        return bool(self._asked) and not self._given

    # --- the end, and another version -------------------------------------------------------------

    def hand_over(self) -> HandOver:
        """Give the watches away; this version's own descriptors stay open until `stop`."""
        self._stop_listening()
        watched = list(self._watched.values())
        descriptors: list[int] = []
        try:
            descriptors.extend(os.dup(each.descriptor) for each in watched)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            self._listen()
            raise
        self._given = True
        data: dict[str, Any] = {
            "watched": [[w.pid, [astuple(watch) for watch in w.watches]] for w in watched],
            "gone": self._gone.to_data(),
            "exits": self._exits,
            "unknown": self._unknown,
        }
        return HandOver(data, descriptors)

    async def take_over(self, handed: HandOver) -> None:
        """Go on with the watches of another version; who has ended meanwhile is told of now."""
        data = handed.data
        self._gone = Gone(data["gone"])
        self._exits, self._unknown = data["exits"], data["unknown"]
        descriptors = list(handed.descriptors)
        try:
            for pid, watches in data["watched"]:
                watched = self._add(pid, descriptors.pop(0))
                for watch in watches:
                    self._enter(watched, Watch(*watch))
            self._listen()
        except BaseException:
            await self.stop()
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def resume(self, handed: HandOver) -> None:
        """Go on with what was handed over."""
        self._given = False
        for watched in self._watched.values():
            if watched.ended:  # its time to be told of may have passed meanwhile
                watched.ended = False
                self._epoll.modify(watched.descriptor, select.EPOLLIN)
        self._listen()

    def _stop_listening(self) -> None:
        if not self._epoll.closed:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())

    async def stop(self) -> None:
        """See Service."""
        self._stop_listening()
        for watched in list(self._watched.values()):
            self._forget(watched)
        self._epoll.close()

    def statistics(self) -> dict[str, int]:
        """See Service."""
        return {
            "watches": len(self._asked),
            "processes": len(self._watched),
            "exits": self._exits,
            "unknown": self._unknown,
        }
