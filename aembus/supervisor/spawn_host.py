"""The spawn host, as the supervisor sees it: started when needed, told which events it has.

A registration with ``spawn=True`` stays its member's: it goes when that closes it, leaves or
departs.  In the registry it stands under the spawn host's slot.  The spawn host has to have an
event before that is published, and has it until no wait queue shows it any more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any, Final

from aembus.errors import ControlError, RegistrationError
from aembus.supervisor.configuration import WorkerSpec
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import KIND_SPAWN, STATE_STARTING, Member, Members
from aembus.supervisor.workers import Worker, Workers

log = logging.getLogger("aembus")

NAME: Final = "spawn-host"
PROGRAM: Final = "aembus.spawning.host"
ADOPT_S_MAX: Final = 28.0  # members wait 30 s for an answer
AGAIN_S: Final = 0.02
CHILDREN_S_MAX: Final = 0.5


class SpawnHost:
    """The one spawn host of a bus, or none while nobody needs it.

    Args:
        members, inboxes: of the bus.
    """

    def __init__(self, members: Members, inboxes: Inboxes) -> None:
        self._members = members
        self._inboxes = inboxes
        self.workers: Workers | None = None
        self._member: Member | None = None
        self._up = asyncio.Event()
        self._told: set[int] = set()  # the events that its process has, or is about to
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[Any, Any] | None]] = {}

    async def adopt(self, member: Member, ids: list[int]) -> None:
        """See to it that the spawn host has the events of `member` among these.

        Raises: RegistrationError if a handler cannot be had, and `member` has none of them then.
        """
        registered = {event_id: member.pending[event_id] for event_id in ids}
        wanted = {i: event.spawn for i, event in registered.items() if event.spawn is not None}
        if not wanted:
            return
        try:
            async with asyncio.timeout(ADOPT_S_MAX):
                errors = await self._adopt(wanted)
            if errors:
                raise RegistrationError(
                    "; ".join(
                        f"a handler with spawn=True cannot be had in another process: {text}, "
                        f"event={registered[event_id].name!r}"
                        for event_id, text in errors.items()
                    )
                )
        except BaseException as error:
            # What is another one by now its replacement has registered.
            mine = [i for i, event in registered.items() if member.pending.get(i) is event]
            self._members.take_back(member, mine)
            self.reconcile()
            if isinstance(error, TimeoutError):
                raise RegistrationError(
                    f"the spawn host does not come up, waited_s={ADOPT_S_MAX}"
                ) from None
            raise

    async def _adopt(self, wanted: dict[int, list[Any]]) -> dict[int, str]:
        if self._member is None:
            self._member = self._members.spawn_host = self._start()
        while True:
            await self._up.wait()
            events = [[event_id, *spawn] for event_id, spawn in wanted.items()]
            self._told.update(wanted)
            answer = await self._ask({"push": "adopt", "events": events})
            if answer is not None:
                return answer
            await asyncio.sleep(AGAIN_S)  # its death, or leave, was not taken note of yet

    def _start(self) -> Member:
        if self._members.named(NAME) is not None:
            raise RegistrationError(f"a member has the spawn host's name, name={NAME!r}")
        assert self.workers is not None
        member = self._members.add(KIND_SPAWN, NAME, 0, STATE_STARTING)
        spec = WorkerSpec(NAME, f"{PROGRAM}:main")
        try:
            self._inboxes.create(member.inbox_id)
            try:
                self.workers.start(Worker(NAME, spec, program=PROGRAM))
            except BaseException:
                self._inboxes.remove(member.inbox_id, member.counters)
                raise
        except BaseException:
            self._members.remove(member)
            raise
        return member

    async def _ask(self, push: dict[str, Any]) -> dict[Any, Any] | None:
        # None if it died meanwhile.
        assert self._member is not None
        if self._member.connection is None:
            return None
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._member.connection.push({**push, "number": number})
        try:
            says: dict[Any, Any] | None = await answer
            return says
        finally:
            del self._asked[number]

    def says(self, number: int, says: dict[Any, Any]) -> None:
        """Take its answer."""
        answer = self._asked.get(number)
        if answer is not None and not answer.done():
            answer.set_result(says)

    # --- its process ----------------------------------------------------------------------------

    def is_member(self, member: Member) -> bool:
        """Say whether this is its member."""
        return member is self._member

    def events_for_process(self) -> list[list[Any]]:
        """Return all events that it is to have; its new process begins with these."""
        found = self._wanted()
        self._told = set(found)
        return [[event_id, *spawn] for event_id, spawn in found.items()]

    def on_ready(self) -> None:
        """Its process has come up."""
        self._up.set()
        self.reconcile()

    def on_death(self) -> None:
        """Its process has died."""
        self._up.clear()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)

    def _wanted(self) -> dict[int, Any]:
        return {
            event_id: event.spawn
            for member in self._members
            if member.listed
            for events in (member.pending, member.stopped, member.events)
            for event_id, event in events.items()
            if event.spawn is not None
        }

    def reconcile(self) -> None:
        """Tell it which events are on no wait queue any more; call it when that is published."""
        if not self._told or self._member is None or not self._up.is_set():
            return
        gone = self._told - self._wanted().keys()
        if gone and self._member.connection is not None:
            self._told -= gone
            self._member.connection.push({"push": "disown", "ids": sorted(gone)})

    def unregister(self, ids: list[int]) -> None:
        """Take events off their wait queues, whose-ever they are."""
        for member in self._members:
            for event_id in ids:
                event = member.events.get(event_id) or member.stopped.get(event_id)
                if event is not None and event.spawn is not None:
                    self._members.unregister(member, [event_id])

    # --- children -------------------------------------------------------------------------------

    async def children(self) -> dict[int, list[list[int]]]:
        """Return [PID, born at (CLOCK_MONOTONIC, ns)] of every child, by event.

        Raises: ControlError if the spawn host does not answer.
        """
        if self._member is None or not self._up.is_set():
            return {}
        try:
            async with asyncio.timeout(CHILDREN_S_MAX):
                return await self._ask({"push": "children"}) or {}
        except TimeoutError:
            raise ControlError(
                f"the spawn host does not answer, pid={self._member.pid}, waited_s={CHILDREN_S_MAX}"
            ) from None
