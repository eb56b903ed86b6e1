"""Events and the event_struct: what a member runs when a job arrives.

The event_struct takes jobs from the inbox and runs their handlers one at a time, in the thread
that called `deliver`.  A job is STARTED before its handler and DONE after it, in shared memory, so
that a replacement of this process knows what was in hand.  A handler's exception is logged,
counted and dead-letters its job; the loop goes on.  What is no Exception (SystemExit,
KeyboardInterrupt) is not swallowed and leaves the job in hand.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

from aembus.codec import decode
from aembus.errors import AembusError, BusBroken, ControlError
from aembus.job import Job, job_from_record
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from aembus.shm.lane import CorruptLane
from aembus.shm.lanes import LaneConsumer, Record

log = logging.getLogger("aembus")

DEATHS_MAX: Final = 3  # a job that was in hand at so many deaths is not tried again

Handler = Callable[..., object]


@dataclass(frozen=True, slots=True)
class EventStatistics:
    """What one event's handler did in this process."""

    delivered: int
    failed: int


@dataclass(frozen=True, slots=True)
class EventStructStatistics:
    """What this member's event_struct did in this process."""

    events: int
    delivered: int
    failed: int
    dead_lettered: int


@final
class Event:
    """One registration of one member; its handler gets it as first argument.

    id: stable across restarts of a named member; 0 until published.
    point: the activation point's name.
    context: yours; aembus never looks at it.
    """

    __slots__ = (
        "_closer",
        "_failed",
        "_inbox_slot",
        "_special",
        "context",
        "delivered",
        "group",
        "handler",
        "id",
        "lane",
        "name",
        "once",
        "point",
        "redeliver",
    )

    def __init__(
        self,
        point: str,
        handler: Handler,
        *,
        name: str,
        group: str | None,
        once: bool,
        redeliver: bool,
        context: Any,
        closer: Callable[[Event], None],
    ) -> None:
        self.id = 0
        self.point = point
        self.handler = handler
        self.name = name
        self.group = group
        self.once = once
        self.redeliver = redeliver
        self.context = context
        self._closer = closer
        self._inbox_slot = 0
        self._failed = 0
        self._special: Record | None = None
        # These two are set by the lane that delivers, see LaneConsumer.deliver.
        self.lane: LaneConsumer | None = None
        self.delivered = 0

    @property
    def job(self) -> Job | None:
        """The job that the handler works on; None outside the handler."""
        record = None if self.lane is None else self.lane.in_hand
        if record is None:
            record = self._special
        if record is None:
            return None
        return job_from_record(record, self._inbox_slot, layout.CLASS_NORMAL)

    def close(self) -> None:
        """Take the event off its wait queue for good.

        Jobs that were queued for it go to its group, or to the dead letters.
        """
        self._closer(self)

    def count_failed(self) -> None:
        """Count a job whose handler raised (the event_struct does)."""
        self.lane = self._special = None
        self._failed += 1

    def statistics(self) -> EventStatistics:
        """Return what the handler did so far in this process."""
        return EventStatistics(self.delivered, self._failed)

    def __repr__(self) -> str:
        return f"<Event {self.id} {self.name!r} at {self.point!r}>"


class Undeliverable(Protocol):
    """Where a job goes that cannot be delivered here."""

    def __call__(self, record: Record, reason: str, *, try_group: bool, detail: str = "") -> bool:
        """Keep the job; return True if it went to a sibling of its group.

        Raises BusBroken if it could not be kept: the job stays in hand then.
        """


