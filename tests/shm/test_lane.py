"""What every implementation of the lane promises: one suite over all that are present."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aembus.shm import lane as reference
from aembus.shm import layout
from aembus.shm.lane import LaneConsumer, LaneProducer, Record
from tests.support.lanes import INCARNATION, SLOT, LaneMemory, send, taken

RINGS: Final = (512, 1024)
DELIVERED, DEAD, FORWARDED = "done", "dead", "forwarded"  # as the consumer's methods are called
WORD_MAX: Final = (1 << 64) - 1

u8 = st.integers(0, (1 << 8) - 1)
u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, WORD_MAX)


# --- against a deque ------------------------------------------------------------------------------


@dataclass(eq=False)
class Sent:
    """What the model knows of one record; positions are in units, ever-growing, pads included."""

    fields: tuple[Any, ...]  # kind, flags, event id, key hash, deadline, reply id, addressee, time
    payload: bytes
    sequence: int
    end: int
    attempts: int = 0
    finished: str = ""
    met: bool = False  # by the consumer that is open now


@dataclass
class Model:
    """The lane as a deque, with what it has carried."""

    capacity: int
    queue: deque[Sent] = field(default_factory=deque)  # from head to tail
    claimed: list[Sent] = field(default_factory=list)
    head: int = 0
    sent: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {DELIVERED: 0, DEAD: 0, FORWARDED: 0})

    @property
    def end(self) -> int:
        """Where the next record is claimed."""
        newest = self.claimed or self.queue
        return newest[-1].end if newest else self.head

    def claim(self, payload: bytes, fields: tuple[Any, ...]) -> bool:
        units = layout.record_units(len(payload))
        to_end = self.capacity - self.end % self.capacity
        end = self.end + units + (to_end if units > to_end else 0)
        if end - self.head > self.capacity:
            return False
        sequence = self.sent + len(self.claimed) + 1
        self.claimed.append(Sent(fields, payload, sequence, end))
        return True

    def commit(self) -> None:
        self.queue += self.claimed
        self.sent += len(self.claimed)
        self.claimed = []

    def take(self) -> Sent | None:
        found = None
        for sent in self.queue:
            if not sent.met:
                sent.met = True
                if not sent.finished:
                    found = sent
                    break
        self.move_head()
        return found

    def move_head(self) -> None:
        while self.queue and self.queue[0].finished and self.queue[0].met:
            passed = self.queue.popleft()
            self.head = passed.end
            self.finished[passed.finished] += 1


class LaneAgainstDeque(RuleBasedStateMachine):
    def __init__(self, module: ModuleType) -> None:
        super().__init__()
        self.module = module

    @initialize(ring_bytes=st.sampled_from(RINGS))
    def create(self, ring_bytes: int) -> None:
        self.lane = LaneMemory(self.module, ring_bytes)
        self.model = Model(ring_bytes // layout.UNIT)
        self.producer = self.lane.producer()
        self.consumer = self.lane.consumer()
        self.in_hand: list[tuple[Record, Sent]] = []

    @rule(
        data=st.data(),
        fields=st.tuples(st.sampled_from(sorted(layout.KINDS)), u8, u32, u32, u64, u64, u32, u64),
        fill=u8,
    )
    def claim(self, data: st.DataObject, fields: tuple[Any, ...], fill: int) -> None:
        largest = self.producer.payload_bytes_max
        edges = st.sampled_from((0, 1, 63, 64, 65, largest - 64, largest - 1, largest))
        size = data.draw(edges | st.integers(0, largest))
        payload = bytes([fill]) * size
        assert self.producer.claim(payload, *fields) == self.model.claim(payload, fields)

    @rule()
    def commit(self) -> None:
        self.producer.commit()
        self.model.commit()

    @rule()
    def abort(self) -> None:
        self.producer.abort()
        self.model.claimed = []

    @rule()
    def take(self) -> None:
        record, expected = self.consumer.take(), self.model.take()
        if expected is None:
            assert record is None
            return
        assert record is not None
        assert (
            record.kind,
            record.flags,
            record.event_id,
            record.key_hash,
            record.deadline_ns,
            record.reply_id,
            record.addressee,
            record.activated_ns,
        ) == expected.fields
        assert record.payload == expected.payload
        assert record.sequence == expected.sequence
        assert record.attempts == expected.attempts
        assert (record.origin_slot, record.origin_incarnation) == (SLOT, INCARNATION)
        self.in_hand.append((record, expected))

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        record, expected = data.draw(st.sampled_from(self.in_hand))
        expected.attempts = record.attempts + 1  # once for each time that it was taken
        assert self.consumer.start(record) == expected.attempts

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data(), how=st.sampled_from((DELIVERED, DELIVERED, DEAD, FORWARDED)))
    def finish(self, data: st.DataObject, how: str) -> None:
        record, expected = self.in_hand.pop(data.draw(st.integers(0, len(self.in_hand) - 1)))
        getattr(self.consumer, how)(record)
        expected.finished = how
        self.model.move_head()

    @rule()
    def replace_consumer(self) -> None:
        self.consumer = self.lane.consumer()
        self.in_hand = []
        for sent in self.model.queue:
            sent.met = False

    @rule()
    def replace_producer(self) -> None:
        self.producer = self.lane.producer()
        self.model.claimed = []

    @rule(wanted=st.booleans())
    def want_room(self, wanted: bool) -> None:
        self.producer.want_room(wanted)
        half_free = self._used() * 2 <= self.model.capacity
        assert self.consumer.wants_post() == (wanted and half_free)

    @invariant()
    def counts_agree(self) -> None:
        counts, finished = self.lane.counts(), self.model.finished
        assert counts.sent == self.producer.sent() == self.model.sent
        assert counts.queued == len(self.model.queue)
        assert counts.delivered == finished[DELIVERED]
        assert counts.dead_lettered == finished[DEAD]
        assert counts.forwarded == finished[FORWARDED]
        assert counts.sent == sum(finished.values()) + counts.queued

    @invariant()
    def ends_see_what_there_is(self) -> None:
        assert self.consumer.has_records() == any(not sent.met for sent in self.model.queue)
        assert self.producer.has_room() == (self._used() * 2 <= self.model.capacity)

    @invariant()
    def nothing_else_is_written(self) -> None:
        assert self.lane.gaps_are_whole()

    def _used(self) -> int:
        model = self.model
        return model.queue[-1].end - model.head if model.queue else 0


def test_a_lane_is_a_deque_whatever_is_done_to_it(lane_module: ModuleType) -> None:
    """Claims, takes, finishes and reopenings in any order do to a lane what they do to a deque."""
    run_state_machine_as_test(
        lambda: LaneAgainstDeque(lane_module),  # type: ignore[arg-type]  # any factory will do
        settings=settings(max_examples=80, stateful_step_count=80, deadline=None),
    )


# --- one promise at a time ------------------------------------------------------------------------


def test_claimed_records_are_seen_by_nobody_until_commit(lane_module: ModuleType) -> None:
    """Nothing of a claim is visible before `commit`, and all of several claims after it."""
    lane = LaneMemory(lane_module, 1024)
    producer, consumer = lane.producer(), lane.consumer()
    for payload in (b"one", b"two", b"three"):
        assert producer.claim(payload, layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0)
        assert not consumer.has_records()
        assert consumer.take() is None
    producer.commit()
    assert [record.payload for record in taken(consumer)] == [b"one", b"two", b"three"]


def test_commit_may_be_repeated(lane_module: ModuleType) -> None:
    """A second `commit` publishes nothing twice."""
    lane = LaneMemory(lane_module, 512)
    producer, consumer = lane.producer(), lane.consumer()
    assert send(producer, b"once")
    producer.commit()
    assert [record.payload for record in taken(consumer)] == [b"once"]
    producer.commit()
    assert consumer.take() is None


def test_sequence_numbers_have_no_gap_after_an_abort(lane_module: ModuleType) -> None:
    """What was aborted takes no sequence number."""
    lane = LaneMemory(lane_module, 1024)
    producer, consumer = lane.producer(), lane.consumer()
    for _ in range(3):
        assert producer.claim(b"never", layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0)
        producer.abort()
        assert send(producer, b"sent")
    assert [record.sequence for record in taken(consumer)] == [1, 2, 3]


@pytest.mark.parametrize("ring_bytes", RINGS)
def test_the_largest_record_fits_into_an_empty_lane_wherever_it_stands(
    lane_module: ModuleType, ring_bytes: int
) -> None:
    """A record of the largest size is never refused by an empty lane."""
    capacity = ring_bytes // layout.UNIT
    for offset in range(capacity):
        lane = LaneMemory(lane_module, ring_bytes)
        lane.set_cursors(offset)
        producer, consumer = lane.producer(), lane.consumer()
        payload = bytes(range(64)) * (producer.payload_bytes_max // 64)
        for _ in range(3):
            assert send(producer, payload)
            (record,) = taken(consumer)
            assert record.payload == payload
            consumer.done(record)


def test_a_refused_claim_changes_nothing(lane_module: ModuleType) -> None:
    """After a claim that found no room, the records claimed before it can still be committed."""
    lane = LaneMemory(lane_module, 512)
    producer, consumer = lane.producer(), lane.consumer()
    payloads: list[bytes] = []
    while producer.claim(bytes([len(payloads)]), layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0):
        payloads.append(bytes([len(payloads)]))
    assert len(payloads) == 4
    producer.commit()
    assert not producer.claim(b"", layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0)
    assert [record.payload for record in taken(consumer)] == payloads


def test_room_comes_back_when_records_are_done(lane_module: ModuleType) -> None:
    """A full lane refuses until a record in front is done; finishing one behind it is no help."""
    lane = LaneMemory(lane_module, 512)
    producer, consumer = lane.producer(), lane.consumer()
    while send(producer, b"x"):
        pass
    first, second, *_ = taken(consumer)
    consumer.done(second)
    assert not send(producer, b"y")
    consumer.done(first)
    assert send(producer, b"y")
    assert send(producer, b"z")
    assert not send(producer, b"!")


def test_half_empty_is_when_both_sides_think_of_room(lane_module: ModuleType) -> None:
    """`has_room` and `wants_post` turn true at half empty, the latter only for who asked."""
    lane = LaneMemory(lane_module, 512)
    producer, consumer = lane.producer(), lane.consumer()
    assert producer.has_room()
    while send(producer, b""):
        pass
    assert producer.sent() == 8
    producer.want_room(True)
    for number, record in enumerate(taken(consumer), 1):
        consumer.done(record)
        assert producer.has_room() == consumer.wants_post() == (number >= 4)
    producer.want_room(False)
    assert producer.has_room()
    assert not consumer.wants_post()


def test_what_is_dropped_is_counted_beside_the_cursors(lane_module: ModuleType) -> None:
    """Counting touches nothing else, outlives its producer, and does nothing to a closed lane."""
    lane = LaneMemory(lane_module, 512)
    producer = lane.producer()
    assert send(producer, b"x")
    before = (lane.counts().sent, lane.counts().queued)
    for dropped in (1, 2):
        producer.count_dropped()
        assert lane.counts().dropped == dropped
    producer.close()
    producer.count_dropped()
    assert (lane.counts().sent, lane.counts().queued) == before
    lane.producer().count_dropped()
    assert lane.counts().dropped == 3


def test_a_replacement_learns_how_often_a_record_was_tried(lane_module: ModuleType) -> None:
    """Attempts are counted by `start` alone, and survive the consumer."""
    lane = LaneMemory(lane_module, 512)
    assert send(lane.producer(), b"heavy")
    for attempts in range(5):
        for started in (False, True):
            consumer = lane.consumer()
            (record,) = taken(consumer)
            assert record.attempts == attempts
            if started:
                assert consumer.start(record) == attempts + 1


def test_a_replacement_skips_what_was_finished_out_of_order(lane_module: ModuleType) -> None:
    """Records finished behind one in hand do not come again; the one in hand does."""
    lane = LaneMemory(lane_module, 1024)
    producer, consumer = lane.producer(), lane.consumer()
    for number in range(5):
        assert send(producer, bytes([number]))
    records = taken(consumer)
    for record, finish in ((1, consumer.done), (2, consumer.dead), (3, consumer.forwarded)):
        finish(records[record])
    assert lane.counts().queued == 5
    replacement = lane.consumer()
    first, last = taken(replacement)
    assert (first.payload, last.payload) == (b"\x00", b"\x04")
    replacement.done(first)
    replacement.done(last)
    counts = lane.counts()
    assert (counts.sent, counts.queued, counts.delivered) == (5, 0, 3)
    assert (counts.dead_lettered, counts.forwarded) == (1, 1)


@pytest.mark.parametrize("count", [0, (1 << 31) + 5, (1 << 32) - 2, (1 << 46) - 20])
def test_counts_are_right_however_much_the_lane_has_carried(
    lane_module: ModuleType, count: int
) -> None:
    """Dead letters and forwarded records are counted on a lane of any age."""
    lane = LaneMemory(lane_module, 512)
    lane.set_cursors(count << layout.CURSOR_OFFSET_BITS)
    producer, consumer = lane.producer(), lane.consumer()
    for _ in range(4):
        for finish in (consumer.dead, consumer.forwarded, consumer.done):
            assert send(producer, b"old")
            (record,) = taken(consumer)
            finish(record)
    counts = lane.counts()
    assert (counts.sent, counts.queued) == (count + 12, 0)
    assert (counts.dead_lettered, counts.forwarded, counts.delivered) == (4, 4, count + 4)


def test_closing_an_end_leaves_the_lane(lane_module: ModuleType) -> None:
    """What is queued outlives both ends."""
    lane = LaneMemory(lane_module, 512)
    producer, consumer = lane.producer(), lane.consumer()
    assert send(producer, b"kept")
    producer.close()
    consumer.close()
    assert [record.payload for record in taken(lane.consumer())] == [b"kept"]


def test_a_closed_end_disturbs_nobody_who_still_asks_for_room(lane_module: ModuleType) -> None:
    """A thread that waits for room in a lane that another thread closes is sent to look again."""
    producer: LaneProducer = LaneMemory(lane_module, 512).producer()
    while send(producer, b""):
        pass
    assert not producer.has_room()
    producer.close()
    assert producer.has_room()
    producer.want_room(False)


# --- killed between two stores (the reference only: it can be stopped there) ----------------------


class Killed(BaseException):
    pass


class DyingWords:
    """The words of a consumer that dies at its n-th store, before making it."""

    def __init__(self, words: memoryview, stores: int) -> None:
        self._words = words
        self.stores_left = stores

    def __getitem__(self, index: int) -> int:
        return int(self._words[index])

    def __setitem__(self, index: int, value: int) -> None:
        if not self.stores_left:
            raise Killed
        self.stores_left -= 1
        self._words[index] = value


def work_off(consumer: LaneConsumer, seen: list[tuple[bytes, int]]) -> None:
    """Take four records and finish them out of order, each in the way its payload says."""
    records = taken(consumer)
    for record in records:
        seen.append((record.payload, record.attempts))
        consumer.start(record)
    for record in records[1:] + records[:1]:
        getattr(consumer, record.payload.decode())(record)


@pytest.mark.parametrize("first", [DELIVERED, DEAD, FORWARDED])
def test_a_consumer_may_die_between_any_two_stores(first: str) -> None:
    """Wherever the consumer dies, its replacement finishes each record once and counts it once."""
    work = [first, DEAD, FORWARDED, DELIVERED]
    stores = 0
    while True:
        lane = LaneMemory(reference, 1024)
        producer = lane.producer()
        for how in work:
            assert send(producer, how.encode())
        dying = lane.consumer()
        words = DyingWords(lane.words, stores)
        dying._words = words  # type: ignore[assignment]
        before: list[tuple[bytes, int]] = []
        try:
            work_off(dying, before)
        except Killed:
            pass
        again: list[tuple[bytes, int]] = []
        work_off(lane.consumer(), again)
        counts = lane.counts()
        assert (counts.sent, counts.queued) == (4, 0), stores
        assert counts.dead_lettered == work.count(DEAD), stores
        assert counts.forwarded == work.count(FORWARDED), stores
        assert counts.delivered == work.count(DELIVERED), stores
        started = max(0, min(stores, 4))  # the first stores are the four starts, in order
        assert [attempts for _, attempts in again] == [1] * min(len(again), started) + [0] * (
            len(again) - started
        ), stores
        if words.stores_left:
            break
        stores += 1
    assert stores > 10
    assert not again
