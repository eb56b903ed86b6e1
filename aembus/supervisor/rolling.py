"""Rolling: a worker's process is replaced by one of new code, and no job is lost or waits long.

1. The successor is spawned and imports the entry point; the worker's process goes on meanwhile.
2. It asks to join.  The worker's process is suspended: its job in hand is finished, none is held,
   and it neither takes nor publishes jobs (`aembus.suspension`).
3. The successor gets slot and inbox, with an incarnation of its own, and runs its entry point.
4. When that has returned, the old process ends.  If anything fails before, the successor is killed
   and the old process goes on with all that it had.

Keys stay, and order stays: the inbox is handed over between two jobs, exactly as after a crash.
Timers that name a handler belong to the process that started them and go with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aembus.errors import ControlError
from aembus.routing import STATE_RUNNING
from aembus.supervisor.control import Connection
from aembus.supervisor.members import Member, Members, Registration
from aembus.supervisor.publication import Publication
from aembus.supervisor.standstill import Standstill
from aembus.supervisor.workers import Successor, Worker, Workers

log = logging.getLogger("aembus")

TIMEOUT_S_MAX: Final = 25.0  # the successor's request to join waits for 30
RETIRE_S: Final = 5.0  # for the old process to end, before it is killed


@dataclass(slots=True)
class _Roll:
    """One roll; `events` and `stopped` are those of the old process, once it stands still."""

    worker: Worker
    successor: Successor
    asked: asyncio.Future[Connection]
    admitted: asyncio.Future[Member]
    ready: asyncio.Future[None]
    abandoned: asyncio.Future[None]
    events: dict[int, Registration] = field(default_factory=dict, kw_only=True)
    stopped: dict[int, Registration] = field(default_factory=dict, kw_only=True)


class Rolling:
    """Rolls the workers of one supervisor.

    Args:
        members, publication, workers, standstill: the supervisor's parts.
        forget_process: tells the services that an incarnation of a member is gone.
    """

    def __init__(
        self,
        members: Members,
        publication: Publication,
        workers: Workers,
        standstill: Standstill,
        forget_process: Callable[[int, int], None],
    ) -> None:
        self._members = members
        self._publication = publication
        self._workers = workers
        self._standstill = standstill
        self._forget_process = forget_process
        self._rolls: dict[str, _Roll] = {}
        self._closed = False

    async def roll(self, name: str, timeout_s: float) -> dict[str, Any]:
        """Replace a worker's process; return its pids before and after, and how long it stood.

        Args:
            name: the worker's.
            timeout_s: for each of the steps: importing, the job in hand, the entry point.

        Raises: ControlError saying why the old process goes on.
        """
        if not 0 < timeout_s <= TIMEOUT_S_MAX:
            raise ControlError(
                f"a time-out is above 0 and at most {TIMEOUT_S_MAX:g} s, timeout_s={timeout_s:g}"
            )
        worker, member = self._standstill.find(name)
        if self._closed:
            raise ControlError(f"the bus stops, worker={name!r}")
        with self._standstill.changing(name, "rolled"):
            return await self._roll(worker, member, timeout_s)

    async def _roll(self, worker: Worker, member: Member, timeout_s: float) -> dict[str, Any]:
        name = worker.name
        begun = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            successor = self._workers.spawn_successor(worker)
        except OSError as error:
            raise ControlError(f"no process can be started, worker={name!r}: {error}") from error
        futures = [loop.create_future() for _ in range(4)]
        roll = self._rolls[name] = _Roll(worker, successor, *futures)
        old = member.pid, member.incarnation, member.connection
        try:
            connection = await self._wait(roll, roll.asked, timeout_s, "import its entry point")
            self._check_same(worker, member, old)
            await self._standstill.suspend(member, timeout_s)
            stood = time.monotonic()
            self._admit(roll, member, connection)
            await self._wait(roll, roll.ready, timeout_s, "run its entry point")
        except BaseException:
            self._go_back(roll, member, old)
            raise
        finally:
            del self._rolls[name]
            roll.admitted.cancel()  # nothing happens if it is done
        self._commit(worker, member, old)
        now = time.monotonic()
        log.info("worker %s rolled: pid %d is now %d", name, old[0], member.pid)
        return {
            "worker": name,
            "pid_before": old[0],
            "pid": member.pid,
            "took_s": round(now - begun, 3),
            "stood_s": round(now - stood, 3),
        }

    async def _wait(
        self, roll: _Roll, wanted: asyncio.Future[Any], timeout_s: float, what: str
    ) -> Any:
        await asyncio.wait(
            (wanted, roll.successor.gone, roll.abandoned),
            timeout=timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if wanted.done():
            return wanted.result()
        name = roll.worker.name
        if roll.abandoned.done():
            raise ControlError(f"the bus stops, worker={name!r}")
        if roll.successor.gone.done():
            code = roll.successor.process.poll()
            why = roll.successor.not_started or f"it ended, exit code {code}"
            raise ControlError(f"the new process could not {what}: {why}, worker={name!r}")
        raise ControlError(
            f"the new process did not {what} in time; wait longer (--timeout), "
            f"worker={name!r}, timeout_s={timeout_s}"
        )

    @staticmethod
    def _check_same(worker: Worker, member: Member, old: tuple[int, int, Any]) -> None:
        if (member.pid, member.incarnation, member.connection) != old or worker.process is None:
            raise ControlError(f"its process died meanwhile, worker={worker.name!r}, pid={old[0]}")

    def _admit(self, roll: _Roll, member: Member, connection: Connection) -> None:
        member.connection.member = None
        roll.successor.admitted = True
        roll.events, roll.stopped = dict(member.events), dict(member.stopped)
        self._members.replace_process(member, connection.pid)
        member.connection = connection
        roll.admitted.set_result(member)

    def _commit(self, worker: Worker, member: Member, old: tuple[int, int, Any]) -> None:
        pid, incarnation, connection = old
        self._workers.install(worker)
        self._forget_process(member.slot, incarnation)
        connection.push({"push": "retire"})
        asyncio.get_running_loop().call_later(RETIRE_S, self._workers.end_retired, pid)

    def _go_back(self, roll: _Roll, member: Member, old: tuple[int, int, Any]) -> None:
        pid, incarnation, connection = old
        if roll.successor.admitted:
            if member.connection is not None:
                member.connection.member = None
            self._forget_process(member.slot, member.incarnation)
            member.pid, member.incarnation, member.connection = pid, incarnation, connection
            self._members.give_back(member, roll.events, roll.stopped)
            member.state = STATE_RUNNING
            # Its activations are held back, and its successor's are not waited for any more.
            self._publication.acknowledge(member, self._publication.generation)
            connection.member = member
            if not self._closed:
                self._publication.publish_now()
        connection.push({"push": "resume"})
        self._workers.discard(roll.worker)

    # --- what the successor and the old process say -----------------------------------------------

    def of_pid(self, pid: int) -> bool:
        """Say whether a process is some worker's successor."""
        return self._roll_of(pid) is not None

    def _roll_of(self, pid: int) -> _Roll | None:
        rolls = self._rolls.values()
        return next((roll for roll in rolls if roll.successor.process.pid == pid), None)

    async def join(self, connection: Connection) -> Member:
        """Give the successor its worker's place once the old process stands still."""
        roll = self._roll_of(connection.pid)
        if roll is None or roll.asked.done():
            raise ControlError(f"no successor of a worker, pid={connection.pid}")
        roll.asked.set_result(connection)
        return await roll.admitted

    def on_ready(self, member: Member) -> None:
        """An entry point has returned; perhaps a successor's."""
        roll = self._rolls.get(member.name)
        if roll is not None and roll.successor.admitted and not roll.ready.done():
            roll.ready.set_result(None)

    def on_not_started(self, pid: int, text: str) -> None:
        """Take note why a successor could not come up."""
        roll = self._roll_of(pid)
        if roll is not None:
            roll.successor.not_started = text

    def close(self) -> None:
        """Roll nobody any more: the bus is about to stop.  Successors are killed."""
        self._closed = True
        for roll in list(self._rolls.values()):
            if not roll.abandoned.done():
                roll.abandoned.set_result(None)
