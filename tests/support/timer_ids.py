"""Ids of timers, as tests of the wheel write and read them."""

from __future__ import annotations

from aembus.services import wheel

MINUTE = 60_000  # of ticks that are milliseconds
HOUR = 60 * MINUTE


def number(index: int, generation: int = 1) -> int:
    """Return a timer's id."""
    return wheel.timer_id(index, generation)


def ids(batches: list[tuple[int, list[int]]]) -> list[int]:
    """Return the ids that `advance` has returned, in order."""
    return [expired for _, batch in batches for expired in batch]


def indices(batches: list[tuple[int, list[int]]]) -> list[int]:
    """Return the indices of the ids that `advance` has returned, in order."""
    return [expired >> wheel.GENERATION_BITS for expired in ids(batches)]
