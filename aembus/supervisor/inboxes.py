"""The inboxes of a bus, as the supervisor handles them: created, rung, counted, emptied, removed.

The supervisor keeps every inbox mapped, so that it can count what is in it and post its doorbell
when a producer died that may have owed a post.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from aembus.shm import layout
from aembus.shm.doorbell import Ringer, create_bell, fence, unlink_bell
from aembus.shm.in_hand import InHand, records_in_hand, spare
from aembus.shm.inbox import create_inbox, inbox_role
from aembus.shm.lane import CorruptLane, LaneCounts
from aembus.shm.lanes import LaneConsumer, Record
from aembus.shm.names import shared_name
from aembus.shm.segment import Segment, no_space

log = logging.getLogger("aembus")


@dataclass(frozen=True, slots=True)
class Totals:
    """Jobs, summed over lanes.  ``sent = delivered + dead_lettered + queued`` always holds.

    A job that was forwarded counts where it went to, not where it came from.  `dropped` were never
    sent: there was no room, and their event is registered with full="drop".  `expired` are those
    of the dead-lettered ones that were too old; a kill may make one of them count twice.  `failed`
    is how often a handler raised.
    """

    sent: int = 0
    delivered: int = 0
    dead_lettered: int = 0
    queued: int = 0
    dropped: int = 0
    expired: int = 0
    failed: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.sent + other.sent,
            self.delivered + other.delivered,
            self.dead_lettered + other.dead_lettered,
            self.queued + other.queued,
            self.dropped + other.dropped,
            self.expired + other.expired,
            self.failed + other.failed,
        )


class Survey(NamedTuple):
    """What went through all inboxes.

    totals: those that are no more included.
    by_inbox: by the inbox's number.
    sent_by: how many records a slot's owners have sent.
    """

    totals: Totals
    by_inbox: dict[int, Totals]
    sent_by: dict[int, int]


@dataclass(slots=True)
class _Inbox:
    segment: Segment
    ringer: Ringer


class Inboxes:
    """All inboxes of one bus, by number.

    Args:
        bus, nonce: for the names.
        slots: how many producers an inbox has lanes for.
        lane_bytes: the size of each lane's ring.
    """

    def __init__(self, bus: str, nonce: str, slots: int, lane_bytes: int) -> None:
        self._bus, self._nonce = bus, nonce
        self._slots = slots
        self._lane_bytes = lane_bytes
        self._inboxes: dict[int, _Inbox] = {}
        self.removed = Totals()  # what the inboxes that are no more had carried
        self._removed_sent: dict[int, int] = {}  # of it what each slot had sent
        self.removed_counters: Counter[str] = Counter()  # and their owners' own counters

    def name(self, inbox_id: int) -> str:
        """Return the shared name of an inbox."""
        return shared_name(self._bus, self._nonce, inbox_role(inbox_id))

    def create(self, inbox_id: int, bell_kind: int = layout.BELL_SEMAPHORE) -> None:
        """Create an inbox and its doorbell.  Raises OutOfSharedMemory; nothing is left then."""
        segment = create_inbox(self.name(inbox_id), self._slots, self._lane_bytes)
        try:
            create_bell(self._bus, self._nonce, inbox_id, bell_kind)
        except BaseException as error:
            segment.close()
            segment.unlink()
            if isinstance(error, OSError):
                raise no_space(error, self.name(inbox_id), layout.PAGE) from error
            raise
        self._inboxes[inbox_id] = _Inbox(segment, Ringer(self._bus, self._nonce, inbox_id))

    def create_pipe_bell(self, inbox_id: int) -> None:
        """Create a doorbell with a descriptor beside an inbox's first one.  Idempotent.

        Raises OutOfSharedMemory.
        """
        try:
            create_bell(self._bus, self._nonce, inbox_id, layout.BELL_DESCRIPTOR)
        except FileExistsError:
            pass  # made for an earlier process of the place
        except OSError as error:
            raise no_space(error, self.name(inbox_id), layout.PAGE) from error

    def remove(self, inbox_id: int, counters: Mapping[str, int]) -> None:
        """Remove an inbox; its counts are kept in `removed`, its owner's in `removed_counters`.

        Args:
            counters: the owner's counters, each with its number.
        """
        self.removed += self._totals(inbox_id, self._removed_sent)
        self.removed_counters.update(self.counters(inbox_id, counters))
        inbox = self._inboxes.pop(inbox_id)
        inbox.ringer.close()
        unlink_bell(self._bus, self._nonce, inbox_id)
        inbox.segment.close()
        inbox.segment.unlink()

    def remove_all(self) -> None:
        """Remove every inbox."""
        for inbox_id in list(self._inboxes):
            self.remove(inbox_id, {})

    def ring_all(self) -> None:
        """Post every doorbell whose owner sleeps, as a dead producer may have owed them that."""
        fence()
        for inbox in self._inboxes.values():
            sleeping = inbox.segment.words[layout.SLEEPING // 8]
            if sleeping:
                with contextlib.suppress(OSError):
                    inbox.ringer.ring(sleeping)

    # --- counting -------------------------------------------------------------------------------

    def totals(self, inbox_id: int) -> Totals:
        """Return what went through an inbox, all its lanes together."""
        return self._totals(inbox_id, {})

    def survey(self) -> Survey:
        """Return what went through all inboxes that are and were, the replies included.

        Each lane is looked at once: there are as many as pairs of members.
        """
        sent = dict(self._removed_sent)
        by_inbox = {inbox_id: self._totals(inbox_id, sent) for inbox_id in self._inboxes}
        return Survey(sum(by_inbox.values(), self.removed), by_inbox, sent)

    def _totals(self, inbox_id: int, sent_by: dict[int, int]) -> Totals:
        sent = delivered = dead_lettered = queued = dropped = 0
        for _, producer, counts in self._counts(inbox_id):
            sent_by[producer] = sent_by.get(producer, 0) + counts.sent
            sent += counts.sent - counts.forwarded
            delivered += counts.delivered
            dead_lettered += counts.dead_lettered
            queued += counts.queued
            dropped += counts.dropped
        expired, failed = (self.word(inbox_id, at) for at in (layout.EXPIRED, layout.FAILED))
        return Totals(sent, delivered, dead_lettered, queued, dropped, expired, failed)

    def finished(self, inbox_id: int) -> int:
        """Return how many records of an inbox are finished."""
        return sum(counts.finished for _, _, counts in self._counts(inbox_id))

    def sent_by(self, slot: int) -> int:
        """Return how many records a slot's owners have sent."""
        sent = self._removed_sent.get(slot, 0)
        for inbox_id in self._inboxes:
            sent += sum(c.sent for _, producer, c in self._counts(inbox_id) if producer == slot)
        return sent

    def word(self, inbox_id: int, offset: int) -> int:
        """Return one of the owner's words, by its offset in the layout."""
        return int(self._inboxes[inbox_id].segment.words[offset // 8])

    def counters(self, inbox_id: int, numbers: Mapping[str, int]) -> dict[str, int]:
        """Return what an inbox's owner has counted.

        Args:
            numbers: of its counters, by name.
        """
        return {
            name: self.word(inbox_id, layout.COUNTERS + number * layout.WORD)
            for name, number in numbers.items()
        }

    def in_hand(self, inbox_id: int, *, held: bool = False) -> list[InHand]:
        """Return what an inbox's owner has started and not finished, without disturbing it.

        Args:
            held: also what it holds.
        """
        segment = self._inboxes[inbox_id].segment
        found = []
        for lane_class, producer, _ in self._counts(inbox_id):
            lane = layout.lane_index(self._slots, lane_class, producer)
            found += records_in_hand(
                segment.memory, segment.words, self._slots, self._lane_bytes, lane, held=held
            )
        return found

    def spare(self, inbox_id: int, job: InHand, most: int) -> None:
        """Spare a held job the death of the inbox's owner; see shm.in_hand.spare."""
        spare(self._inboxes[inbox_id].segment.words, job, most)

    def _counts(self, inbox_id: int) -> list[tuple[int, int, LaneCounts]]:
        segment = self._inboxes[inbox_id].segment
        doors = bytes(
            segment.memory[layout.DOORS : layout.DOORS + layout.LANE_CLASSES * self._slots]
        )
        found = []
        lane = doors.find(layout.DOOR_OPEN)
        while lane >= 0:
            lane_class, producer = divmod(lane, self._slots)
            control = layout.lane_control_offset(self._slots, lane)
            found.append((lane_class, producer, LaneCounts(segment.words, control)))
            lane = doors.find(layout.DOOR_OPEN, lane + 1)
        return found

    def withdraw(
        self,
        inbox_id: int,
        producer: int | None,
        choose: Callable[[int, Record], int],
        *,
        queued: bool,
    ) -> None:
        """Take single jobs out of lanes whose reader is dead or has left; the rest stays.

        Args:
            producer: whose lanes; None for everybody's.
            choose: called with the lane's class and each job or call; returns what became of it,
                layout.STATE_DEAD or STATE_FORWARDED, or 0 if it stays.
            queued: look at all that is there, and not only at what was begun.
        """
        for lane_class, slot, counts in self._counts(inbox_id):
            if producer not in (None, slot) or lane_class == layout.CLASS_REPLY:
                continue
            if not counts.queued:
                continue
            try:
                lane = self._consumer(inbox_id, lane_class, slot)
                with contextlib.closing(lane):
                    while (record := lane.take()) is not None:
                        if not queued and not record.attempts:
                            break  # records are begun in order
                        if record.kind not in layout.KINDS_FOR_EVENTS:
                            continue
                        state = choose(lane_class, record)
                        if state == layout.STATE_DEAD:
                            lane.dead(record)
                        elif state == layout.STATE_FORWARDED:
                            lane.forwarded(record)
            except CorruptLane as error:
                log.error("corrupt lane from slot %d, left to its next reader: %s", slot, error)

    def _consumer(self, inbox_id: int, lane_class: int, producer: int) -> LaneConsumer:
        index = layout.lane_index(self._slots, lane_class, producer)
        return LaneConsumer(
            self._inboxes[inbox_id].segment.memory,
            layout.lane_control_offset(self._slots, index),
            layout.ring_offset(self._slots, self._lane_bytes, index),
            self._lane_bytes,
        )

    # --- emptying -------------------------------------------------------------------------------

    def empty(self, inbox_id: int, dispose: Callable[[int, int, Record], bool]) -> None:
        """Take everything out of an inbox that nobody owns or writes to any more.

        Args:
            dispose: called with lane class, producer's slot and record; True if the record was
                forwarded to another member, False if it became a dead letter.
        """
        for lane_class, producer, _ in self._counts(inbox_id):
            lane = self._consumer(inbox_id, lane_class, producer)
            try:
                self._empty_lane(lane, lane_class, producer, dispose)
            finally:
                lane.close()

    @staticmethod
    def _empty_lane(
        lane: LaneConsumer,
        lane_class: int,
        producer: int,
        dispose: Callable[[int, int, Record], bool],
    ) -> None:
        while True:
            try:
                record = lane.take()
            except CorruptLane as error:
                log.error("corrupt lane from slot %d: %s", producer, error)
                lane.skip_to_tail()
                continue
            if record is None:
                return
            if record.kind not in layout.KINDS_FOR_EVENTS:
                lane.done(record)  # an expiry or a reply for a process that is no more
            elif dispose(lane_class, producer, record):
                lane.forwarded(record)
            else:
                lane.dead(record)
