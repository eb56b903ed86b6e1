"""What a process did so far: one event, its event_struct, its bus object.  All begin at 0."""

from __future__ import annotations

from dataclasses import dataclass

from aembus.stages import Timings


@dataclass(frozen=True, slots=True)
class EventStatistics:
    """What one event's handler did in this process.

    refused: jobs that its constructor or handler refused; they are neither of the others.
    expired: jobs that were too old (`ttl`) when their turn came, and did not get to the handler.
    timings: of its stages; None if it has neither constructor nor destructor.
    """

    delivered: int
    failed: int
    refused: int = 0
    timings: Timings | None = None
    expired: int = 0


@dataclass(frozen=True, slots=True)
class EventStructStatistics:
    """What this member's event_struct did in this process."""

    events: int
    delivered: int
    failed: int
    dead_lettered: int
    held: int = 0
    retrying: int = 0
    refused: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True)
class BusStatistics:
    """What this process did on its bus so far.

    events: by "POINT NAME"; a further one, that differs by its group, by "POINT NAME GROUP".
    late_replies: answers that came when nobody waited for them any more.
    dropped: jobs that its place's events went without (``full="drop"``), since that was made.
    """

    event_struct: EventStructStatistics
    events: dict[str, EventStatistics]
    late_replies: int
    dropped: int = 0
