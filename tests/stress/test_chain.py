from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aembus.stress import chain
from aembus.stress.chain import ChainCounts

AT = 2  # some other words lie before it


def new_words() -> memoryview[int]:
    """Return words with room for a chain."""
    return memoryview(bytearray(8 * (AT + chain.WORDS))).cast("Q")


def counts_after(numbers: list[int]) -> ChainCounts:
    """Return what a chain says after these numbers."""
    words = new_words()
    for number in numbers:
        chain.record(words, AT, number, again=False)
    assert words[0] == words[1] == 0
    return chain.counts(words, AT)


def counts_of_model(numbers: list[int]) -> ChainCounts:
    """The same, with all the memory in the world."""
    seen: set[int] = set()
    late = twice = 0
    for number in numbers:
        twice += number in seen
        late += number not in seen and number < max(seen, default=0)
        seen.add(number)
    last = max(seen, default=0)
    return ChainCounts(last, last - len(seen), late, twice)


def test_in_order_nothing_is_wrong() -> None:
    """The last number is the number of jobs."""
    counts = counts_after([*range(1, 1001)])
    assert counts == ChainCounts(last=1000)
    assert counts.distinct == 1000


def test_what_never_comes_is_missing() -> None:
    """Also before the first one that does."""
    assert counts_after([3, 4, 8]) == ChainCounts(last=8, missing=5)


def test_what_comes_late_is_late_and_not_missing() -> None:
    """Also if it was not alone."""
    assert counts_after([1, 4, 3, 7, 2, 6, 5]) == ChainCounts(last=7, late=4)


def test_what_comes_twice_is_counted_each_time() -> None:
    """At once, later, and after it came late."""
    assert counts_after([1, 2, 2, 3, 1, 5, 4, 4]) == ChainCounts(last=5, late=1, twice=3)


@given(st.lists(st.integers(1, chain.WINDOW - 2), max_size=100))
def test_any_sequence_within_the_window_is_judged_right(numbers: list[int]) -> None:
    """As a model does that forgets nothing."""
    assert counts_after(numbers) == counts_of_model(numbers)


def test_a_gap_of_any_length_is_counted() -> None:
    """Beyond the window it is only forgotten which numbers are missing."""
    counts = counts_after([1, 1000, 2, 999, *range(1001, 3001)])
    assert counts == ChainCounts(last=3000, missing=997, late=1, twice=1)


def test_a_repetition_by_a_replacement_is_nothing() -> None:
    """It cannot know whether its predecessor had come so far."""
    words = new_words()
    for number, again in ((1, False), (1, True), (2, True), (2, True), (3, False)):
        chain.record(words, AT, number, again=again)
    assert chain.counts(words, AT) == ChainCounts(last=3)


def test_a_new_beginning_keeps_the_counts() -> None:
    """What is missing stays so; the numbers begin at 1."""
    words = new_words()
    for number in (1, 3, 6, 5, 5):
        chain.record(words, AT, number, again=False)
    chain.restart(words, AT)
    for number in (1, 2, 4):
        chain.record(words, AT, number, again=False)
    assert chain.counts(words, AT) == ChainCounts(last=4, missing=3, late=1, twice=1)
