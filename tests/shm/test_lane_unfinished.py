"""Records that are started and not finished in turn: failed, held, marked as done elsewhere."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from aembus.codec import decode, encode
from aembus.shm import layout
from aembus.shm.lane import CorruptLane, LaneConsumer, Record
from tests.support.lanes import LaneMemory, send, taken


def lane_of(module: ModuleType, records: int) -> LaneMemory:
    """Return a lane with so many jobs for event 1; their data are their numbers."""
    lane = LaneMemory(module, 1024)
    producer = lane.producer()
    for number in range(records):
        assert send(producer, encode((number,)))
    return lane


def figures(lane: LaneMemory) -> tuple[int, int, int]:
    """Return how many were delivered, are dead, and are queued."""
    counts = lane.counts()
    return counts.delivered, counts.dead_lettered, counts.queued


def state(lane: LaneMemory, record: Record) -> tuple[int, int, int]:
    """Return state, attempts and failures as they are in the memory."""
    offset = (record.begin & layout.CURSOR_OFFSET_MASK) * layout.UNIT
    word = lane.words[(lane.ring + offset + layout.RECORD_STATE) // layout.WORD]
    return word & layout.STATE_MASK, layout.state_attempts(word), layout.state_failures(word)


def test_attempts_and_failures_are_told_apart(lane_module: ModuleType) -> None:
    """Each in one word, in this consumer and in those that replace it."""
    lane = lane_of(lane_module, 1)
    consumer = lane.consumer()
    record = consumer.take()
    assert record is not None
    failures = 0
    for attempts, fails in enumerate((True, False, True, True, False), 1):
        assert consumer.start(record) == attempts
        assert state(lane, record) == (layout.STATE_STARTED, attempts, failures)
        if fails:
            failures += 1
            assert consumer.fail(record) == failures
            assert state(lane, record) == (layout.STATE_FAILED, attempts, failures)
        assert (record.attempts, record.failures) == (attempts, failures)
        consumer = lane.consumer()
        record = consumer.take()
        assert record is not None
        assert (record.attempts, record.failures) == (attempts, failures)
        assert record.header[4] & layout.STATE_MASK == (
            layout.STATE_FAILED if fails else layout.STATE_STARTED
        )
    assert figures(lane) == (0, 0, 1)
    consumer.done(record)
    assert figures(lane) == (1, 0, 0)


def test_counts_do_not_run_over(lane_module: ModuleType) -> None:
    """A producer that writes a state of its own cannot make one count become the other."""
    lane = lane_of(lane_module, 1)
    word = (lane.ring + layout.RECORD_STATE) // layout.WORD
    most = layout.STATE_ATTEMPT_MAX, layout.STATE_FAILURE_MAX
    lane.words[word] = (
        layout.STATE_STARTED
        | most[0] << layout.STATE_ATTEMPT_SHIFT
        | most[1] << layout.STATE_FAILURE_SHIFT
    )
    consumer = lane.consumer()
    record = consumer.take()
    assert record is not None
    assert (consumer.start(record), consumer.fail(record)) == most
    assert state(lane, record) == (layout.STATE_FAILED, *most)


def test_a_failed_record_keeps_head_and_lets_others_by(lane_module: ModuleType) -> None:
    """What is behind it is finished meanwhile; a replacement finds it alone."""
    lane = lane_of(lane_module, 3)
    consumer = lane.consumer()
    first, *others = taken(consumer)
    consumer.start(first)
    consumer.fail(first)
    for record in others:
        consumer.start(record)
        consumer.done(record)
    assert figures(lane) == (0, 0, 3)
    (again,) = taken(lane.consumer())
    assert (again.sequence, again.attempts, again.failures) == (1, 1, 1)
    consumer.start(first)
    consumer.done(first)
    assert figures(lane) == (3, 0, 0)


@pytest.mark.parametrize("held", [{0}, {2}, {0, 1, 2, 3}, {1, 3}])
def test_deliver_leaves_what_is_held(lane_module: ModuleType, held: set[int]) -> None:
    """It stays held when its handler returns, counts as run, and is done when it is told to."""
    lane = lane_of(lane_module, 4)
    consumer = lane.consumer()
    records: list[Record] = []

    def handler(event: Any, number: int) -> None:
        record = event.lane.in_hand
        assert record.attempts == 1
        if number in held:
            event.lane.hold(record)
            records.append(record)

    event = SimpleNamespace(handler=handler, once=False, lane=None, delivered=0)
    assert consumer.deliver({1: event}, decode, 10, bytearray(1)) == 4
    assert consumer.in_hand is None
    assert event.lane is None
    assert event.delivered == 4 - len(held)
    assert [state(lane, record)[0] for record in records] == [layout.STATE_HELD] * len(held)
    assert figures(lane) == (min(held), 0, 4 - min(held))
    for record in reversed(records):
        consumer.mark_done(record)
    assert figures(lane) == (min(held), 0, 4 - min(held))
    assert taken(lane.consumer()) == []  # whoever comes now: nothing is left to do
    for record in records:
        consumer.done(record)
    assert figures(lane) == (4, 0, 0)


def test_what_is_held_may_raise(lane_module: ModuleType) -> None:
    """The record is in hand then, as any other whose handler raised."""
    lane = lane_of(lane_module, 2)
    consumer = lane.consumer()

    def handler(event: Any, number: int) -> None:
        event.lane.hold(event.lane.in_hand)
        raise ValueError(number)

    event = SimpleNamespace(handler=handler, once=False, lane=None, delivered=0)
    for number in (0, 1):
        with pytest.raises(ValueError, match=str(number)):
            consumer.deliver({1: event}, decode, 10, bytearray(1))
        record = consumer.in_hand
        assert record is not None
        assert record.sequence == number + 1
        consumer.dead(record)
    assert figures(lane) == (0, 2, 0)


def test_damage_behind_what_is_held(lane_module: ModuleType) -> None:
    """What is given up counts once what is in front of it is finished, and is not in its way."""
    lane = lane_of(lane_module, 5)
    consumer = lane.consumer()
    held, done = consumer.take(), consumer.take()
    assert held is not None
    assert done is not None
    consumer.start(held)
    consumer.start(done)
    consumer.done(done)
    third = lane.ring + (done.end & layout.CURSOR_OFFSET_MASK) * layout.UNIT
    lane.words[third // layout.WORD + 2] = 99  # its sequence number

    def give_up(consumer: LaneConsumer) -> None:
        with pytest.raises(CorruptLane):
            consumer.take()
        assert consumer.skip_to_tail() == 3

    give_up(consumer)
    assert figures(lane) == (0, 0, 5)
    replacement = lane.consumer()
    again = replacement.take()
    assert again is not None
    assert (again.sequence, again.attempts) == (1, 1)
    give_up(replacement)
    producer = lane.producer()
    assert send(producer, encode((5,)))
    (sixth,) = taken(replacement)
    replacement.done(again)
    assert figures(lane) == (2, 3, 1)
    replacement.done(sixth)
    assert figures(lane) == (3, 3, 0)


def test_what_is_not_finished_can_be_taken_again(lane_module: ModuleType) -> None:
    """In order, with what `deliver` has left to `take`; what is finished does not come again."""
    lane = lane_of(lane_module, 5)
    consumer = lane.consumer()
    records = [consumer.take() for _ in range(3)]
    assert records[0] is not None
    assert records[2] is not None
    consumer.done(records[0])
    consumer.done(records[2])
    assert consumer.deliver({}, decode, 10, bytearray(1)) == 0  # leaves the fourth
    consumer.take_again()
    assert consumer.has_records()
    assert [decode(record.payload) for record in taken(consumer)] == [[1], [3], [4]]
    consumer.take_again()
    for record in taken(consumer):
        consumer.done(record)
    assert figures(lane) == (5, 0, 0)
