"""A producer to be killed at any instruction, and what may be found in its lanes then.

``python -m tests.support.c_producer FILE`` writes jobs into two lanes in FILE in each way that the
lane in C has, after telling the addresses of the functions and stopping itself: see single_step.c.
Job number n is the same in every run, so a reader knows what it must look like.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import sys
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

from aembus.shm import layout
from aembus.shm.lane import LaneConsumer, LaneCounts, LaneProducer

FUNCTIONS: Final = 0  # how many, then the address of each
DECIDED: Final = 16  # two words a lane: how many jobs it has before and after the act under way
REGISTRY: Final = 1024
INBOX: Final = 2048
CONTROLS: Final = layout.PAGE
RING_BYTES: Final = 1024
RINGS: Final = CONTROLS + 2 * layout.LANE_CONTROL_BYTES
SIZE: Final = RINGS + 2 * RING_BYTES
PUBLISH: Final = 3  # the number of the function that publishes
SLOT: Final = 3
INCARNATION: Final = 33
SIZES: Final = (0, 1, 40, 61, 100, 56, 170)  # of payloads, number and checksum apart
ACTS: Final = ("publish", "put", "one claim", "two claims") * 7


def payload(number: int) -> bytes:
    """Return what job `number` carries: its number, bytes that it alone has, and a checksum."""
    word = struct.pack("=I", zlib.crc32(b"%d" % number))
    body = struct.pack("=I", number) + (word * SIZES[-1])[: SIZES[number % len(SIZES)]]
    return body + struct.pack("=I", zlib.crc32(body))


def claimed_fields(number: int) -> tuple[int, ...]:
    """Return what is claimed beside the payload: from the kind to the time."""
    return (layout.KIND_CALL, 1, 2 + number, 3 + number, 4, 5, 6, 7 + number)


class Lanes:
    """Both lanes in a file's memory, or in a copy of it, and ends of them at wish."""

    def __init__(self, memory: memoryview, module: ModuleType) -> None:
        self.memory = memory
        self.words = memory.cast("Q")
        self._module = module

    def producer(self, lane: int) -> LaneProducer:
        """Open the writing end as this producer or a replacement of it does."""
        producer: LaneProducer = self._module.LaneProducer(
            self.memory, *self._places(lane), SLOT, INCARNATION
        )
        return producer

    def consumer(self, lane: int) -> LaneConsumer:
        """Open the reading end."""
        consumer: LaneConsumer = self._module.LaneConsumer(self.memory, *self._places(lane))
        return consumer

    def counts(self, lane: int) -> LaneCounts:
        """Return what the lane's words say."""
        return LaneCounts(self.words, self._places(lane)[0])

    @staticmethod
    def _places(lane: int) -> tuple[int, int, int]:
        control = CONTROLS + lane * layout.LANE_CONTROL_BYTES
        return control, RINGS + lane * RING_BYTES, RING_BYTES


# --- the producer ---------------------------------------------------------------------------------


def address(kind: type, method: str) -> int:
    """Return where the C function of a method begins (PyMethodDescrObject.d_method->ml_meth)."""
    definition = id(vars(kind)[method]) + object.__basicsize__ + 3 * ctypes.sizeof(ctypes.c_size_t)
    return int(ctypes.POINTER(ctypes.c_size_t).from_address(definition)[1])


class Writer:
    """Writes jobs into both lanes, and keeps room for them."""

    def __init__(self, memory: memoryview, module: Any) -> None:
        self._lanes = Lanes(memory, module)
        self._producers = [self._lanes.producer(lane) for lane in (0, 1)]
        self._consumers = [self._lanes.consumer(lane) for lane in (0, 1)]
        groups = [
            [(producer, None, memory[INBOX : INBOX + layout.DOORS], layout.SLEEPING, lane, False)]
            for lane, producer in enumerate(self._producers)
        ]
        self._publisher = module.Publisher(
            memory[REGISTRY : REGISTRY + layout.REGISTRY_HALVES], layout.GENERATION, 0, 0, groups
        )
        self._sent = 0
        words = self._lanes.words
        ends, publisher = module.LaneProducer, module.Publisher
        addresses = [address(ends, name) for name in ("claim", "commit", "put")]
        addresses.append(address(publisher, "publish"))
        assert len(addresses) == PUBLISH + 1
        for place, found in enumerate((len(addresses), *addresses), FUNCTIONS):
            words[place] = found

    def act(self, name: str) -> None:
        """Write the next jobs into both lanes."""
        for lane, consumer in enumerate(self._consumers):
            while self._lanes.counts(lane).queued > 1:  # the last one stays, wherever it is
                record = consumer.take()
                assert record is not None
                consumer.done(record)
        jobs = 2 if name == "two claims" else 1
        for lane in (0, 1):
            self._lanes.words[DECIDED + 2 * lane] = self._sent
            self._lanes.words[DECIDED + 2 * lane + 1] = self._sent + jobs
        if name == "publish":
            assert self._publisher.publish(payload(self._sent), 3 + self._sent) == 2
        else:
            for producer in self._producers:
                self._write(producer, name, jobs)
        self._sent += jobs

    def _write(self, producer: LaneProducer, name: str, jobs: int) -> None:
        number = self._sent
        if name == "put" and producer.put(payload(number), 9, 3 + number, 7 + number):
            return
        for more in range(jobs):
            assert producer.claim(payload(number + more), *claimed_fields(number + more))
        producer.commit()


def main(path: str) -> None:
    """Write all jobs."""
    from aembus.shm import _lane

    with open(path, "r+b") as file:
        memory = memoryview(mmap.mmap(file.fileno(), SIZE))
    writer = Writer(memory, _lane)
    os.kill(os.getpid(), signal.SIGSTOP)
    for name in ACTS:
        writer.act(name)


# --- the reader -----------------------------------------------------------------------------------


def jobs_found(lanes: Lanes, lane: int) -> Iterator[tuple[int, bytes]]:
    """Take and finish all there is: the number of each job by its sequence, and its payload."""
    consumer = lanes.consumer(lane)
    while (record := consumer.take()) is not None:
        assert (record.origin_slot, record.origin_incarnation) == (SLOT, INCARNATION)
        assert record.attempts == 0
        consumer.start(record)
        yield record.sequence - 1, record.payload
        consumer.done(record)
    assert lanes.counts(lane).queued == 0


def check(memory: memoryview, module: ModuleType) -> tuple[bool, ...]:
    """Check what a killed producer has left; say of each lane whether the act had happened there.

    Each job is whole or not there, none is missing between two, all of an act are there or none,
    and a replacement of the producer goes on.
    """
    lanes = Lanes(memory, module)
    happened = []
    for lane in (0, 1):
        before, after = lanes.words[DECIDED + 2 * lane : DECIDED + 2 * lane + 2]
        counts = lanes.counts(lane)
        assert counts.sent in {before, after}, (lane, counts.sent, before, after)
        found = list(jobs_found(lanes, lane))
        assert found == [(n, payload(n)) for n in range(counts.finished, counts.sent)], (
            lane,
            found,
        )
        producer = lanes.producer(lane)
        for number in range(counts.sent, counts.sent + 10):
            assert producer.claim(payload(number), *claimed_fields(number))
            producer.commit()
            assert list(jobs_found(lanes, lane)) == [(number, payload(number))]
        happened.append(counts.sent == after != before)
    return tuple(happened)


if __name__ == "__main__":
    main(sys.argv[1])
