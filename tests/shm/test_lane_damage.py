"""A lane whose bytes make no sense, in every implementation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Final

import pytest

from aembus.shm import layout
from aembus.shm.lane import LaneConsumer
from tests.support.lanes import CANARY, LaneMemory, send, taken

RINGS: Final = (512, 1024)
WORD_MAX: Final = (1 << 64) - 1
IMAGES: Final = 2000


def images(module: ModuleType) -> Iterator[tuple[str, LaneMemory]]:
    """Yield lanes with something wrong in them: each field set to extremes, then flipped bytes."""
    chance = random.Random(20)
    lane, begins = full_of_records(module, chance)
    image = bytes(lane.memory)
    count = 0
    for name, offset, width, values in mutations(lane, begins):
        for value in values:
            wrong = LaneMemory(module, lane.ring_bytes, image)
            wrong.memory[offset : offset + width] = value.to_bytes(width, "little")
            yield f"{name} = {value:#x}", wrong
            count += 1
    while count < IMAGES:
        if count % 50 == 0:
            lane, begins = full_of_records(module, chance)
            image = bytes(lane.memory)
        wrong = LaneMemory(module, lane.ring_bytes, image)
        flips = []
        for _ in range(chance.randint(1, 4)):
            control = chance.random() < 0.3
            begin = lane.control if control else lane.ring
            size = layout.LANE_CONTROL_BYTES if control else lane.ring_bytes
            at = begin + chance.randrange(size)
            wrong.memory[at] = chance.randrange(256)
            flips.append(f"{at - begin}:{wrong.memory[at]}")
        yield f"image {count}, {'control' if control else 'ring'}, flips={flips}", wrong
        count += 1


def full_of_records(module: ModuleType, chance: random.Random) -> tuple[LaneMemory, list[int]]:
    """Return a lane with records in it, pads too, and the offsets where records begin."""
    lane = LaneMemory(module, chance.choice(RINGS))
    producer, consumer = lane.producer(), lane.consumer()
    for _ in range(chance.randint(0, 40)):
        size = chance.randint(0, producer.payload_bytes_max)
        while not send(producer, b"p" * size):
            record = consumer.take()
            assert record is not None
            consumer.done(record)
    ring, begins = lane.ring, []
    offset = lane.words[(lane.control + layout.LANE_HEAD) // 8] & layout.CURSOR_OFFSET_MASK
    for _ in range(lane.counts().queued):
        header = layout.RECORD_HEADER.unpack_from(lane.memory, ring + offset * layout.UNIT)
        begins.append(ring + offset * layout.UNIT)
        if header[1] == layout.KIND_PAD:
            offset = 0
            header = layout.RECORD_HEADER.unpack_from(lane.memory, ring)
            begins.append(ring)
        offset = (offset + layout.record_units(header[0])) % (lane.ring_bytes // layout.UNIT)
    return lane, begins


def mutations(lane: LaneMemory, begins: list[int]) -> Iterator[tuple[str, int, int, set[int]]]:
    """Yield the fields to spoil: name, offset, width in bytes, values."""
    capacity = lane.ring_bytes // layout.UNIT
    for name in ("LANE_TAIL", "LANE_HEAD", "LANE_ROOM_WANTED", "LANE_DEAD", "LANE_FORWARDED"):
        offset = lane.control + getattr(layout, name)
        now = lane.words[offset // 8]
        near = {now + sign * step for sign in (1, -1) for step in (1, 7, layout.CURSOR_RECORD)}
        places = {now & ~layout.CURSOR_OFFSET_MASK | at for at in range(capacity + 2)}
        values = near | places | {0, 1, 1 << 63, WORD_MAX, layout.CURSOR_OFFSET_MASK, WORD_MAX - 63}
        yield name, offset, 8, {value & WORD_MAX for value in values}
    fields = {"length": (0, 4), "kind": (4, 1), "state": (8, 8), "sequence": (16, 8)}
    for begin in {*begins[:2], *begins[-2:], lane.ring}:
        for name, (offset, width) in fields.items():
            largest = (1 << 8 * width) - 1
            now = int.from_bytes(lane.memory[begin + offset : begin + offset + width], "little")
            sizes = {64 * units + more for units in range(capacity + 1) for more in (-1, 0, 1)}
            values = {now - 1, now + 1, 0, 1, 2, largest, largest - 63, largest // 2} | sizes
            good = {value for value in values if 0 <= value <= largest}
            yield f"{name} of the record at {begin - lane.ring}", begin + offset, width, good


def read_to_the_end(
    consumer: LaneConsumer, corrupt: type[Exception], spoiled: Callable[[bytes], bool]
) -> str | None:
    """Do what an inbox does with a lane until nothing is left; return what went wrong, or None."""
    finishes = (consumer.done, consumer.dead, consumer.forwarded)
    for number in range(200):
        if not consumer.has_records():
            return None
        try:
            record = consumer.take()
        except corrupt:
            consumer.skip_to_tail()
            continue
        if record is not None:
            if spoiled(record.payload):
                return "memory outside of the ring was read"
            consumer.start(record)
            finishes[number % 3](record)
            consumer.wants_post()
    return "the lane never came to an end"


def test_no_bytes_of_the_producer_harm_the_consumer(lane_module: ModuleType) -> None:
    """Whatever is in a lane, reading it ends, raises CorruptLane at most, and stays in the ring."""
    wrong = []
    for name, lane in images(lane_module):
        try:
            consumer = lane.consumer()
        except lane_module.CorruptLane:
            continue  # its own `head` makes no sense: the owner does not open such a lane
        trouble = read_to_the_end(
            consumer, lane_module.CorruptLane, lambda payload: CANARY[:4] in payload
        )
        if not lane.gaps_are_whole():
            trouble = "memory outside of the ring was written"
        if trouble is not None:
            wrong.append(f"{name}: {trouble}")
    assert not wrong, f"{len(wrong)} of {IMAGES} images, such as\n" + "\n".join(wrong[:20])


def test_a_lane_goes_on_after_what_could_not_be_followed(lane_module: ModuleType) -> None:
    """Records sent after a corrupt one are delivered, and what was given up counts as dead."""
    lane = LaneMemory(lane_module, 1024)
    producer, consumer = lane.producer(), lane.consumer()
    for number in range(4):
        assert send(producer, bytes([number]))
    lane.memory[lane.ring + 2 * 64 + 4] = 99  # the kind of the second record
    record = consumer.take()
    assert record is not None
    consumer.done(record)
    with pytest.raises(lane_module.CorruptLane, match=r"cursor=0x.* header="):
        consumer.take()
    assert consumer.skip_to_tail() == 3
    assert consumer.take() is None
    assert send(producer, b"later")
    (record,) = taken(consumer)
    assert (record.payload, record.sequence) == (b"later", 5)
    consumer.done(record)
    counts = lane.counts()
    assert (counts.sent, counts.delivered, counts.dead_lettered, counts.queued) == (5, 2, 3, 0)


@pytest.mark.parametrize("cursor", [8, layout.CURSOR_OFFSET_MASK, WORD_MAX])
def test_a_cursor_outside_the_ring_is_refused_at_once(lane_module: ModuleType, cursor: int) -> None:
    """Neither end opens a lane whose own cursor lies outside the ring."""
    lane = LaneMemory(lane_module, 512)
    lane.set_cursors(cursor)
    with pytest.raises(lane_module.CorruptLane, match="head=0x"):
        lane.consumer()
    with pytest.raises(lane_module.CorruptLane, match="tail=0x"):
        lane.producer()


def test_damage_is_told_the_same_each_time(lane_module: ModuleType) -> None:
    """Also behind a pad, which is passed each time anew."""
    lane = LaneMemory(lane_module, 512)
    producer, consumer = lane.producer(), lane.consumer()
    for _ in range(3):
        assert send(producer, bytes(64))
        record = consumer.take()
        assert record is not None
        consumer.done(record)
    assert send(producer, bytes(100))  # behind a pad of two units
    lane.memory[lane.ring + 4] = 200  # its kind
    told = []
    for _ in range(3):
        with pytest.raises(lane_module.CorruptLane) as caught:
            consumer.take()
        told.append(str(caught.value))
    assert "record cannot be followed" in told[0]
    assert told == told[:1] * 3
