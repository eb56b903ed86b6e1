"""Scaling: workers of one kind are added, or taken away, while the bus runs.

A worker that is added is on trial until it is up: one that cannot start is taken away again, and
the bus goes on as before.  The last ones are taken away first: each stands still, leaves in the
usual steps, and what is queued for it goes to its group.  Which worker gets a key depends on how
many there are, so both change that.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any, Final

from aembus.errors import AembusError, ControlError
from aembus.supervisor.departures import Departures
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import KIND_WORKER, STATE_STARTING, Member, Members
from aembus.supervisor.publication import Publication
from aembus.supervisor.standstill import Standstill
from aembus.supervisor.workers import Worker, Workers

log = logging.getLogger("aembus")

COUNT_MAX: Final = 4096
RETIRE_S: Final = 5.0  # for a process to end, before it is killed
ANY_KIND: Final = "workers"  # names the only kind there is


class Scaling:
    """Adds and takes away workers of one supervisor.

    Args: the supervisor's parts.
    """

    def __init__(
        self,
        members: Members,
        inboxes: Inboxes,
        publication: Publication,
        departures: Departures,
        workers: Workers,
        standstill: Standstill,
    ) -> None:
        self._members = members
        self._inboxes = inboxes
        self._publication = publication
        self._departures = departures
        self._workers = workers
        self._standstill = standstill
        self._at_work = asyncio.Lock()
        self._closed = False

    async def scale(
        self, kind: str, count: int, timeout_s: float, wanted: Callable[[], bool]
    ) -> dict[str, Any]:
        """Have `count` workers of a kind; return how many there were and are, and their names.

        Args:
            kind: the name of a WorkerSpec; "workers" where there is only one.
            timeout_s: for each worker to come up, or to finish its job in hand.
            wanted: says whether who has asked is still there; looked at before each worker.

        Raises: ControlError at the first worker that cannot come up or be taken away; the message
        says how many there are now.  Also, with nothing done, if there are not so many free slots.
        """
        kind = self._kind(kind)
        if not 1 <= count <= COUNT_MAX:
            raise ControlError(f"a count is 1 to {COUNT_MAX}, count={count}")
        async with self._at_work:
            before = len(self._workers.of_kind(kind))
            if (more := count - before) > (free := self._members.free_slots):
                raise ControlError(
                    "there are not so many free slots; give the supervisor more (slots, --slots), "
                    f"workers={before}, wanted={count}, more={more}, free slots={free}"
                )
            try:
                while len(self._workers.of_kind(kind)) < count:
                    _check(wanted)
                    await self._add(kind, timeout_s)
                while len(self._workers.of_kind(kind)) > count:
                    _check(wanted)
                    await self._take_away(self._workers.of_kind(kind)[-1], timeout_s)
            except (AembusError, OSError) as error:
                now = len(self._workers.of_kind(kind))
                raise ControlError(f"{error}, before={before}, wanted={count}, now={now}") from None
            names = [worker.name for worker in self._workers.of_kind(kind)]
            return {"kind": kind, "before": before, "count": len(names), "workers": names}

    def _kind(self, kind: str) -> str:
        kinds = self._workers.kinds()
        if kind in kinds:
            return kind
        if kind == ANY_KIND and len(kinds) == 1:
            return kinds[0]
        raise ControlError(f"no such kind of worker, kind={kind!r}, kinds={kinds}")

    async def _add(self, kind: str, timeout_s: float) -> None:
        if self._closed:
            raise ControlError("the bus stops")
        worker = self._workers.add(kind)
        try:
            member = self._add_member(worker.name)
        except BaseException:
            self._workers.remove(worker)
            raise
        try:
            await self._publication.publish()
            why = await self._try(worker, timeout_s)
        except (AembusError, OSError) as error:
            why = str(error)
        worker.on_trial = None
        if why:
            self._workers.send_signal(worker, signal.SIGKILL)
            await self._remove(worker, member)
            raise ControlError(f"worker could not start: {why}, worker={worker.name!r}")

    def _add_member(self, name: str) -> Member:
        other = self._members.named(name)
        if other is not None:  # a client's, or a worker's that is still leaving
            raise ControlError(
                f"a member has the next worker's name, name={name!r}, kind={other.kind!r}, "
                f"state={other.state!r}, pid={other.pid}"
            )
        member = self._members.add(KIND_WORKER, name, 0, STATE_STARTING)
        try:
            self._inboxes.create(member.inbox_id)
        except BaseException:
            self._members.remove(member)
            raise
        return member

    async def _try(self, worker: Worker, timeout_s: float) -> str:
        """Return why a worker does not come up; nothing if it does."""
        up = worker.on_trial = asyncio.get_running_loop().create_future()
        self._workers.spawn(worker)
        try:
            return await asyncio.wait_for(up, timeout_s)
        except TimeoutError:
            return f"it did not come up in {timeout_s:g} s"

    async def _take_away(self, worker: Worker, timeout_s: float) -> None:
        with self._standstill.changing(worker.name, "taken away"):
            if worker.process is None:  # dead, and not started again yet
                member = self._members.named(worker.name)
                assert member is not None
            else:
                _, member = self._standstill.find(worker.name)
                await self._standstill.suspend(member, timeout_s)
                member.connection.member = None
                member.connection.push({"push": "retire"})
            await self._remove(worker, member)

    async def _remove(self, worker: Worker, member: Member) -> None:
        process = worker.process
        self._workers.remove(worker)
        if process is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(RETIRE_S, self._workers.end_retired, process.pid)
        await self._departures.gone(member, RETIRE_S)

    def close(self) -> None:
        """Add nobody any more: the bus is about to stop."""
        self._closed = True
        for worker in self._workers:
            if worker.on_trial is not None and not worker.on_trial.done():
                worker.on_trial.set_result("the bus stops")


def _check(wanted: Callable[[], bool]) -> None:
    if not wanted():
        raise ControlError("who asked for it has gone")
