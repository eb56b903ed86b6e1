"""Hosting: the services of one process, and all that they need of it.

The parts: `code` loads a service's code afresh, `versions` loads, upgrades and retires, `calls`
answers members, `outgoing` sends and parks, `turns` is the event loop's side.  Which process it is
does not matter here; who is bound to which version is known to the supervisor.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from aembus.codec import decode
from aembus.hosting.calls import CallTable
from aembus.hosting.hosted import Surroundings
from aembus.hosting.outgoing import Outgoing, Parked
from aembus.hosting.turns import Turns
from aembus.hosting.versions import Versions
from aembus.routing import SUPERVISOR_SLOT, Target
from aembus.sender import Job, Sender
from aembus.services.base import Caller
from aembus.shm.inbox import Inbox

log = logging.getLogger("aembus")


class Hosting:
    """The services of one process.

    Args:
        inbox, sender: this process's two sides.
        slot: of the member that this process is.
        on_lost: keeps a job that has nowhere to go, and why: its destination has gone, or no
            lane there can be opened.
        keep, kept: see Surroundings.
        first_source: see Outgoing.
    """

    def __init__(
        self,
        inbox: Inbox,
        sender: Sender,
        slot: int,
        on_lost: Callable[[Parked, str], None],
        keep: Callable[[str, Any], None] = lambda name, data: None,
        kept: Mapping[str, Any] = MappingProxyType({}),
        first_source: int = 1,
    ) -> None:
        self._inbox = inbox
        self._table = CallTable(sender)
        self._outgoing = Outgoing(sender, on_lost, first_source)
        # See Work: called for each message.
        self.take = self._table.take
        self.take_one_way = self._table.take_one_way
        self._turns = Turns(inbox, sender, self)
        surroundings = Surroundings(
            self._outgoing,
            inbox.payload_bytes_max,
            self._turns.schedule,
            keep,
            kept,
            is_supervisor=slot == SUPERVISOR_SLOT,
        )
        self.versions = Versions(surroundings, self._table, inbox, slot)

    def start(self, descriptor: int) -> None:
        """Begin to take calls; `descriptor` is the inbox's doorbell's."""
        self._turns.start(descriptor)

    # --- what a turn does (turns.Work) ----------------------------------------------------------

    def may_take(self) -> bool:
        """See Work."""
        for hosted in self.versions.loaded:
            if hosted.later_bytes and self._table.keeps_too_much(hosted):
                return False
        return True

    def take_numbers(self, call_id: int, caller: Caller, numbers: array[int]) -> None:
        """See Work."""
        self._table.take_numbers(call_id, caller, numbers)

    def work(self, now_ns: int) -> int:
        """See Work."""
        worked = 0
        for hosted in self.versions.loaded:
            worked += hosted.do_work(now_ns)
        if self._outgoing.waits() and (resumed := self._outgoing.flush()):
            for hosted in self.versions:
                hosted.tell("on_room", resumed)
        return worked

    def next_due_ns(self) -> int | None:
        """See Work."""
        first_ns = None
        for hosted in self.versions.loaded:
            if hosted.has_times:
                due_ns = hosted.next_due_ns()
                if due_ns is not None and (first_ns is None or due_ns < first_ns):
                    first_ns = due_ns
        return first_ns

    def waits(self) -> bool:
        """See Work."""
        return self._outgoing.waits()

    # --- what the rest of the process asks ------------------------------------------------------

    def send(self, target: Target, job: Job) -> int:
        """Send to one member; 0 if it is not on the bus, else 1 (parked counts)."""
        return self._outgoing.send(target, job, 0)

    def send_now(self, target: Target, job: Job) -> int:
        """Send without parking; return 1, or 0 if the member is not on the bus, or FULL."""
        return self._outgoing.send_now(target, job)

    def on_registry_changed(self) -> None:
        """Tell every service, and try again what is parked for members that have gone."""
        for hosted in self.versions:
            hosted.tell("on_registry_changed")
        if self._outgoing.route_anew_where_gone():
            self._turns.schedule()

    def on_clock_step(self) -> None:
        """Tell every service that the wall clock was set."""
        for hosted in self.versions:
            hosted.tell("on_clock_step")

    def on_member_gone(self, slot: int, incarnation: int) -> None:
        """Tell every service."""
        for hosted in self.versions:
            hosted.tell("on_member_gone", slot, incarnation)

    def on_request_lost(self, point: str, payload: bytes, given_up: bool) -> bool:
        """Ask the services whether one of them sees to a job that it has sent; see Service."""
        try:
            data = decode(payload)
        except Exception:  # what a service sends must not hold up what is done about a death
            log.exception("a lost request cannot be read, point=%r", point)
            return False
        return any(
            hosted.ask("on_request_lost", point, data, given_up)
            for hosted in self.versions
            if hosted.later is None  # else nobody has its state now: the job is delivered again
        )

    def close_intakes(self) -> None:
        """Tell every service to take in nothing new."""
        self.versions.close()
        for hosted in self.versions:
            hosted.ask("close_intakes")

    def idle(self) -> bool:
        """Say whether nothing is queued or parked here."""
        return not self._inbox.has_jobs() and not len(self._outgoing)

    def run_last_turns(self) -> None:
        """Take what the members have sent before they ended."""
        while self._turns.take_calls():
            pass

    async def stop(self) -> None:
        """Stop every service, newest first, and take no more calls."""
        await self.versions.stop()
        self._turns.stop()

    @property
    def calls(self) -> int:
        """How many calls were taken."""
        return self._table.calls

    @property
    def call_failures(self) -> int:
        """How many of them have failed."""
        return self._table.failures

    def statistics(self) -> list[dict[str, Any]]:
        """Return a map for each loaded version."""
        return [hosted.statistics() for hosted in self.versions]
