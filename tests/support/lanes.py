"""A lane in ordinary memory: its control and its ring, each between canaries."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Final

import pytest

from aembus.shm import layout
from aembus.shm.lane import LaneConsumer, LaneCounts, LaneProducer, Record

CANARY: Final = b"\xc4nary\xa5\x5a!"  # a word; nothing that a test writes contains it
GAP_BYTES: Final = 4096
SLOT: Final = 7
INCARNATION: Final = 70007


def implementations() -> list[ModuleType]:
    """Return the modules that implement the lane here: the reference, and its twin if built."""
    found = []
    for name in ("lane", "_lane"):
        try:
            found.append(importlib.import_module(f"aembus.shm.{name}"))
        except ImportError:
            continue
    return found


# For a test with the fixture `bus`: once with each implementation.
both_lanes: Final = pytest.mark.parametrize(
    "bus", implementations(), indirect=True, ids=lambda module: str(module.IMPLEMENTATION)
)


def use(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Make this process's buses use one implementation of the lane from now on."""
    monkeypatch.setattr("aembus.shm.peer.LaneProducer", module.LaneProducer)
    monkeypatch.setattr("aembus.shm.inbox.LaneConsumer", module.LaneConsumer)
    monkeypatch.setattr("aembus.routes.CPublisher", getattr(module, "Publisher", None))


class LaneMemory:
    """Memory with one lane of `ring_bytes` in it, and both its ends at wish.

    Args:
        module: which implementation makes the ends.
        ring_bytes: the lane's size.
        image: the bytes of an earlier LaneMemory of the same size, to begin with.
    """

    def __init__(self, module: ModuleType, ring_bytes: int, image: bytes | None = None) -> None:
        self.module = module
        self.ring_bytes = ring_bytes
        self.control = GAP_BYTES
        self.ring = self.control + layout.LANE_CONTROL_BYTES + GAP_BYTES
        size = self.ring + ring_bytes + GAP_BYTES
        self.memory = memoryview(bytearray(CANARY * (size // len(CANARY))))
        self.words = self.memory.cast("Q")
        if image is None:
            self.memory[self.control : self.control + layout.LANE_CONTROL_BYTES] = bytes(
                layout.LANE_CONTROL_BYTES
            )
            self.memory[self.ring : self.ring + ring_bytes] = bytes(ring_bytes)
        else:
            self.memory[:] = image

    def producer(self) -> LaneProducer:
        """Open the writing end, as a fresh process in the producer's slot would."""
        producer: LaneProducer = self.module.LaneProducer(
            self.memory, self.control, self.ring, self.ring_bytes, SLOT, INCARNATION
        )
        return producer

    def consumer(self) -> LaneConsumer:
        """Open the reading end, as the owner's replacement would."""
        consumer: LaneConsumer = self.module.LaneConsumer(
            self.memory, self.control, self.ring, self.ring_bytes
        )
        return consumer

    def counts(self) -> LaneCounts:
        """Return what the lane's words say."""
        return LaneCounts(self.words, self.control)

    def set_cursors(self, cursor: int) -> None:
        """Make the lane as if so much had gone through it; before its ends are opened."""
        for offset in (layout.LANE_TAIL, layout.LANE_HEAD):
            self.words[(self.control + offset) // layout.WORD] = cursor

    def gaps_are_whole(self) -> bool:
        """Say whether all canaries live."""
        begin, end = self.control + layout.LANE_CONTROL_BYTES, self.ring + self.ring_bytes
        gaps = (self.memory[: self.control], self.memory[begin : self.ring], self.memory[end:])
        return all(gap == CANARY * (len(gap) // len(CANARY)) for gap in gaps)


def send(producer: LaneProducer, payload: bytes, kind: int = layout.KIND_JOB) -> bool:
    """Claim and commit one record; return whether there was room."""
    if not producer.claim(payload, kind, 0, 1, 0, 0, 0, 0, 0):
        return False
    producer.commit()
    return True


def taken(consumer: LaneConsumer) -> list[Record]:
    """Take all there is."""
    return list(iter(consumer.take, None))
