from __future__ import annotations

import itertools
import random

import pytest

from aembus.stress import histogram
from aembus.stress.histogram import BUCKETS, Histogram

AT = 3


def histogram_of(values: list[int]) -> Histogram:
    """Return a histogram that went through shared memory."""
    words = memoryview(bytearray(8 * (AT + histogram.WORDS))).cast("Q")
    for value in values:
        histogram.add(words, AT, value)
    found = Histogram()
    found.merge(words, AT)
    return found


def test_buckets_lie_side_by_side_and_cover_every_word() -> None:
    """No value falls between two, or outside of all."""
    edges = [histogram.edges(bucket) for bucket in range(BUCKETS)]
    assert edges[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))
    assert edges[-1][1] == 1 << 64


@pytest.mark.parametrize("value", [0, 1, 15, 16, 17, 31, 32, 33, 1000, 10**9, (1 << 64) - 1])
def test_a_value_is_in_its_bucket(value: int) -> None:
    """And the bucket is narrow."""
    (bucket,) = [b for b, number in enumerate(histogram_of([value]).buckets) if number]
    low, high = histogram.edges(bucket)
    assert low <= value < high
    assert high - low <= max(low / 16, 1)


def test_quantiles_are_right_within_a_bucket() -> None:
    """Compared with the sorted values; the highest is exact."""
    numbers = random.Random(1)
    values = sorted(int(numbers.lognormvariate(12, 2)) for _ in range(5000))
    found = histogram_of(values)
    assert found.total == len(values)
    assert found.max == values[-1]
    assert found.quantile(1.0) <= values[-1]
    for share in (0.01, 0.5, 0.99, 0.999):
        value = values[int(share * len(values)) - 1]
        assert found.quantile(share) == pytest.approx(value, rel=0.07)


def test_without_values_there_are_no_latencies() -> None:
    """Nothing is 0, rather than an error at the end of a run that delivered nothing."""
    assert histogram_of([]).quantile(0.5) == 0


def test_histograms_add_up() -> None:
    """Those of several workers become one."""
    words = memoryview(bytearray(8 * histogram.WORDS)).cast("Q")
    histogram.add(words, 0, 7)
    found = histogram_of([5, 100])
    found.merge(words, 0)
    assert (found.total, found.max) == (3, 100)
