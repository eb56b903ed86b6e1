"""Latencies in buckets of equal ratio, as words in shared memory.  No I/O.

An octave has 16 buckets, so a bucket is about 5 % wide, whether it stands for microseconds or for
minutes.  The highest value is kept as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_SUB_BITS: Final = 4
_SUB: Final = 1 << _SUB_BITS
BUCKETS: Final = _SUB * (64 - _SUB_BITS + 1)
_MAX: Final = BUCKETS
WORDS: Final = BUCKETS + 1


def add(words: memoryview[int], at: int, value: int) -> None:
    """Count a value (a whole number, 0 or more) in the histogram from index `at` on."""
    shift = value.bit_length() - _SUB_BITS - 1
    if shift > 0:
        words[at + (shift << _SUB_BITS) + (value >> shift)] += 1
    else:
        words[at + value] += 1
    if value > words[at + _MAX]:
        words[at + _MAX] = value


def edges(bucket: int) -> tuple[int, int]:
    """Return the values that a bucket stands for: from the first up to the second, exclusive."""
    shift = max((bucket >> _SUB_BITS) - 1, 0)
    first = bucket - (shift << _SUB_BITS)
    return first << shift, (first + 1) << shift


class Histogram:
    """What was counted, added up over processes."""

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        self.max = 0

    @property
    def total(self) -> int:
        """How many values there are."""
        return sum(self.buckets)

    def merge(self, words: Sequence[int] | memoryview[int], at: int) -> None:
        """Add a histogram that lies in shared memory, from index `at` on."""
        for bucket in range(BUCKETS):
            self.buckets[bucket] += words[at + bucket]
        self.max = max(self.max, words[at + _MAX])

    def quantile(self, share: float) -> float:
        """Return the value that `share` (0 to 1) of the values do not exceed; 0 without any.

        It is the middle of its bucket, so right within 3 %.
        """
        total = self.total
        below = 0
        for bucket, number in enumerate(self.buckets):
            below += number
            if number and below >= share * total:
                low, high = edges(bucket)
                return min((low + high - 1) / 2, self.max)
        return 0.0
