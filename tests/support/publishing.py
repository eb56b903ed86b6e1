"""Other members and a registry, as far as the Publisher in C looks at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aembus.shm import layout
from aembus.shm.lane import Record
from tests.support.c_lane import lane_in_c
from tests.support.lanes import LaneMemory

lane_c = lane_in_c()

GENERATION: Final = 7
WORDS: Final = 512  # of an inbox that only has `sleeping` in it


class Member:
    """Another member: the lane to it, its `sleeping` word, and its bell."""

    def __init__(self, ring_bytes: int = 1024) -> None:
        self.lane = LaneMemory(lane_c, ring_bytes)
        self.producer = self.lane.producer()
        self.consumer = self.lane.consumer()
        self.inbox = memoryview(bytearray(WORDS))
        self.rings = 0
        self.on_ring: Callable[[], None] = lambda: None

    def ring(self) -> None:
        self.rings += 1
        self.on_ring()

    def sleep(self, sleeping: int = layout.BELL_TICKET | layout.BELL_SEMAPHORE) -> None:
        self.inbox.cast("Q")[layout.SLEEPING // layout.WORD] = sleeping

    def destination(self, event_id: int, *, drops: bool = False) -> tuple[Any, ...]:
        return (self.producer, self, self.inbox, layout.SLEEPING, event_id, drops)

    def take(self) -> list[Record]:
        """Take and finish all there is."""
        found = []
        while (record := self.consumer.take()) is not None:
            self.consumer.start(record)
            self.consumer.done(record)
            found.append(record)
        return found

    def fill(self) -> None:
        """Leave no room for a single record."""
        while self.producer.claim(b"", layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0):
            pass
        self.producer.commit()

    @property
    def dropped(self) -> int:
        """How many jobs are counted that it went without."""
        return self.lane.words[(self.lane.control + layout.LANE_DROPPED) // layout.WORD]

    @property
    def unclaimed(self) -> bool:
        """Whether there is no claim in the lane: a claim made now is the next after `tail`."""
        sent = self.producer.sent()
        assert self.producer.claim(b"", layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0)
        self.producer.commit()
        return self.producer.sent() == sent + 1


class Registry:
    """The registry's memory, as far as a Publisher looks at it."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(layout.REGISTRY_HALVES))
        self.words = self.memory.cast("Q")
        self.publish(GENERATION)

    def publish(self, generation: int) -> None:
        self.words[layout.GENERATION // layout.WORD] = generation

    def publisher(
        self, *groups: list[tuple[Any, ...]], turn: int = 0, generation: int = GENERATION
    ) -> Any:
        return lane_c.Publisher(
            self.memory, layout.GENERATION, generation, turn, [list(group) for group in groups]
        )


def payloads(member: Member) -> list[bytes]:
    """Take all there is and return the payloads."""
    return [record.payload for record in member.take()]


NOT_OPEN: Final = (None, None, None, 0, 5, False)
