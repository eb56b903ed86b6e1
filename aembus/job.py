"""A job, as its handler sees it."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn, Protocol, final

from aembus.errors import JobFailed
from aembus.shm.lanes import Record


class Identity(NamedTuple):
    """What tells a job from every other on its bus: the lane, and its number there."""

    slot: int
    lane_class: int
    origin_slot: int
    sequence: int


class Keeper(Protocol):
    """Who keeps held jobs: the member's event_struct."""

    def hold(self, record: Record, event: Any) -> None:
        """See Job.hold."""

    def complete(
        self, record: Record, attempt: int, failed: BaseException | None, result: Any = None
    ) -> None:
        """See Job.done and Job.fail."""


@final
class Job:
    """The job that a handler works on (`event.job`).

    origin: (slot, incarnation) of the member that activated.
    activated_ns: when, on CLOCK_MONOTONIC.
    attempt: 1, or more if earlier attempts failed or did not survive their worker.
    key: the hash of the key given, 0 without one.
    data: in a subscription, what was activated, as a tuple (of a typed point: the instance); a
        handler gets it as arguments, and finds None here.

    A job is done when its handler returns, unless the handler has called `hold`.
    """

    __slots__ = (
        "_event",
        "_keeper",
        "_record",
        "activated_ns",
        "attempt",
        "data",
        "identity",
        "key",
        "origin",
    )

    def __init__(
        self, record: Record, slot: int, lane_class: int, event: Any, keeper: Keeper
    ) -> None:
        self.origin = (record.origin_slot, record.origin_incarnation)
        self.activated_ns = record.activated_ns
        self.attempt = record.attempts
        self.key = record.key_hash
        self.identity = Identity(slot, lane_class, record.origin_slot, record.sequence)
        self.data: Any = None
        self._record = record
        self._event = event
        self._keeper = keeper

    def hold(self) -> None:
        """Keep the job in hand when the handler returns, until `done` or `fail`.

        Only its handler may call this, in its thread.  Idempotent.  From then on no
        handler_timeout_s concerns this job.  When the handler has returned, other jobs are
        delivered, also later ones of the same producer and key.  A held job is in hand: if its
        worker dies it comes again with `attempt` + 1 (or, with redeliver=False, becomes a dead
        letter), and it takes its room in the lane, so that a producer whose lane is full of held
        jobs waits.  A bus that stops waits for held jobs as long as for queued ones; then they
        become dead letters, as they do at once when their member closes its bus.

        Raises: JobNotInHand if the handler has returned.
        """
        self._keeper.hold(self._record, self._event)

    def done(self, result: Any = None) -> None:
        """Complete a held job; from any thread of its process.

        Args:
            result: the answer, if somebody has called and waits; must fit msgpack.

        Does not block, unless the caller's reply lane is full: then until there is room, or the
        caller does not wait any more.  When it has returned, the job comes to nobody again, whoever
        dies.  Its room is given back when the bus runs next.

        Raises: JobNotInHand if it was completed before, or never held, or if this attempt at it has
        failed before; BusClosed, BusBroken, ForkedBusError; nothing has changed then.
        """
        self._keeper.complete(self._record, self.attempt, None, result)

    def fail(self, reason: str) -> None:
        """Complete a held job as if its handler had raised; from any thread of its process.

        It comes again if its event has `retries` left, else it becomes a dead letter.  Does not
        block: that happens when the bus runs next.

        Raises: as `done` does.
        """
        self._keeper.complete(self._record, self.attempt, JobFailed(reason))

    def raised(self, error: BaseException) -> None:
        """Complete a held job with what its handler raised (for who awaits the handler)."""
        self._keeper.complete(self._record, self.attempt, error)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a job can be completed by its own process alone, so it is not sent to another one; "
            f"send what your code there needs, and have it answer, job={self!r}"
        )

    def __repr__(self) -> str:
        return (
            f"<Job {tuple(self.identity)} attempt={self.attempt} origin={self.origin} "
            f"key={self.key}>"
        )
