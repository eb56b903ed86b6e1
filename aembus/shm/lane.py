"""A lane: a ring in shared memory with one producer and one consumer.  Plain Python, the reference.

Who touches what (see `layout` for the picture):

- the producer's process writes `tail`, `room_wanted`, `dropped` and the records behind `tail`;
- the consumer's process writes `head`, `dead`, `forwarded` and each record's `state`.

Guarantees: a record is visible whole or not at all, since storing `tail` (one aligned word) is the
only act that publishes it; a process that dies or stops at any instruction blocks nobody; what the
other side wrote is copied and checked before it is used.  Order is the producer's order.

Not here: waiting (`doorbell`, `inbox`), more than one producer (the caller holds a lock), and the
fence between storing `tail` and reading `sleeping` (`aembus.sender`).
"""

from __future__ import annotations

from typing import Final

from aembus.shm import layout
from aembus.shm.lane_consumer import COUNT_MASK, LaneConsumer
from aembus.shm.lane_producer import LaneProducer
from aembus.shm.lane_record import CorruptLane, Record
from aembus.shm.layout import CURSOR_OFFSET_BITS

__all__ = ["IMPLEMENTATION", "CorruptLane", "LaneConsumer", "LaneCounts", "LaneProducer", "Record"]

IMPLEMENTATION: Final = "python"


class LaneCounts:
    """What a lane's words say about its records, read by anybody (statistics, tests)."""

    __slots__ = (
        "dead_lettered",
        "delivered",
        "dropped",
        "finished",
        "forwarded",
        "queued",
        "sent",
    )

    def __init__(self, words: memoryview, control: int) -> None:
        head = words[(control + layout.LANE_HEAD) // 8]  # head first: it never overtakes tail
        tail = words[(control + layout.LANE_TAIL) // 8]
        self.sent = tail >> CURSOR_OFFSET_BITS
        self.finished = head >> CURSOR_OFFSET_BITS
        self.queued = self.sent - self.finished
        self.dead_lettered = words[(control + layout.LANE_DEAD) // 8] & COUNT_MASK
        self.forwarded = words[(control + layout.LANE_FORWARDED) // 8] & COUNT_MASK
        self.delivered = self.finished - self.dead_lettered - self.forwarded
        self.dropped = words[(control + layout.LANE_DROPPED) // 8]
