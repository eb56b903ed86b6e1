"""Lanes with something wrong in them, against the lane in C, beside the one in plain Python.

``python -m tests.support.c_images SEED FIRST COUNT [tight]`` makes the images FIRST, FIRST + 1, ...
of a seed, does to each what an inbox and a sender could, and something more, through both lanes,
and ends with an error at the first one where they differ or anything outside of the lane was
written.  Its standard output names each image before it is tried, so the last one named is the one
that crashed it.  With `tight` nothing lies around the lane, for tools that watch the memory's ends.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final, NamedTuple

from aembus.shm import lane as reference
from aembus.shm import lane_consumer, layout
from tests.support.lanes import LaneMemory, implementations

PLAIN, ONCE, UNKNOWN = (0, 5, 0x9000_0001), 1, 7  # events, by what they are like
EVENTS: Final = (*PLAIN, *PLAIN, ONCE, UNKNOWN)
RINGS: Final = (128, 256, 512, 512, 1024, 1024, 4096)
FIELDS: Final = (("length", 0, 4), ("kind", 4, 1), ("state", 8, 8), ("sequence", 16, 8))
CURSORS: Final = ("LANE_TAIL", "LANE_HEAD", "LANE_ROOM_WANTED", "LANE_DEAD", "LANE_FORWARDED")
WORD_MAX: Final = (1 << 64) - 1
COPY_UNITS: Final = lane_consumer.COPY_UNITS
STEPS_MAX: Final = 40
IMAGES_A_LANE: Final = 20  # from one lane so many images are made

Step = tuple[str, float, float, int]


class Trouble(Exception):
    """What a handler raises."""


class Event:
    """An event whose handler takes notes, and fails at some payloads."""

    def __init__(self, notes: list[Any], *, once: bool) -> None:
        self.handler = self._handle
        self.once = once
        self.lane: Any = None
        self.delivered = 0
        self._notes = notes
        self.scribble: Callable[[], object] = lambda: None

    def _handle(self, event: Event, payload: bytes) -> None:
        record = self.lane.in_hand
        self._notes.append((payload, record.header, record.begin, record.end, self.delivered))
        self.scribble()
        if len(payload) % 7 == 3:
            raise Trouble


class TightMemory(LaneMemory):
    """A lane with nothing around it."""

    def __init__(self, module: ModuleType, ring_bytes: int, image: bytes) -> None:
        wide = LaneMemory(module, ring_bytes, image)
        control = wide.memory[wide.control : wide.control + layout.LANE_CONTROL_BYTES]
        ring = wide.memory[wide.ring : wide.ring + ring_bytes]
        self.module = module
        self.ring_bytes = ring_bytes
        self.control, self.ring = 0, layout.LANE_CONTROL_BYTES
        self.memory = memoryview(bytearray(bytes(control) + bytes(ring)))
        self.words = self.memory.cast("Q")

    def gaps_are_whole(self) -> bool:
        """There are none."""
        return True


class Side:
    """One implementation at work on its own copy of an image."""

    def __init__(self, lane: LaneMemory) -> None:
        self.lane = lane
        self.notes: list[Any] = []
        self._producer: Any = None
        self._consumer: Any = None
        self._records: list[Any] = []
        self._stopping = bytearray(1)
        self._events = {n: Event(self.notes, once=n == ONCE) for n in (*PLAIN, ONCE)}

    def do(self, step: Step) -> None:
        """Do one thing, and note what came of it."""
        name, where, what, number = step
        try:
            self.notes.append((name, getattr(self, name)(where, what, number)))
        except (reference.CorruptLane, Trouble, LookupError) as error:
            self.notes.append((name, type(error).__name__))

    def finish(self) -> list[Any]:
        """Let go of the lane, and return the notes with what became of the memory."""
        records = [(record.header, record.payload) for record in self._records]
        counts = [(event.delivered, event.lane is None) for event in self._events.values()]
        return [*self.notes, records, counts, self.lane.gaps_are_whole(), bytes(self.lane.memory)]

    # --- the steps: `where` and `what` are from 0 to 1, `number` any word -----------------------

    def open_consumer(self, where: float, what: float, number: int) -> None:
        self._records = []
        self._consumer = self.lane.consumer()

    def open_producer(self, where: float, what: float, number: int) -> None:
        self._producer = self.lane.producer()

    def take(self, where: float, what: float, number: int) -> Any:
        if self._consumer is None:
            return None
        record = self._consumer.take()
        if record is None:
            return None
        self._records.append(record)
        return (record.header, record.payload, record.begin, record.end, record.attempts)

    def take_all(self, where: float, what: float, number: int) -> Any:
        if self._consumer is None:
            return None
        before = len(self._records)
        for _ in range(self.lane.ring_bytes // layout.UNIT + 2):
            record = self._consumer.take()
            if record is None:
                return len(self._records) - before
            self._records.append(record)
        raise AssertionError("more records than the ring has units")

    def start(self, where: float, what: float, number: int) -> Any:
        if not self._records:
            return None
        return self._consumer.start(self._records[int(where * len(self._records))])

    def end(self, where: float, what: float, number: int) -> Any:
        if not self._records:
            return None
        record = self._records.pop(int(where * len(self._records)))
        return getattr(self._consumer, ("done", "dead", "forwarded")[int(what * 3)])(record)

    def deliver(self, where: float, what: float, number: int) -> Any:
        if self._consumer is None:
            return None
        # Where a handler damages the ring, what it damages must not have been copied before.
        vars(lane_consumer)["COPY_UNITS"] = 1 if where < 0.1 else COPY_UNITS
        for event in self._events.values():
            event.scribble = lambda: self.scribble(what, where, number) if where < 0.1 else None
        try:
            return self._consumer.deliver(
                self._events, lambda payload: [payload], int(what * 50), self._stopping
            )
        finally:
            self.notes.append((self._consumer.delivered, self._consumer.in_hand is None))

    def in_hand(self, where: float, what: float, number: int) -> Any:
        record = None if self._consumer is None else self._consumer.in_hand
        if record is None:
            return None
        self._consumer.dead(record)
        return (record.header, record.payload, record.begin, record.end)

    def skip_to_tail(self, where: float, what: float, number: int) -> Any:
        return None if self._consumer is None else self._consumer.skip_to_tail()

    def look(self, where: float, what: float, number: int) -> Any:
        said: list[Any] = []
        if self._consumer is not None:
            said += (self._consumer.has_records(), self._consumer.wants_post())
        if self._producer is not None:
            said += (self._producer.has_room(), self._producer.sent())
        return said

    def claim(self, where: float, what: float, number: int) -> Any:
        if self._producer is None:
            return None
        size = self._producer.payload_bytes_max
        payload = b"n" * min(int(where * where * (size + 1)), size)
        kind = layout.KIND_JOB if what < 0.8 else layout.KIND_REPLY
        event_id = EVENTS[number % len(EVENTS)]
        fields = (number & 0xFF, event_id, number >> 32, number, number, number >> 40, number >> 1)
        return self._producer.claim(payload, kind, *fields)

    def put(self, where: float, what: float, number: int) -> Any:
        if self._producer is None:
            return None
        size = int(where * where * self.lane.ring_bytes)
        return self._producer.put(
            b"p" * size, EVENTS[number % len(EVENTS)], (number >> 32) - 5, number
        )

    def commit(self, where: float, what: float, number: int) -> Any:
        return None if self._producer is None else self._producer.commit()

    def abort(self, where: float, what: float, number: int) -> Any:
        return None if self._producer is None else self._producer.abort()

    def want_room(self, where: float, what: float, number: int) -> Any:
        return None if self._producer is None else self._producer.want_room(what < 0.5)

    def scribble(self, where: float, what: float, number: int) -> None:
        control = what < 0.3
        begin = self.lane.control if control else self.lane.ring
        size = layout.LANE_CONTROL_BYTES if control else self.lane.ring_bytes
        self.lane.memory[begin + int(where * size)] = number & 0xFF


ALWAYS: Final = ("open_consumer", "open_producer")
OFTEN: Final = ("take", "take", "take", "start", "end", "end", "deliver", "deliver", "claim")
SELDOM: Final = ("take_all", "in_hand", "skip_to_tail", "look", "commit", "put", "abort")
RARELY: Final = ("want_room", "scribble", "open_consumer", "open_producer")
NAMES: Final = OFTEN * 3 + SELDOM * 2 + RARELY


def steps(chance: random.Random) -> list[Step]:
    """Return what is to be done with an image."""
    names = [*ALWAYS, *(chance.choice(NAMES) for _ in range(chance.randint(5, STEPS_MAX)))]
    return [(name, chance.random(), chance.random(), chance.getrandbits(64)) for name in names]


# --- images ---------------------------------------------------------------------------------------


class Used(NamedTuple):
    """A lane that has been in use for some time: its size, its bytes, and where records begin."""

    ring_bytes: int
    image: bytes
    begins: list[int]


def used_lane(chance: random.Random) -> Used:
    """Use a lane for some time."""
    ring_bytes = chance.choice(RINGS)
    capacity = ring_bytes // layout.UNIT
    lane = LaneMemory(reference, ring_bytes, None)
    count = chance.choice((0, 1, 7, 1 << 31, (1 << 32) - 2, layout.CURSOR_COUNT_MAX))
    count -= min(count, chance.randint(0, 3 * capacity))
    lane.set_cursors(count << layout.CURSOR_OFFSET_BITS | chance.randrange(capacity))
    producer, consumer = lane.producer(), lane.consumer()
    for _ in range(chance.randint(0, 30)):
        size = int(chance.random() ** 2 * (producer.payload_bytes_max + 1))
        kind = chance.choice((layout.KIND_JOB, layout.KIND_JOB, layout.KIND_TIMER))
        if producer.claim(b"u" * size, kind, 0, chance.choice(EVENTS), 0, 0, 0, 0, 0):
            producer.commit()
        elif (record := consumer.take()) is not None:
            consumer.done(record)
    records = list(iter(consumer.take, None))
    chance.shuffle(records)
    for record in records[: chance.randint(0, len(records))]:
        consumer.start(record)
        if chance.random() < 0.5:
            getattr(consumer, chance.choice(("done", "dead", "forwarded")))(record)
    return Used(ring_bytes, bytes(lane.memory), begins(lane))


def begins(lane: LaneMemory) -> list[int]:
    """Return the units where records and pads begin, from `head` to `tail`."""
    found = []
    offset = (
        lane.words[(lane.control + layout.LANE_HEAD) // layout.WORD] & layout.CURSOR_OFFSET_MASK
    )
    left = lane.counts().queued
    while left:
        found.append(offset)
        at = lane.ring + offset * layout.UNIT
        length, kind = layout.RECORD_HEADER.unpack_from(lane.memory, at)[:2]
        left -= kind != layout.KIND_PAD
        offset = (offset + layout.record_units(length)) % (lane.ring_bytes // layout.UNIT)
    return found


def spoil(image: bytearray, used: Used, chance: random.Random) -> None:
    """Make something in the lane wrong."""
    ring_bytes = used.ring_bytes
    lane = LaneMemory(reference, ring_bytes, bytes(image))
    capacity = ring_bytes // layout.UNIT
    kind = chance.random()
    if kind < 0.35:
        offset = lane.control + getattr(layout, chance.choice(CURSORS))
        now = lane.words[offset // layout.WORD]
        step = chance.choice((1, -1, 7, layout.CURSOR_RECORD, -layout.CURSOR_RECORD))
        place = now & ~layout.CURSOR_OFFSET_MASK | chance.randrange(capacity + 2)
        value = chance.choice(
            (now + step, place, 0, 1, 1 << 63, WORD_MAX, WORD_MAX - 63, chance.getrandbits(64))
        )
        image[offset : offset + 8] = (value & WORD_MAX).to_bytes(8, sys.byteorder)
    elif kind < 0.75:
        _, at, width = chance.choice(FIELDS)
        unit = chance.choice((*used.begins, *used.begins, chance.randrange(capacity)))
        offset = lane.ring + unit * layout.UNIT + at
        now = int.from_bytes(image[offset : offset + width], sys.byteorder)
        largest = (1 << 8 * width) - 1
        near = chance.randrange(capacity + 1) * layout.UNIT + chance.randint(-1, 1)
        value = chance.choice(
            (now + 1, now - 1, 0, 1, 2, 5, largest, largest - 63, largest // 2, near, near)
        )
        image[offset : offset + width] = (value & largest).to_bytes(width, sys.byteorder)
    elif kind < 0.97:
        for _ in range(chance.randint(1, 4)):
            control = chance.random() < 0.3
            begin = lane.control if control else lane.ring
            size = layout.LANE_CONTROL_BYTES if control else ring_bytes
            image[begin + chance.randrange(size)] = chance.randrange(256)
    else:
        image[lane.ring : lane.ring + ring_bytes] = chance.randbytes(ring_bytes)


def images(seed: int, first: int, count: int) -> Iterator[tuple[int, int, bytes, list[Step]]]:
    """Yield images by number: the ring's size, the bytes, and what is to be done with them."""
    used: Used | None = None
    for number in range(first, first + count):
        if used is None or number % IMAGES_A_LANE == 0:
            lane_number = number // IMAGES_A_LANE
            used = used_lane(random.Random(f"{seed} lane {lane_number}"))
        chance = random.Random(f"{seed} image {number}")
        image = bytearray(used.image)
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
            spoil(image, used, chance)
        yield number, used.ring_bytes, bytes(image), steps(chance)


