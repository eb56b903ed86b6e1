"""Service hosts, as the supervisor sees them: what each has loaded, and what is wanted of it.

A host is a process that is spawned and replaced like a worker (`workers`), and hosts services of
its own (`aembus.hosting.process`).  It says what it has loaded when it is up and with each answer;
that is what the registry shows of it.  What it asked to keep is given to its next process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from aembus.control import error_from_frame
from aembus.errors import ControlError
from aembus.routing import STATE_RUNNING, ServiceVersion
from aembus.supervisor.control import Connection, Operation
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import KIND_HOST, STATE_STARTING, Member, Members, member_of
from aembus.supervisor.publication import Publication
from aembus.supervisor.workers import Workers

log = logging.getLogger("aembus")

ASK_S_MAX: Final = 25.0
UP_S_MAX: Final = 10.0  # for a host that is being replaced
LOOK_S: Final = 0.02
LOOK_S_MAX: Final = 1.0  # a host that is busy for longer is shown as it was


@dataclass(slots=True)
class RemoteHost:
    """One host.

    running, loaded, known: as it said last; known: what its next process is to load.
    kept: what its services asked to keep, by their names.
    """

    name: str
    running: list[ServiceVersion] = field(default_factory=list)
    loaded: list[dict[str, Any]] = field(default_factory=list)
    known: list[Any] | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    calls: int = 0
    call_failures: int = 0
    idle: bool = True


class ServiceHosts:
    """The hosts of one supervisor.

    Args:
        members, inboxes, publication: the supervisor's parts.
        processes: those of the hosts.
        keep_unsent: makes a dead letter of a job that a host's service could not send: host,
            event id, point, key hash, payload, reason.
    """

    def __init__(
        self,
        members: Members,
        inboxes: Inboxes,
        publication: Publication,
        processes: Workers,
        keep_unsent: Callable[[str, int, str | None, int, bytes, str], None],
    ) -> None:
        self._members = members
        self._inboxes = inboxes
        self._publication = publication
        self._processes = processes
        self._keep_unsent = keep_unsent
        self._hosts: dict[str, RemoteHost] = {w.name: RemoteHost(w.name) for w in processes}
        self._up = asyncio.Event()
        self._stopping = False
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._asked_of: dict[int, int] = {}  # the slots of those who are to answer
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[RemoteHost]:
        return iter(list(self._hosts.values()))

    def __len__(self) -> int:
        return len(self._hosts)

    def add_members(self) -> None:
        """Give each host a slot and an inbox.  Raises SlotsExhausted, OutOfSharedMemory."""
        for host in self:
            member = self._members.add(KIND_HOST, host.name, 0, STATE_STARTING)
            try:
                self._inboxes.create(member.inbox_id)
            except BaseException:
                self._members.remove(member)
                raise

    async def start(self, stopped: asyncio.Event) -> None:
        """Spawn the hosts and return when each is up, or the bus was `stopped`: one cannot be."""
        if not self._hosts:
            return
        for process in self._processes:
            self._processes.spawn(process)
        waits = [asyncio.ensure_future(event.wait()) for event in (self._up, stopped)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def close_intakes(self) -> None:
        """Have every host's services take in nothing new; replace none that dies."""
        self._processes.stop_restarting()
        self.tell("ask", number=0, what="close_intakes", fields={})

    def idle(self) -> bool:
        """Say whether nothing is queued for any host."""
        return all(
            self._inboxes.totals(member.inbox_id).queued == 0
            for host in self
            if (member := self._member(host)) is not None and member.connection is not None
        )

    async def stop(self, timeout_s: float) -> None:
        """Have the hosts flush and end, for a bounded time."""
        self._stopping = True
        self.tell("stop")
        for number in (signal.SIGABRT, signal.SIGKILL):
            if await self._processes.wait_until_gone(timeout_s):
                return
            self._processes.signal_all(number)
        await self._processes.wait_until_gone(timeout_s)

    def table(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "hosted": self.hosted,
            "answer": self.answer,
            "keep": self.keep,
            "kept": self.kept,
            "parked_lost": self.parked_lost,
        }

    def running(self) -> list[ServiceVersion]:
        """Return what can be bound, by host."""
        return [version for host in self._hosts.values() for version in host.running]

    def of(self, name: str) -> list[RemoteHost]:
        """Return the hosts of a service."""
        return [
            host
            for host in self._hosts.values()
            if any(version.name == name for version in host.running)
        ]

    async def until_up(self, name: str) -> None:
        """Wait, for a bounded time, until the hosts that had this service have it again."""
        until = asyncio.get_running_loop().time() + UP_S_MAX
        while asyncio.get_running_loop().time() < until:
            if all(self._is_up(host) for host in self.of(name)):
                return
            await asyncio.sleep(LOOK_S)

    def _is_up(self, host: RemoteHost) -> bool:
        member = self._member(host)
        return member is not None and member.state == STATE_RUNNING

    def _member(self, host: RemoteHost) -> Member | None:
        member = self._members.named(host.name)
        return member if member is not None and member.kind == KIND_HOST else None

    # --- asking ---------------------------------------------------------------------------------

    async def ask(
        self, host: RemoteHost, what: str, timeout_s: float = ASK_S_MAX, **fields: Any
    ) -> dict[str, Any]:
        """Have a host do something, and return what came of it.

        Raises: ControlError if it is not up, or does not answer; else what it refused with.
        """
        member = self._member(host)
        if member is None or member.connection is None:
            raise ControlError(f"the service host is not up, host={host.name!r}")
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._asked_of[number] = member.slot
        member.connection.push({"push": "ask", "number": number, "what": what, "fields": fields})
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise ControlError(
                f"the service host did not answer in time, host={host.name!r}, what={what!r}, "
                f"timeout_s={timeout_s:g}"
            ) from None
        finally:
            del self._asked[number], self._asked_of[number]

    def on_member_gone(self, slot: int) -> None:
        """Wait for no answer of a host whose process is gone."""
        for number, answer in self._asked.items():
            if self._asked_of[number] == slot and not answer.done():
                answer.set_exception(ControlError(f"the service host died meanwhile, slot={slot}"))

    async def look(self) -> None:
        """Have every host say what it has now; one that does not answer is left as it was."""
        asked = [self.ask(host, "look", LOOK_S_MAX) for host in self]
        await asyncio.gather(*asked, return_exceptions=True)

    def tell(self, push: str, **fields: Any) -> None:
        """Tell every host that is up."""
        for host in self:
            member = self._member(host)
            if member is not None and member.connection is not None:
                member.connection.push({"push": push, **fields})

    def tell_slot(self, slot: int, push: str, **fields: Any) -> None:
        """Tell the host in a slot, if it is one and is up."""
        member = self._members.get(slot)
        if member is not None and member.kind == KIND_HOST and member.connection is not None:
            member.connection.push({"push": push, **fields})

    # --- what hosts say ---------------------------------------------------------------------------

    def _host(self, connection: Connection) -> RemoteHost:
        return self._host_of(member_of(connection))

    def _host_that_was(self, connection: Connection) -> RemoteHost:
        # Its process may have died just now, and what it said is good all the same.
        return self._host_of(connection.last_member or member_of(connection))

    def _host_of(self, member: Member) -> RemoteHost:
        if member.kind != KIND_HOST:
            raise ControlError(f"only a service host says that, member={member.name!r}")
        return self._hosts[member.name]

    @staticmethod
    def _take_state(host: RemoteHost, frame: dict[str, Any]) -> None:
        host.running = [ServiceVersion.from_document(document) for document in frame["running"]]
        host.loaded, host.known = frame["loaded"], frame["known"]
        host.calls, host.call_failures = frame["calls"], frame["call_failures"]
        host.idle = frame["idle"]

    async def hosted(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Take note that a host is up."""
        host, member = self._host(connection), member_of(connection)
        self._take_state(host, request)
        self._processes.came_up(self._processes[host.name])
        self._members.publish_all(member, [])
        if self._stopping:
            connection.push({"push": "stop"})  # it was not there when the others were told
        await self._publication.publish()
        if member.restarts:
            log.info("service host %s is up again, pid %d", host.name, member.pid)
        if all(process.history.ever_ready for process in self._processes):
            self._up.set()
        return {}

    async def answer(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Take a host's answer."""
        self._take_state(self._host(connection), request)
        asked = self._asked.get(request["number"])
        if asked is not None and not asked.done():
            if "error" in request:
                asked.set_exception(error_from_frame(request["error"]))
            else:
                asked.set_result(request["result"])
        return {}

    async def keep(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Keep something for the next process of a host."""
        self._host_that_was(connection).kept[request["service"]] = request["data"]
        return {}

    async def kept(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Return what the last process of a host asked to keep, and what it had loaded."""
        host = self._host(connection)
        return {"kept": host.kept, "known": host.known}

    async def parked_lost(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Make a dead letter of a job that a host's service could not send."""
        self._keep_unsent(
            self._host_that_was(connection).name,
            request["event_id"],
            request["point"],
            request["key_hash"],
            request["payload"],
            request["reason"],
        )
        return {}
