"""Steps of several threads in one order: what runs at once in a test runs in turn.

    sequencer = Sequencer()

    def one():                          def two():
        with sequencer(0): ...              with sequencer(1): ...
        with sequencer(2): ...

Each block waits until those with lower numbers are left.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

WAIT_S_MAX: Final = 30.0


class Sequencer:
    """Numbered blocks that are entered one after the other, from 0 on, each number once."""

    def __init__(self, timeout_s: float = WAIT_S_MAX) -> None:
        self._timeout_s = timeout_s
        self._next = 0
        self._taken: set[int] = set()
        self._changed = threading.Condition()
        self._failed = False

    @contextlib.contextmanager
    def __call__(self, number: int) -> Iterator[None]:
        """Block until all blocks with lower numbers are left, then run this one.

        Raises: RuntimeError if the number was taken, if an earlier block raised, or if those
        before do not come in time: then the order cannot be kept, and everybody is told.
        """
        with self._changed:
            if number in self._taken or number < 0:
                raise RuntimeError(f"each number from 0 on is one block's, number={number}")
            self._taken.add(number)
            in_time = self._changed.wait_for(
                lambda: self._failed or self._next == number, self._timeout_s
            )
            if self._failed or not in_time:
                self._fail()
                raise RuntimeError(
                    "the blocks before did not end well, "
                    f"number={number}, waited for={self._next}, timeout_s={self._timeout_s}"
                )
        try:
            yield
        except BaseException:
            with self._changed:
                self._fail()
            raise
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def _fail(self) -> None:
        self._failed = True
        self._changed.notify_all()
