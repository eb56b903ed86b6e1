"""An inbox, as its owner sees it: the lanes from all producers, and the doorbell to sleep on.

Read by one process, its owner; each lane is written by one producer.  Guarantees:

- lanes of one class are visited in turn, with a budget each, so no producer starves another;
- urgent lanes are visited first, and again several times in a turn; a budget for all of them
  together keeps normal ones alive: where both have jobs, at least one in nine is a normal one.

How its threads sleep on the doorbell is in `sleeper`.
"""

from __future__ import annotations

import logging
import math
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from aembus.shm import layout
from aembus.shm.doorbell import Bell, fence, open_bell
from aembus.shm.lane import CorruptLane, LaneCounts
from aembus.shm.lanes import LaneConsumer, Record
from aembus.shm.segment import Segment
from aembus.shm.sleeper import Sleeper

log = logging.getLogger("aembus")

BUDGET: Final = 64  # records that a normal lane may give in a turn
BUDGET_BESIDE_URGENT: Final = 16  # the same, in an inbox that has urgent lanes
URGENT_BUDGET: Final = 128  # records that all urgent lanes together may give at a visit
URGENT_VISITS: Final = 8  # at most so many in a turn

_Turn = tuple[tuple[LaneConsumer, int], ...]


def inbox_role(inbox_id: int) -> str:
    """Return the role of inbox number `inbox_id` in its segment's name."""
    return f"inbox{inbox_id}"


