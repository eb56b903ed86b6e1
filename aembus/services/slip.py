"""How late things were: a histogram of growing buckets.  Pure.

A bucket is a quarter of a power of two wide, so a percentile is right to 25 %, whatever its size,
and a histogram takes a few hundred numbers at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

QUARTER_BITS: Final = 2


class SlipHistogram:
    """Counts of slips, in microseconds.

    Args:
        counts: by bucket, as `counts` of another one has them.
        max_us: the longest.
    """

    def __init__(self, counts: Mapping[int, int] | None = None, max_us: int = 0) -> None:
        self.counts = dict(counts or {})
        self.max_us = max_us

    def add(self, slip_us: int, count: int = 1) -> None:
        """Count that `count` times something was `slip_us` late; what was early was in time."""
        slip_us = max(slip_us, 0)
        if slip_us > self.max_us:
            self.max_us = slip_us
        shift = max(slip_us.bit_length() - QUARTER_BITS - 1, 0)
        bucket = (shift << QUARTER_BITS) + (slip_us >> shift)
        self.counts[bucket] = self.counts.get(bucket, 0) + count

    def percentile_us(self, percent: float) -> int:
        """Return the slip that so many percent did not exceed, rounded up to its bucket's end."""
        wanted = sum(self.counts.values()) * percent / 100
        for bucket in sorted(self.counts):
            wanted -= self.counts[bucket]
            if wanted <= 0:
                shift = max((bucket >> QUARTER_BITS) - 1, 0)
                end = (bucket - (shift << QUARTER_BITS) + 1 << shift) - 1
                return min(end, self.max_us)
        return self.max_us
