"""The jobs that their handlers have put into the hands of others (`job.hold`).

`hold` is called by the thread that delivers, inside a handler.  `complete` may be called by any
thread: of those that complete one job, one wins.  What it wants is done by the thread that
delivers (`completed`), since a lane's records have one consumer; only the word DONE is stored at
once, so that nobody gets the job again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from aembus.errors import BusBroken, BusClosed, JobNotInHand
from aembus.shm.lanes import LaneConsumer, Record

E = TypeVar("E")

# Where a record begins, which is never used again in its lane, and which attempt at it that is.
_Key = tuple[LaneConsumer, int, int]


class Completed(NamedTuple, Generic[E]):
    """A held job that was completed; failed: why it failed, None if it is done."""

    record: Record
    event: E
    failed: BaseException | None


class HeldJobs(Generic[E]):
    """The held jobs of one member.

    Args:
        check: raises if the bus is closed, broken, or the parent process's.
        wake: makes the thread that delivers look at `completed`.
    """

    def __init__(self, check: Callable[[], object], wake: Callable[[], None]) -> None:
        self._check = check
        self._wake = wake
        self._held: dict[_Key, tuple[Record, E]] = {}
        self._last: _Key | None = None  # the last that was held
        self.completed: deque[Completed[E]] = deque()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def events(self) -> list[E]:
        """Whose jobs are held, once for each; any thread may ask."""
        return [event for _, event in list(self._held.values())]

    def hold(self, record: Record, event: E) -> None:
        """Hold the job in hand.  Idempotent, also if it was completed since."""
        key = _key(record)
        if key != self._last:
            self._last = key
            self._held[key] = (record, event)
            record.lane.hold(record)

    def complete(
        self,
        record: Record,
        attempt: int,
        failed: BaseException | None,
        answer: Callable[[E], bool] | None = None,
    ) -> None:
        """Take what a held job came to; see Job.done and Job.fail.

        Args:
            attempt: of which it came to that: one that has failed says nothing about the next.
            answer: called before the job is done, so that a kill in between fails a call; returns
                False if it could not be sent any more.
        """
        self._check()
        key = record.lane, record.begin, attempt
        held = self._held.pop(key, None)  # one step: of several threads one gets it
        if held is None:
            raise JobNotInHand(
                "the job was completed before, or its handler did not hold it (job.hold()), "
                f"origin={record.origin_slot}, sequence={record.sequence}"
            )
        record, event = held
        try:
            if failed is None:
                self._mark_done(record, event, answer)
        except BaseException:  # Ctrl-C, too: the job is in hand still, and may be completed
            self._held[key] = held
            raise
        self.completed.append(Completed(record, event, failed))
        self._wake()

    def _mark_done(self, record: Record, event: E, answer: Callable[[E], bool] | None) -> None:
        if answer is not None and not answer(event):
            raise BusBroken("the supervisor is gone, so the job stays in hand")
        try:
            record.lane.mark_done(record)
        except ValueError as error:  # another thread is closing the bus
            raise BusClosed("the bus was closed before the job was completed") from error

    # --- what the delivery asks -------------------------------------------------------------------

    def begin(self) -> None:
        """Forget what was held last: a handler is about to run, perhaps for the same record."""
        self._last = None

    def was_held(self, record: Record) -> bool:
        """Say whether the handler that has run last has held its job, completed since or not."""
        return self._last == _key(record)

    def release(self, record: Record) -> bool:
        """Hold the job no longer, its handler has raised; False if it was completed before."""
        return self._held.pop(_key(record), None) is not None or not self.was_held(record)


def _key(record: Record) -> _Key:
    return record.lane, record.begin, record.attempts
