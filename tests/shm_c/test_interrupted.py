"""`deliver` may be interrupted between any two of its steps by what a signal handler raises.

That is about the lane in plain Python: in the one in C handlers and decoders are all that can be
interrupted, and what they raise is in test_deliver.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from aembus.shm import lane as reference
from aembus.shm import layout
from tests.support.interruption import At, numbers
from tests.support.lanes import LaneMemory

EVENT: Final = 5
JOBS: Final = 20
INTERRUPTED_AMONG: Final = 6  # so many jobs are run while something may come in between


class Interruption(Exception):
    """What a signal handler raises."""


class Event:
    """An event that takes notes of its jobs."""

    def __init__(self) -> None:
        self.once = False
        self.lane: Any = None
        self.delivered = 0
        self.seen: list[int] = []
        self.handler = self._handle

    def _handle(self, event: Event, number: int) -> None:
        self.seen.append(number)


class Scene:
    """A full lane, whose producer takes any room at once, and what became of its jobs."""

    def __init__(self) -> None:
        self.memory = LaneMemory(reference, 512)
        self.memory.set_cursors(5)  # so that the ring's end is met early
        self._producer = self.memory.producer()
        self._consumer = self.memory.consumer()
        self.event = Event()
        self._events: dict[int, Any] = {EVENT: self.event}
        self.dead: list[int] = []
        self.sent = 0
        self.refill()

    def refill(self) -> None:
        while self.sent < JOBS and self._producer.claim(
            bytes([self.sent]), layout.KIND_JOB, 0, EVENT, 0, 0, 0, 0, 0
        ):
            self._producer.commit()
            self.sent += 1

    def interrupt(self) -> None:
        self.refill()
        raise Interruption

    def deliver(self, budget: int) -> None:
        """Deliver as the event_struct does: what is in hand at an error is dead-lettered."""
        try:
            self._consumer.deliver(self._events, list, budget, bytearray(1))
        except Interruption:
            record = self._consumer.in_hand
            if record is not None:
                self.dead.append(record.payload[0])
                self._consumer.dead(record)

    def deliver_the_rest(self) -> None:
        for _ in range(4 * JOBS):
            self.refill()
            if self.sent == JOBS and not self._consumer.has_records():
                return
            self.deliver(1)
        raise AssertionError("the lane never came to an end")


def test_no_job_is_lost_wherever_a_signal_handler_raises() -> None:
    """Each job is run once, or is a dead letter, and the lane goes on to its end."""
    both = 0
    for number in numbers():
        scene = Scene()
        at = At({number: scene.interrupt})
        with at:
            scene.deliver(INTERRUPTED_AMONG)
        if not at.happened:
            break
        scene.deliver_the_rest()
        seen = Counter(scene.event.seen)
        assert set(seen) | set(scene.dead) == set(range(JOBS)), at.where
        assert set(seen.values()) == {1}, at.where
        counts = scene.memory.counts()
        assert (counts.sent, counts.queued) == (JOBS, 0), at.where
        assert counts.dead_lettered == len(scene.dead) <= 1, at.where
        both += len(set(seen) & set(scene.dead))
    assert number > 100 * INTERRUPTED_AMONG
    # Between a handler's return and the note of it there are a few bytecodes.
    assert both <= 6 * INTERRUPTED_AMONG
