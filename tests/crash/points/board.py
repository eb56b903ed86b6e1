"""What the processes of one life of a bus tell each other and the helper, in shared memory."""

from __future__ import annotations

import mmap
from typing import Final

JOBS_MAX: Final = 256
_WORDS: Final = 8


class Board:
    """A few words, and a mark for each job that was handled; one writer each."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, 8 * _WORDS + 2 * JOBS_MAX))
        self._words = self._memory.cast("Q")

    def clear(self) -> None:
        """Begin anew."""
        self._memory[:] = bytes(len(self._memory))

    def mark(self, who: int, number: int) -> None:
        """Note that handler `who` (0 or 1) has had a job."""
        self._memory[8 * _WORDS + who * JOBS_MAX + number] += 1

    def handled(self) -> list[tuple[int, int]]:
        """Return how often each job was handled by each of both."""
        first = self._memory[8 * _WORDS : 8 * _WORDS + JOBS_MAX]
        second = self._memory[8 * _WORDS + JOBS_MAX :]
        return list(zip(first, second, strict=True))

    @property
    def up(self) -> bool:
        """Whether the survivor has registered."""
        return bool(self._words[0])

    @up.setter
    def up(self, value: bool) -> None:
        self._words[0] = value

    @property
    def over(self) -> bool:
        """Whether the survivor is to leave."""
        return bool(self._words[1])

    @over.setter
    def over(self, value: bool) -> None:
        self._words[1] = value

    @property
    def sent(self) -> int:
        """How many jobs the visitor knows to be accepted."""
        return self._words[2]

    @sent.setter
    def sent(self, value: int) -> None:
        self._words[2] = value
