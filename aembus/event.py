"""An event: one registration of one member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

from aembus.job import Job
from aembus.shm.lanes import LaneConsumer, Record

Handler = Callable[..., object]


class Owner(Protocol):
    """Who runs an event's handler: the event_struct."""

    def job(self, record: Record, event: Event) -> Job:
        """Return the job that `record` carries."""


@dataclass(frozen=True, slots=True)
class EventStatistics:
    """What one event's handler did in this process."""

    delivered: int
    failed: int


@final
class Event:
    """One registration of one member; its handler gets it as first argument.

    id: stable across restarts of a named member; 0 until published.
    point: the activation point's name.
    context: yours; aembus never looks at it.
    """

    __slots__ = (
        "_closer",
        "_failed",
        "_owner",
        "_special",
        "backoff",
        "context",
        "delivered",
        "group",
        "handler",
        "id",
        "lane",
        "name",
        "once",
        "point",
        "redeliver",
        "retries",
    )

    def __init__(
        self,
        point: str,
        handler: Handler,
        *,
        name: str,
        group: str | None,
        once: bool,
        redeliver: bool,
        retries: int = 0,
        backoff: float = 1.0,
        context: Any,
        closer: Callable[[Event], None],
    ) -> None:
        self.id = 0
        self.point = point
        self.handler = handler
        self.name = name
        self.group = group
        self.once = once
        self.redeliver = redeliver
        self.retries = retries
        self.backoff = backoff
        self.context = context
        self._closer = closer
        self._owner: Owner | None = None
        self._failed = 0
        self._special: Record | None = None
        # These two are set by the lane that delivers, see LaneConsumer.deliver.
        self.lane: LaneConsumer | None = None
        self.delivered = 0

    @property
    def job(self) -> Job | None:
        """The job that the handler works on; None outside the handler."""
        record = self.record
        if record is None or self._owner is None:
            return None
        return self._owner.job(record, self)

    @property
    def record(self) -> Record | None:
        """The record of `job`."""
        record = None if self.lane is None else self.lane.in_hand
        return self._special if record is None else record

    def close(self) -> None:
        """Take the event off its wait queue for good.

        Jobs that were queued for it go to its group, or to the dead letters.
        """
        self._closer(self)

    def count_failed(self) -> None:
        """Count a job whose handler raised (the event_struct does)."""
        self._failed += 1

    def statistics(self) -> EventStatistics:
        """Return what the handler did so far in this process."""
        return EventStatistics(self.delivered, self._failed)

    def __repr__(self) -> str:
        return f"<Event {self.id} {self.name!r} at {self.point!r}>"