class EventStruct:
    """The one event_struct of a member.

    Args:
        slot: whose.
        inbox: where its jobs arrive.
        undeliverable: keeps what cannot be delivered.
        give_room: told the slot of a producer that waits for room and has it now.
    """

    def __init__(
        self,
        slot: int,
        inbox: Inbox,
        undeliverable: Undeliverable,
        give_room: Callable[[int], None],
    ) -> None:
        self._slot = slot
        self._give_room = give_room
        self._inbox = inbox
        self._undeliverable = undeliverable
        self._events: dict[int, Event] = {}
        self._other_kinds: dict[int, Callable[[Record], None]] = {}
        self._delivering = False
        self._stopping = bytearray(1)  # one byte, so that a lane can look at it between two jobs
        self._delivered = 0  # of other kinds, and by events that were closed
        self._failed = 0
        self._dead_lettered = 0

    def add(self, event: Event) -> None:
        """Own an event; from now on jobs with its id are delivered to it."""
        event._inbox_slot = self._slot
        self._events[event.id] = event

    def remove(self, event: Event) -> None:
        """Own the event no longer.  Idempotent."""
        if self._events.pop(event.id, None) is not None:
            self._delivered += event.delivered

    @property
    def events(self) -> list[Event]:
        """All events owned now."""
        return list(self._events.values())

    def on_kind(self, kind: int, callback: Callable[[Record], None]) -> None:
        """Deliver records of another kind (timer expiries) to `callback`, as if to a handler."""
        self._other_kinds[kind] = callback

    def stop(self) -> None:
        """Make `deliver` return after the job in hand."""
        self._stopping[0] = 1

    def deliver(self) -> int:
        """Give every lane its turn and return how many jobs were handled.

        Raises AembusError if called by a handler: handlers never nest.
        """
        if self._delivering:
            raise AembusError("a handler asked for more jobs; handlers never nest: return instead")
        self._delivering = True
        handled = 0
        try:
            for lane, budget in self._inbox.turn():
                if lane.has_records():
                    handled += self._deliver_from(lane, budget)
                    # Now and not after the turn: among many lanes that may be a second later.
                    producer = self._inbox.producer_wanting_room(lane)
                    if producer is not None:
                        self._give_room(producer)
                if self._stopping[0]:
                    break
            if handled:
                for slot in self._inbox.producers_wanting_room():
                    self._give_room(slot)
        finally:
            self._delivering = False
        return handled

    def _deliver_from(self, lane: LaneConsumer, budget: int) -> int:
        # The lane runs what is plain by itself; one by one the rest is dealt with here.
        handled = 0
        while handled < budget and not self._stopping[0]:
            before = lane.delivered
            try:
                lane.deliver(self._events, decode, budget - handled, self._stopping)
            except CorruptLane as error:
                self._inbox.give_up(lane, error)
            except Exception as error:
                record = lane.in_hand
                if record is None:
                    raise
                handled += 1
                self._fail(lane, record, error)
            handled += lane.delivered - before
            if handled >= budget or self._stopping[0]:
                break
            special = self._inbox.take(lane)
            if special is None:
                break
            handled += 1
            self._deliver_special(lane, special)
        return handled

    def _deliver_special(self, lane: LaneConsumer, record: Record) -> None:
        if record.kind != layout.KIND_JOB:
            self._deliver_other(lane, record)
            return
        event = self._events.get(record.event_id)
        if event is None:
            # In hand when somebody died, it may have gone to its group then: not once more.
            try_group = not record.attempts
            self._give_back(lane, record, "its event was closed", try_group=try_group)
            return
        attempts = record.attempts
        if attempts >= DEATHS_MAX:
            self._give_back(lane, record, f"in hand at {attempts} deaths", try_group=False)
            return
        if attempts and not event.redeliver:
            self._give_back(lane, record, "in hand when its worker died", try_group=False)
            return
        lane.start(record)
        event._special = record
        try:
            event.handler(event, *decode(record.payload))
        except Exception as error:
            self._fail(lane, record, error)
        else:
            event._special = None
            lane.done(record)
            event.delivered += 1
        if event.once:
            event.close()

    def _deliver_other(self, lane: LaneConsumer, record: Record) -> None:
        callback = self._other_kinds.get(record.kind)
        if callback is None:
            self._give_back(lane, record, f"kind {record.kind} is unknown", try_group=False)
            return
        lane.start(record)
        try:
            callback(record)
        except Exception:
            self._failed += 1
            self._inbox.count_failed()
            log.exception("a handler failed, kind=%d, id=%#x", record.kind, record.reply_id)
        lane.done(record)
        self._delivered += 1

    def _fail(self, lane: LaneConsumer, record: Record, error: Exception) -> None:
        self._failed += 1
        self._inbox.count_failed()
        detail = "".join(traceback.format_exception(error))
        event = self._events.get(record.event_id)
        if event is not None:  # else its handler has closed it
            log.error("handler of %r failed, job=%s", event, event.job, exc_info=error)
            event.count_failed()
        self._give_back(lane, record, "its handler raised", try_group=False, detail=detail)

    def _give_back(
        self, lane: LaneConsumer, record: Record, reason: str, *, try_group: bool, detail: str = ""
    ) -> None:
        if try_group:
            lane.start(record)  # whoever finds it so, if we die here, does not send it on again
        try:
            forwarded = self._undeliverable(record, reason, try_group=try_group, detail=detail)
        except (BusBroken, ControlError) as error:
            log.error("job could not be kept and stays in hand: %s, reason=%s", error, reason)
            return
        if forwarded:
            lane.forwarded(record)
        else:
            lane.dead(record)
            self._dead_lettered += 1

    def statistics(self) -> EventStructStatistics:
        """Return what was done so far in this process."""
        delivered = self._delivered + sum(event.delivered for event in self._events.values())
        return EventStructStatistics(
            len(self._events), delivered, self._failed, self._dead_lettered
        )