def _first_difference(one: bytes, other: bytes) -> tuple[object, object]:
    for offset, (a, b) in enumerate(zip(one, other, strict=True)):
        if a != b:
            return (offset, a), (offset, b)
    raise AssertionError


def compare(todo: list[Step], lanes: list[LaneMemory]) -> str | None:
    """Do the steps through each implementation; return what went wrong, or None."""
    said = []
    for lane in lanes:
        side = Side(lane)
        for step in todo:
            side.do(step)
        said.append(side.finish())
        if not lane.gaps_are_whole():
            return f"memory outside of the lane was written, {lane.module.__name__}"
    for place, (one, other) in enumerate(zip(*said, strict=True)):
        if one != other:
            if place + 1 == len(said[0]):
                one, other = _first_difference(one, other)
            return f"{one!r:.500} != {other!r:.500}, at={place}, of={len(said[0])}"
    return None


def main(seed: int, first: int, count: int, *, tight: bool = False) -> int:
    """Try images up to the first that does not go well; return whether one did not."""
    modules = implementations()
    assert len(modules) == 2, "the lane in C was not built"
    kind = TightMemory if tight else LaneMemory
    for number, ring_bytes, image, todo in images(seed, first, count):
        os.write(1, b"%d\n" % number)
        wrong = compare(todo, [kind(module, ring_bytes, image) for module in modules])
        if wrong is not None:
            print(f"{wrong}, steps={[name for name, *_ in todo]}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4]), tight=sys.argv[4:] == ["tight"]))
