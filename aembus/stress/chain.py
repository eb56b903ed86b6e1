"""One chain of sequence numbers, checked as they arrive; its state is five words in shared memory.

In order costs one load and one store.  The last number and how many are missing before it stand in
one word, so that whoever is killed between two stores leaves a state that its replacement can go on
with.  Numbers that were missing are remembered for a while, to tell one that comes late (it was
overtaken) from one that comes twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WORDS: Final = 5
_MISSING_FIRST: Final = 1
_MISSING_BITS: Final = 2
_LATE: Final = 3
_TWICE: Final = 4

LAST_BITS: Final = 44
LAST_MASK: Final = (1 << LAST_BITS) - 1
MISSING_MAX: Final = (1 << 64 - LAST_BITS) - 1
WINDOW: Final = 64  # how many missing numbers are remembered
_WINDOW_MASK: Final = (1 << WINDOW) - 1


@dataclass(frozen=True, slots=True)
class ChainCounts:
    """What a chain says.

    last: the highest number that came.
    missing: how many below it never came.
    late: how many came after a higher one.
    twice: how often one came that had come before.
    """

    last: int = 0
    missing: int = 0
    late: int = 0
    twice: int = 0

    @property
    def distinct(self) -> int:
        """How many different numbers came."""
        return self.last - self.missing


def record(words: memoryview[int], at: int, number: int, *, again: bool) -> None:
    """Take note that `number` (1, 2, 3 ...) came.

    Args:
        words: where the chain is, from index `at` on.
        again: it may have been noted by a process that was killed right after that.
    """
    word = words[at]
    last = word & LAST_MASK
    if number == last + 1:
        words[at] = word + 1
    elif number > last:
        _record_gap(words, at, last, number)
    elif not (again and number == last):
        _record_old(words, at, number)


def _record_gap(words: memoryview[int], at: int, last: int, number: int) -> None:
    missing = number - last - 1
    first, bits = words[at + _MISSING_FIRST], words[at + _MISSING_BITS]
    place = last + 1 - first
    if not bits or place >= WINDOW:  # nothing is remembered, or what is so old that it must go
        first, bits, place = last + 1, 0, 0
    bits |= ((1 << min(missing, WINDOW)) - 1) << place & _WINDOW_MASK
    words[at + _MISSING_FIRST] = first
    words[at + _MISSING_BITS] = bits
    known = words[at] >> LAST_BITS
    words[at] = min(known + missing, MISSING_MAX) << LAST_BITS | number


def _record_old(words: memoryview[int], at: int, number: int) -> None:
    place = number - words[at + _MISSING_FIRST]
    if 0 <= place < WINDOW and words[at + _MISSING_BITS] >> place & 1:
        words[at + _MISSING_BITS] &= ~(1 << place)
        words[at] -= 1 << LAST_BITS
        words[at + _LATE] += 1
    else:
        words[at + _TWICE] += 1


def restart(words: memoryview[int], at: int) -> None:
    """Begin again at number 1; what was counted stays counted."""
    words[at + _MISSING_BITS] = 0
    words[at] = words[at] & ~LAST_MASK


def counts(words: memoryview[int], at: int) -> ChainCounts:
    """Return what the chain at index `at` says."""
    word = words[at]
    return ChainCounts(word & LAST_MASK, word >> LAST_BITS, words[at + _LATE], words[at + _TWICE])