class Inbox(Sleeper):
    """The owner's end of its inbox.

    Args:
        segment: the opened inbox segment; the inbox closes it.
        bell: what the owner sleeps on; the inbox closes it.
    """

    def __init__(self, segment: Segment, bell: Bell) -> None:
        super().__init__(segment.words, bell)
        self._segment = segment
        self._slots = segment.slots
        self._lane_bytes = segment.lane_bytes
        self._doors_end = layout.DOORS + layout.LANE_CLASSES * self._slots
        self._doors = bytes(layout.LANE_CLASSES * self._slots)
        self._opened: dict[int, LaneConsumer | None] = {}  # by the lane's number; None: corrupt
        self.lanes: tuple[list[LaneConsumer], ...] = tuple([] for _ in range(layout.LANE_CLASSES))
        self.reply_lanes: dict[int, LaneConsumer] = {}  # by the producer's slot
        self._origins: dict[LaneConsumer, tuple[int, int]] = {}  # lane class, producer's slot
        self._reserved: set[int] = set()  # reply lanes, by their number
        self._turns: list[_Turn] = [()]  # by the first normal lane; made when it is that one's turn
        self._turn = 0
        self._looking = threading.RLock()

    @classmethod
    def open(cls, bus: str, nonce: str, inbox_id: int, bell_kind: int, name: str) -> Inbox:
        """Open one's own inbox: the segment `name` and the bell made beside it."""
        segment = Segment.open(name, layout.INBOX_MAGIC)
        try:
            bell = open_bell(bus, nonce, inbox_id, bell_kind)
        except BaseException:
            segment.close()
            raise
        return cls(segment, bell)

    @property
    def payload_bytes_max(self) -> int:
        """The largest payload that a lane of this bus takes."""
        return layout.payload_bytes_max(self._lane_bytes)

    # --- what is there ------------------------------------------------------------------------

    def look_for_doors(self) -> None:
        """Take up the lanes whose producer has opened them since the last look."""
        if self._segment.memory[layout.DOORS : self._doors_end].tobytes() == self._doors:
            return
        # Any thread looks, a signal handler may come in between, and Ctrl-C may end it anywhere:
        # each lane is entered by one act that may be repeated, and the lists are made from that.
        with self._looking:
            doors = bytes(self._segment.memory[layout.DOORS : self._doors_end])
            for index, door in enumerate(doors):
                if door == layout.DOOR_OPEN and index not in self._opened:
                    self._open_lane(index)
            lanes: tuple[list[LaneConsumer], ...] = tuple([] for _ in range(layout.LANE_CLASSES))
            for index, lane in sorted(self._opened.items()):
                if lane is not None:
                    lanes[index // self._slots].append(lane)
            self.lanes = lanes
            self.reply_lanes = {self._origins[lane][1]: lane for lane in lanes[layout.CLASS_REPLY]}
            self._turns = [()] * max(len(lanes[layout.CLASS_NORMAL]), 1)
            self._doors = doors

    def _open_lane(self, index: int) -> None:
        control = layout.lane_control_offset(self._slots, index)
        ring = layout.ring_offset(self._slots, self._lane_bytes, index)
        try:
            lane = LaneConsumer(self._segment.memory, control, ring, self._lane_bytes)
        except CorruptLane as error:
            self._opened.setdefault(index, None)
            self._count_corrupt(error, index % self._slots)
            return
        self._origins[lane] = divmod(index, self._slots)
        if self._opened.setdefault(index, lane) is not lane:
            del self._origins[lane]  # a signal handler was here first

    def reserve_reply_lane(self, producer: int) -> None:
        """Give memory to the lane by which `producer` will answer.  Raises OutOfSharedMemory."""
        index = layout.lane_index(self._slots, layout.CLASS_REPLY, producer)
        if self._doors[index] != layout.DOOR_OPEN and index not in self._reserved:
            ring = layout.ring_offset(self._slots, self._lane_bytes, index)
            self._segment.reserve(ring, self._lane_bytes)
            self._reserved.add(index)

    def has_jobs(self) -> bool:
        """Say whether a normal or urgent lane has a record to take."""
        self.look_for_doors()
        normal, urgent, _ = self.lanes
        return _any_has_records(normal) or _any_has_records(urgent)

    def has_replies(self) -> bool:
        """Say whether a reply lane has a record to take."""
        self.look_for_doors()
        return _any_has_records(self.lanes[layout.CLASS_REPLY])

    def has_records(self) -> bool:
        """Say whether any lane has a record to take."""
        self.look_for_doors()
        return self.has_records_in_known_lanes()

    def has_records_in_known_lanes(self) -> bool:
        """Like `has_records`, but do not look for new lanes."""
        normal, urgent, replies = self.lanes
        return _any_has_records(normal) or _any_has_records(urgent) or _any_has_records(replies)

    def turn(self) -> Sequence[tuple[LaneConsumer, int]]:
        """Return the lanes to visit in this turn, each with how many records it may give.

        Each turn begins with another normal lane, so that none is always last.
        """
        self.look_for_doors()
        turns = self._turns
        self._turn = number = (self._turn + 1) % len(turns)
        return turns[number] or self._plan_turn(turns, number)

    def _plan_turn(self, turns: list[_Turn], number: int) -> _Turn:
        normal, urgent, _ = self.lanes
        normal = normal[number:] + normal[:number]
        if not urgent:
            turns[number] = tuple((lane, BUDGET) for lane in normal)
            return turns[number]
        budget = max(URGENT_BUDGET // len(urgent), 1)
        visit = [(lane, budget) for lane in urgent]
        between = max(math.ceil(len(normal) / URGENT_VISITS), 1)
        turn = visit[:]
        for done, lane in enumerate(normal):
            if done and done % between == 0:
                turn += visit
            turn.append((lane, BUDGET_BESIDE_URGENT))
        turns[number] = tuple(turn)
        return turns[number]

    def take(self, lane: LaneConsumer) -> Record | None:
        """Take a record from `lane`; what cannot be followed is skipped, counted and logged."""
        try:
            return lane.take()
        except CorruptLane as error:
            self.give_up(lane, error)
            return None

    def take_numbers(
        self, lane: LaneConsumer, budget: int
    ) -> tuple[int, int, int, array[int]] | None:
        """Take and finish up to `budget` calls of numbers that are next in `lane`.

        Returns the call's id, its caller's slot and incarnation, and their numbers; None if no
        such call is next.
        """
        try:
            taken = lane.take_numbers(budget)
        except CorruptLane as error:
            self.give_up(lane, error)
            return None
        if taken is None:
            return None
        call_id, incarnation, numbers = taken
        return call_id, self._origins[lane][1], incarnation, array("Q", numbers)

    def give_up(self, lane: LaneConsumer, error: CorruptLane) -> None:
        """Skip what cannot be followed, count and log it; the lane goes on behind it."""
        self._count_corrupt(error, self._origins[lane][1], lane.skip_to_tail())

    def open_replies_anew(self) -> None:
        """Forget how far the reply lanes were read: another process has read on in our place."""
        with self._looking:
            for lane in self.lanes[layout.CLASS_REPLY]:
                index = layout.lane_index(self._slots, *self._origins.pop(lane))
                del self._opened[index]
                lane.close()
            self._doors = b""  # the next look takes them up again

    def backlog(self) -> dict[int, int]:
        """Return how many records each lane has carried so far, for `is_past`."""
        self.look_for_doors()
        opened = [number for number, lane in self._opened.items() if lane is not None]
        return {number: self._counts(number).sent for number in opened}

    def is_past(self, backlog: dict[int, int]) -> bool:
        """Say whether all that was in the lanes at that time is finished."""
        return all(self._counts(number).finished >= sent for number, sent in backlog.items())

    def _counts(self, number: int) -> LaneCounts:
        return LaneCounts(self._words, layout.lane_control_offset(self._slots, number))

    def take_replies(self) -> Iterator[Record]:
        """Take what the reply lanes hold; each record is done when the next is asked for."""
        self.look_for_doors()
        for lane in self.lanes[layout.CLASS_REPLY]:
            while (record := self.take(lane)) is not None:
                yield record
                lane.done(record)

    def take_replies_again(self) -> None:
        """Have `take_replies` yield again what it was left with in the middle."""
        for lane in self.lanes[layout.CLASS_REPLY]:
            lane.take_again()

    def _count_corrupt(self, error: CorruptLane, producer: int, lost: int = 0) -> None:
        self._words[layout.CORRUPTED // 8] += max(lost, 1)
        log.error("corrupt lane from slot %d, %d records given up: %s", producer, lost, error)

    def producers_wanting_room(self) -> list[int]:
        """Return the slots of producers that wait for room and now have it."""
        fence()  # SYNC POINT: pairs with the producer's between raising its flag and reading head
        return [slot for lane, (_, slot) in tuple(self._origins.items()) if lane.wants_post()]

    def producer_wanting_room(self, lane: LaneConsumer) -> int | None:
        """Return the slot of a lane's producer if it is seen to wait for room and now has it.

        One may be overlooked: call `producers_wanting_room` at the end of the turn.
        """
        return self._origins[lane][1] if lane.wants_post() else None

    def lane_class(self, lane: LaneConsumer) -> int:
        """Return the class of one of this inbox's lanes."""
        return self._origins[lane][0]

    def dropped(self) -> int:
        """Return how many jobs were not sent here since there was no room."""
        self.look_for_doors()
        offsets = [layout.lane_control_offset(self._slots, index) for index in self._opened]
        return sum(self._words[(offset + layout.LANE_DROPPED) // 8] for offset in offsets)

    # --- the owner's own words ----------------------------------------------------------------

    def count_failed(self) -> None:
        """Count a handler that raised."""
        self._words[layout.FAILED // 8] += 1

    def count_expired(self) -> None:
        """Count a job that was too old when its turn came."""
        self._words[layout.EXPIRED // 8] += 1

    def show_unfinished(self, held: int, retrying: int) -> None:
        """Show how many jobs are held here, and how many wait for their next attempt."""
        self._words[layout.HELD // 8] = held
        self._words[layout.RETRYING // 8] = retrying

    def add_to_counter(self, index: int, number: int) -> None:
        """Add to one of the application's counters, which outlive this process."""
        self._words[layout.COUNTERS // 8 + index] += number

    def counter(self, index: int) -> int:
        """Return one of the application's counters."""
        return int(self._words[layout.COUNTERS // 8 + index])

    def _release(self) -> None:
        for lanes in self.lanes:
            for lane in lanes:
                lane.close()
            lanes.clear()
        self._turns = [()]
        self.reply_lanes.clear()
        self._origins.clear()
        for bell in self._bells:
            bell.close()
        self._segment.close()


def _any_has_records(lanes: list[LaneConsumer]) -> bool:
    for lane in lanes:  # noqa: SIM110  # a third of the time of any()
        if lane.has_records():
            return True
    return False


def create_inbox(name: str, slots: int, lane_bytes: int) -> Segment:
    """Create an inbox segment (the supervisor does).  Raises OutOfSharedMemory."""
    segment = Segment.create(
        name,
        layout.INBOX_MAGIC,
        layout.inbox_bytes(slots, lane_bytes),
        slots=slots,
        lane_bytes=lane_bytes,
        reserve_bytes=layout.rings_offset(slots),
    )
    segment.publish()
    return segment
