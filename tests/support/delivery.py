"""A lane with both its ends and events, for what `LaneConsumer.deliver` promises."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from aembus.codec import decode, encode
from aembus.shm import layout
from aembus.shm.lane import LaneConsumer, LaneProducer
from tests.support.lanes import LaneMemory

EVENT: Final = 0x9000_0001
OTHER: Final = 0x9000_0002
BUDGET: Final = 100


class Event:
    """What `deliver` needs of an event, and what its handler saw."""

    def __init__(self, handler: Callable[..., object] | None = None, *, once: bool = False) -> None:
        self.handler = handler or self._record
        self.once = once
        self.lane: LaneConsumer | None = None
        self.delivered = 0
        self.seen: list[tuple[Any, ...]] = []

    @staticmethod
    def _record(event: Event, *data: Any) -> None:
        event.seen.append(data)


class Slotted(Event):
    __slots__ = ("delivered", "handler", "lane", "once")


class Bench:
    """A lane, both its ends, and events."""

    make_event: type[Event] = Event

    def __init__(self, module: ModuleType, ring_bytes: int = 4096, cursor: int = 0) -> None:
        self.memory = LaneMemory(module, ring_bytes)
        self.memory.set_cursors(cursor)
        self.producer: LaneProducer = self.memory.producer()
        self.consumer: LaneConsumer = self.memory.consumer()
        self.corrupt: type[Exception] = module.CorruptLane
        self.event, self.other = self.make_event(), self.make_event()
        self.events: dict[int, Any] = {EVENT: self.event, OTHER: self.other}
        self.stopping = bytearray(1)

    def send(
        self, *data: Any, event_id: int = EVENT, kind: int = layout.KIND_JOB, flags: int = 0
    ) -> bool:
        if not self.producer.claim(encode(data), kind, flags, event_id, 0, 0, 0, 0, 0):
            return False
        self.producer.commit()
        return True

    def deliver(self, budget: int = BUDGET, decoder: Callable[[bytes], Any] = decode) -> int:
        return self.consumer.deliver(self.events, decoder, budget, self.stopping)

    def state(self, number: int) -> int:
        """Return the state of the record that is `number`-th in the ring, all of one unit."""
        at = self.memory.ring + number * (layout.UNIT * 2) + layout.RECORD_STATE
        return self.memory.words[at // layout.WORD]

    @property
    def queued(self) -> int:
        return self.memory.counts().queued
