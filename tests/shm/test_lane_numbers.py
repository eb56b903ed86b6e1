"""Calls of numbers: records of two numbers that a consumer takes and finishes many at a time."""

from __future__ import annotations

import struct
import sys
from types import ModuleType

import pytest

from aembus.shm import layout
from aembus.shm.lane import CorruptLane, LaneCounts, LaneProducer
from tests.support.lanes import INCARNATION, LaneMemory

RING_BYTES = 1024


def send_numbers(producer: LaneProducer, call_id: int, first: int, second: int) -> None:
    """Send one."""
    sent = producer.claim(
        b"", layout.KIND_CALL, layout.FLAG_NUMBERS, call_id, 0, second, first, 0, 1
    )
    assert sent
    producer.commit()


def pairs(taken: tuple[int, int, bytes] | None) -> list[tuple[int, int]]:
    """Return the pairs of what was taken."""
    assert taken is not None
    words = struct.unpack(f"={len(taken[2]) // 8}Q", taken[2])
    return list(zip(words[::2], words[1::2], strict=True))


def test_they_are_taken_together_and_in_order(lane_module: ModuleType) -> None:
    """Up to the budget at a time, whole 64-bit numbers, round the ring's end, all delivered."""
    memory = LaneMemory(lane_module, RING_BYTES)
    producer, consumer = memory.producer(), memory.consumer()
    got = []
    wanted = [(number, (1 << 64) - 1 - number) for number in range(40)]
    for at in range(0, 40, 5):
        for first, second in wanted[at : at + 5]:
            send_numbers(producer, 7, first, second)
        taken = consumer.take_numbers(3)
        assert taken is not None
        assert taken[:2] == (7, INCARNATION)
        got += pairs(taken) + pairs(consumer.take_numbers(64))
    assert got == wanted
    assert consumer.take_numbers(64) is None
    counts = LaneCounts(memory.words, memory.control)
    assert (counts.sent, counts.delivered, counts.queued) == (40, 40, 0)


def test_another_record_ends_it_and_comes_next(lane_module: ModuleType) -> None:
    """A job, a call with a payload, or another call's numbers are left to `take`, in order."""
    memory = LaneMemory(lane_module, RING_BYTES)
    producer, consumer = memory.producer(), memory.consumer()
    send_numbers(producer, 7, 1, 2)
    send_numbers(producer, 8, 3, 4)
    assert producer.claim(b"data", layout.KIND_CALL, layout.FLAG_NUMBERS, 7, 0, 0, 0, 0, 1)
    assert producer.claim(b"", layout.KIND_JOB, layout.FLAG_NUMBERS, 7, 0, 0, 0, 0, 1)
    producer.commit()
    send_numbers(producer, 7, 5, 6)
    assert pairs(consumer.take_numbers(64)) == [(1, 2)]
    for event_id, payload in ((8, b""), (7, b"data"), (7, b"")):
        assert consumer.take_numbers(64) is None
        record = consumer.take()
        assert record is not None
        assert (record.event_id, record.payload) == (event_id, payload)
        consumer.start(record)
        consumer.done(record)
    assert pairs(consumer.take_numbers(64)) == [(5, 6)]


def test_what_is_in_front_of_damage_is_taken(lane_module: ModuleType) -> None:
    """Damage behind some numbers is told at the next call, and does not cost them."""
    memory = LaneMemory(lane_module, RING_BYTES)
    producer, consumer = memory.producer(), memory.consumer()
    send_numbers(producer, 7, 1, 2)
    send_numbers(producer, 7, 3, 4)
    memory.memory[memory.ring + layout.UNIT + 4] = 200  # the second one's kind
    assert pairs(consumer.take_numbers(64)) == [(1, 2)]
    with pytest.raises(CorruptLane):
        consumer.take_numbers(64)
    assert consumer.skip_to_tail() == 1
    send_numbers(producer, 7, 5, 6)
    assert pairs(consumer.take_numbers(64)) == [(5, 6)]


def test_a_replacement_begins_behind_what_was_taken(lane_module: ModuleType) -> None:
    """What was taken is finished, and comes to nobody again."""
    memory = LaneMemory(lane_module, RING_BYTES)
    producer, consumer = memory.producer(), memory.consumer()
    for number in range(4):
        send_numbers(producer, 7, number, 9)
    assert pairs(consumer.take_numbers(3)) == [(0, 9), (1, 9), (2, 9)]
    assert pairs(memory.consumer().take_numbers(64)) == [(3, 9)]


@pytest.mark.parametrize("budget", [sys.maxsize, 1 << 60])
def test_a_budget_without_measure(lane_module: ModuleType, budget: int) -> None:
    """However many may be taken, no more memory is asked for than what is there takes."""
    memory = LaneMemory(lane_module, RING_BYTES)
    producer, consumer = memory.producer(), memory.consumer()
    wanted = [(number, 9) for number in range(4)]
    for first, second in wanted:
        send_numbers(producer, 7, first, second)
    assert pairs(consumer.take_numbers(budget)) == wanted
