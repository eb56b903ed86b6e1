"""How a member goes: in steps, so that no job is stored where nobody reads.

1. The registry is published without it.
2. Every live member has passed that generation: nobody writes into its inbox any more.
3. What is left in the inbox goes to its group, or to the dead letters; it stays while it cannot.
4. The inbox is removed and the slot is free.

The same steps serve a member that leaves and one that died and is not replaced.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any, Final

from aembus import callchain
from aembus.errors import AembusError
from aembus.hosting.hosting import Hosting
from aembus.hosting.outgoing import Parked
from aembus.routing import Target
from aembus.sender import Job, Sender
from aembus.shm import layout
from aembus.shm.lanes import Record
from aembus.supervisor.callers import Callers
from aembus.supervisor.dead_letters import DeadLetters
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import STATE_LEAVING, Member, Members
from aembus.supervisor.publication import Publication

log = logging.getLogger("aembus")

AGAIN_S: Final = 1.0  # after a job in the inbox of who leaves could not be kept
WENT_BEFORE_RETRY: Final = "its handler raised, and its member went before the next attempt"


class Departures:
    """Takes members off the bus, and jobs out of inboxes that nobody owns.

    Args: the supervisor's parts.
    """

    def __init__(
        self,
        nonce: str,
        members: Members,
        inboxes: Inboxes,
        publication: Publication,
        sender: Sender,
        dead_letters: DeadLetters,
    ) -> None:
        self._nonce = nonce
        self._members = members
        self._inboxes = inboxes
        self._publication = publication
        self._sender = sender
        self._dead_letters = dead_letters
        self.callers = Callers(inboxes, sender, self._keep_record)
        self.hosting: Hosting | None = None
        self.on_process_gone: Callable[[int, int], None] = lambda slot, incarnation: None
        self.on_given_up: Callable[[tuple[int, ...], bytes], None] = lambda header, payload: None
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by inbox
        self._parked_numbers = itertools.count(1)

    def retire(self, member: Member) -> None:
        """Begin the steps; they go on by themselves.  Idempotent."""
        if member.state == STATE_LEAVING:
            return
        member.state = STATE_LEAVING
        self.let_go(member)
        inbox_id = member.inbox_id
        self._tasks[inbox_id] = task = asyncio.ensure_future(self._retire(member))
        task.add_done_callback(lambda task: self._tasks.pop(inbox_id, None))

    def let_go(self, member: Member) -> None:
        """Let a member be without a process: what that still says is not heard, nor waited for."""
        if member.connection is not None:
            member.connection.member = None
            member.connection = None
        self._publication.check_passed()

    async def gone(self, member: Member, timeout_s: float) -> None:
        """Begin the steps and wait for their end, for a bounded time."""
        self.retire(member)
        task = self._tasks.get(member.inbox_id)
        if task is not None:
            await asyncio.wait([task], timeout=timeout_s)

    def forget_process(self, member: Member) -> None:
        """Tell the services that the member's process is gone."""
        self.on_process_gone(member.slot, member.incarnation)

    async def _retire(self, member: Member) -> None:
        told = ""
        while True:
            try:
                await self._empty(member)
                break
            except (AembusError, OSError) as error:  # a full disk, no descriptor: it may pass
                if str(error) != told:
                    told = str(error)
                    log.error("member %s cannot leave yet, tried again: %s", member.name, told)
            await asyncio.sleep(AGAIN_S)
        self._inboxes.remove(member.inbox_id, member.counters)
        self._members.remove(member)

    async def _empty(self, member: Member) -> None:
        self.forget_process(member)
        self.callers.on_death(member, queued=False)
        generation = await self._publication.publish()
        # Not later: a stopped process may hold up what follows, and callers would wait for it.
        self.callers.on_death(member, queued=True)
        await self._publication.passed(generation)
        self._inboxes.empty(
            member.inbox_id,
            lambda lane_class, producer, record: self.dispose(member, lane_class, record),
        )

    def empty_into_dead_letters(self, member: Member, reason: str) -> None:
        """Make dead letters of what is left in an inbox, at the end of the bus.

        What cannot be kept is lost then, and logged.
        """
        lost: list[OSError] = []

        def keep(lane_class: int, producer: int, record: Record) -> bool:
            try:
                return self._keep(member, lane_class, record, reason)
            except OSError as error:
                lost.append(error)
                return False

        self._inboxes.empty(member.inbox_id, keep)
        if lost:
            log.error("jobs are lost, member=%s, jobs=%d: %s", member.name, len(lost), lost[-1])

    def dispose(self, member: Member, lane_class: int, record: Record) -> bool:
        """Give a job of a member that has gone to its group; True if somebody was there."""
        if self.is_copy(record.event_id):
            return True  # it counts as never sent
        if record.attempts:  # in hand: whoever gets it next may die of it too, uncounted
            failed = record.header[4] & layout.STATE_MASK == layout.STATE_FAILED
            reason = WENT_BEFORE_RETRY if failed else "in hand when its member went"
            self.callers.fail(member, record, reason)
            return self._keep(member, lane_class, record, reason)
        if record.kind == layout.KIND_CALL:
            self.callers.send_back(record)
            return True
        if self.forward(record.header, record.payload):
            return True
        return self._keep(member, lane_class, record, "its member went")

    def is_copy(self, event_id: int) -> bool:
        """Say whether a job is a tap's: nobody misses it, and it counts as never sent."""
        registration = self._members.registration(event_id)
        return registration is not None and registration.options.tap

    def forward(self, header: tuple[int, ...] | list[int], payload: bytes) -> bool:
        """Send a job on to a sibling of its event; False if its group has nobody else."""
        assert self.hosting is not None
        event_id, key_hash, sequence = header[11], header[12], header[5]
        if self.is_copy(event_id):
            return True
        registration = self._members.registration(event_id)
        if registration is None or registration.group is None:
            return False
        group = self._sender.refresh().group(registration.point, registration.group)
        siblings = [target for target in group if target.event_id != event_id]
        if not siblings:
            return False
        target: Target = siblings[(key_hash or sequence) % len(siblings)]
        job = Job(payload, key_hash)
        if header[1] == layout.KIND_JOB_WITH_TTL:
            job = job._replace(kind=layout.KIND_JOB_WITH_TTL, deadline_ns=header[7])
        return bool(self.hosting.send(target, job))

    def _keep(self, member: Member, lane_class: int, record: Record, reason: str) -> bool:
        self._keep_record(member, lane_class, record, reason)
        self.on_given_up(record.header, record.payload)
        return False

    def _keep_record(self, member: Member, lane_class: int, record: Record, reason: str) -> None:
        self.keep(member, lane_class, record.header, record.payload, reason, "")

    def keep(
        self,
        member: Member,
        lane_class: int,
        header: tuple[int, ...] | list[int],
        payload: bytes,
        reason: str,
        detail: str,
    ) -> None:
        """Make a dead letter of a job.  Raises OSError if it cannot be kept."""
        event = self._members.registration(header[11])
        letter: dict[str, Any] = {
            "identity": [self._nonce, member.inbox_id, lane_class, header[3], header[5]],
            "member": member.name,
            "point": event.point if event else None,
            "event": event.name if event else None,
            "group": event.group if event else None,
            "attempts": layout.state_attempts(header[4]),
            "failures": layout.state_failures(header[4]),
            "activated_ns": header[6],
            "key_hash": header[12],
            "reason": reason,
            "detail": detail,
            "payload": callchain.data_of(header, payload),
        }
        self._dead_letters.append(letter)

    def keep_parked(self, parked: Parked, reason: str) -> None:
        """Make a dead letter of a job that a service sent and that has nowhere to go."""
        job = parked.job
        event_id = parked.target.event_id
        self.keep_unsent("supervisor", event_id, parked.point, job.key_hash, job.payload, reason)

    def keep_unsent(
        self,
        member: str,
        event_id: int,
        point: str | None,
        key_hash: int,
        payload: bytes,
        reason: str,
    ) -> None:
        """Make a dead letter of a job that a service could not send; nobody else has it."""
        event = self._members.registration(event_id)
        letter = {
            "identity": [self._nonce, "parked", next(self._parked_numbers), 0, 0],
            "member": member,
            "point": point or (event.point if event else None),
            "event": event.name if event else None,
            "group": event.group if event else None,
            "attempts": 0,
            "failures": 0,
            "activated_ns": 0,
            "key_hash": max(key_hash, 0),
            "reason": reason,
            "detail": "",
            "payload": payload,
        }
        try:
            self._dead_letters.append(letter)
        except OSError as error:  # who has sent it goes on
            log.error("a job of a service is lost: %s, point=%r", error, letter["point"])

    async def settle(self, timeout_s: float) -> None:
        """Wait for departures that are under way, for a bounded time."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=timeout_s)
        for task in list(self._tasks.values()):
            task.cancel()
