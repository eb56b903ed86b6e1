"""An event: one registration of one member."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, final

from aembus.callchain import Chain
from aembus.job import Job
from aembus.options import EventOptions
from aembus.shm.lanes import LaneConsumer, Record
from aembus.stages import Stages
from aembus.statistics import EventStatistics

Handler = Callable[..., object]


class Control(Protocol):
    """Who takes an event off its wait queue, and puts it back: the member's registrations."""

    def stop(self, event: Event) -> None:
        """See Event.stop."""

    def start(self, event: Event) -> None:
        """See Event.start."""

    def close(self, event: Event) -> None:
        """See Event.close."""

    def children(self, event: Event) -> tuple[Child, ...]:
        """See Event.children."""


class Child(NamedTuple):
    """A process that runs the handler of an event with spawn=True.

    begun_ns: when it was born, on CLOCK_MONOTONIC.
    """

    pid: int
    begun_ns: int


class Launcher(Protocol):
    """Who has an event's handler run in a process of its own: the spawn host."""

    def launch(self, record: Record, event: Event) -> None:
        """Begin the job, now or when there may be one child more."""


class Owner(Protocol):
    """Who runs an event's handler: the event_struct."""

    def job(self, record: Record, event: Event) -> Job:
        """Return the job that `record` carries."""

    def call_waiters(self) -> tuple[Chain, bool]:
        """See EventStruct.call_waiters."""


@dataclass(slots=True)
class Awaited:
    """What an ``async def`` handler works on, also while it awaits something.

    chain: who waits for it, if it is a call.
    alone: its member delivers nothing meanwhile.
    ended: it has; what it has started may run on, and nobody waits for that.
    """

    event: Event
    record: Record
    chain: Chain
    alone: bool
    ended: bool = False


# Where a coroutine of a handler runs, and in the tasks that it starts.
awaited: Final[ContextVar[Awaited | None]] = ContextVar("awaited", default=None)


@final
class Event:
    """One registration of one member; its handler gets it as first argument.

    id: stable across restarts of a named member; 0 until published.
    point: the activation point's name.
    handler: what is delivered to; Stages if there is a constructor or destructor.
    options: what it was registered with.
    context: yours; aembus never looks at it.
    stopped: it is off its wait queue, see `stop`.
    """

    __slots__ = (
        "_control",
        "_expired",
        "_failed",
        "_owner",
        "_refused",
        "_special",
        "context",
        "delivered",
        "handler",
        "id",
        "lane",
        "launcher",
        "once",
        "options",
        "point",
        "recipe",
        "stopped",
    )

    def __init__(
        self,
        point: str,
        handler: Handler,
        options: EventOptions,
        *,
        context: Any = None,
        control: Control | None = None,
        recipe: list[Any] | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self.id = 0
        self.point = point
        self.handler = handler
        self.options = options
        self.once = options.once  # at hand for the lane that delivers
        self.context = context
        self.stopped = False
        self.recipe = recipe
        self.launcher = launcher
        self._control = control
        self._owner: Owner | None = None
        self._failed = 0
        self._refused = 0
        self._expired = 0
        self._special: Record | None = None
        # These two are set by the lane that delivers, see LaneConsumer.deliver.
        self.lane: LaneConsumer | None = None
        self.delivered = 0

    @property
    def name(self) -> str:
        """What tells it from others of its member at the same point."""
        return self.options.name

    @property
    def group(self) -> str | None:
        """With whom it shares the activations; None: it gets each."""
        return self.options.group

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
        if record is None:
            record = self._special
        if record is None and (work := awaited.get()) is not None:
            if work.event is self and not work.ended:
                record = work.record
        return record

    def call_chain(self) -> Chain:
        """Return who waits for the handler that runs now, if its job is a call."""
        return self._owner.call_waiters()[0] if self._owner is not None else ()

    def stop(self) -> None:
        """Take the event off its wait queue until `start`.  Idempotent.

        Jobs that were queued before are still delivered; an activation that begins after this has
        returned does not concern the event (of its group somebody else gets the job).  It is this
        process that stops the event: its replacement begins with what its `main` registers, and
        stops it again if that is wanted.  Right behind `register` in a worker's `main`, the event
        is on no wait queue from the beginning, and gets what waits for it in the inbox.  With
        reconnect=True it stays stopped on the next supervisor's bus.

        Blocks until the registry is published.  Raises: RegistrationError if it was closed,
        BusBroken, BusClosed; nothing has changed then.
        """
        if self._control is not None:  # else it is on none: the one that stands for timers
            self._control.stop(self)

    def start(self) -> None:
        """Put a stopped event back on its wait queue, with the same id.  Idempotent.

        In its group the keys that were its own are its own again.  Activations that begin after
        this has returned concern it.

        Blocks until the registry is published.  Raises: as `stop` does.
        """
        if self._control is not None:
            self._control.start(self)

    def close(self) -> None:
        """Take the event off its wait queue for good.

        Jobs that were queued for it go to its group, or to the dead letters.

        Blocks until the registry is published.  Raises: BusBroken, BusClosed, ControlError; its
        handler runs no more in either case, and the next supervisor does not hear of it.
        """
        if self._control is not None:
            self._control.close(self)

    @property
    def children(self) -> tuple[Child, ...]:
        """The processes that run the handler of an event with spawn=True now.

        Asks the supervisor, which asks the spawn host.  Raises: BusBroken, BusClosed, and
        ControlError if the spawn host does not answer.
        """
        if self.recipe is None or self._control is None:
            return ()
        return self._control.children(self)

    def work_on(self, record: Record) -> None:
        """Take up the record of `job`, where no lane delivers it."""
        self._special = record

    def count_failed(self) -> None:
        """Count a job whose handler raised (the event_struct does)."""
        self._failed += 1

    def count_refused(self) -> None:
        """Count a job that was refused (the event_struct does)."""
        self._refused += 1

    def count_expired(self) -> None:
        """Count a job that was too old (the event_struct does)."""
        self._expired += 1

    def statistics(self) -> EventStatistics:
        """Return what the handler did so far in this process."""
        stages = getattr(self.handler, "function", self.handler)  # if it is an `async def`
        timings = stages.timings() if isinstance(stages, Stages) else None
        return EventStatistics(self.delivered, self._failed, self._refused, timings, self._expired)

    def __repr__(self) -> str:
        return f"<Event {self.id} {self.name!r} at {self.point!r}>"
