"""Figures of several rounds: medians, spreads, and ratios pair by pair.  Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the least and the greatest beside it."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values."""
        return cls(statistics.median(values), min(values), max(values))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of what ours is to theirs, each round by itself.

    What slows the machine for some seconds slows both sides of a pair, and falls out of it.
    """
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the `values` lie, which must be sorted."""
    return values[min(len(values) - 1, int(share * len(values)))]
