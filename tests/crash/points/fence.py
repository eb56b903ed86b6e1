"""Two processes store and then load, each the word that the other one stores: who misses whom?

That both miss each other is what the fence between a store and a load is there to prevent.  Without
one it happens on a machine with two processors, now and then: so a run proves no fence, but a fence
that is none is found.  ``python -m tests.crash.points.fence ROUNDS [none]`` prints how often.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from typing import Final

from aembus.shm.doorbell import fence

LINE: Final = 16  # words apart: two cache lines
HISTORY: Final = 4096


def nothing() -> None:
    """Stand in for a fence that is none."""


def count_missed(rounds: int, between: Callable[[], None] = fence) -> int:
    """Return in how many rounds both missed the other."""
    memory = mmap.mmap(-1, HISTORY * 8 + 2 * (rounds + 1) + 8)
    words = memoryview(memory)[: HISTORY * 8].cast("Q")
    whole = memoryview(memory)
    children = []
    for me in range(2):
        pid = os.fork()
        if not pid:
            try:
                cpus = sorted(os.sched_getaffinity(0))
                os.sched_setaffinity(0, {cpus[me % len(cpus)]})
                _play(whole, words, me, rounds, between)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    begin = HISTORY * 8
    first = whole[begin : begin + rounds + 1]
    second = whole[begin + rounds + 1 : begin + 2 * (rounds + 1)]
    return sum(a and b for a, b in zip(first, second, strict=True))


def _play(
    whole: memoryview, words: memoryview, me: int, rounds: int, between: Callable[[], None]
) -> None:
    mine, other = me * LINE, (1 - me) * LINE
    ready, other_ready = (4 + me) * LINE, (5 - me) * LINE
    missed = bytearray(rounds + 1)
    for number in range(1, rounds + 1):
        words[ready] = number
        while words[other_ready] < number:
            pass
        words[mine] = number
        between()
        missed[number] = words[other] < number
    begin = HISTORY * 8 + me * (rounds + 1)
    whole[begin : begin + rounds + 1] = missed


if __name__ == "__main__":
    print(count_missed(int(sys.argv[1]), nothing if "none" in sys.argv else fence))
