"""Holding interruptions off: `with masked:` in the main thread.

Interruptions (`aembus.interruption`) come to a process's main thread alone, so there is one mask a
process.  In any other thread it does nothing: nobody is interrupted there.  Inside of aembus it
guards what is not made to be entered again by its own thread.

Python may raise Ctrl-C in `__exit__` itself, before its first line.  So blocks are remembered by
the frames that they are in, and one whose frame has ended holds nothing off any more.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, final

_SUSPENDABLE: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_ANY_FRAME: Final = 0  # of a block that may be left by another way than by the stack


@final
class Mask:
    """A context manager that may be entered again inside itself.

    pending: something is to be delivered when the last block is left.
    deliver: what is called then; None while nothing interrupts this process.
    """

    __slots__ = ("_blocks", "deliver", "pending")

    def __init__(self) -> None:
        self._blocks: list[tuple[int, int]] = []  # which frame, and where in it
        self.pending = False
        self.deliver: Callable[[], None] | None = None

    @property
    def depth(self) -> int:
        """How many blocks the main thread is in."""
        return len(self._blocks)

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        frame = sys._getframe(1)
        block = (_identity(frame), frame.f_lasti)
        if block[0] != _ANY_FRAME and block in self._blocks:  # it was left all the same
            del self._blocks[self._blocks.index(block) :]
        self._blocks.append(block)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        frame = _identity(sys._getframe(1))
        for place in reversed(range(len(self._blocks))):
            if self._blocks[place][0] == frame:
                del self._blocks[place:]  # what is above was left all the same
                break
        if self.pending and not self._blocks and self.deliver is not None:
            self.deliver()

    def look(self, frame: FrameType | None) -> None:
        """Forget the blocks that were left although `__exit__` did not come to run.

        Args:
            frame: the main thread's.
        """
        running = {_ANY_FRAME}
        while frame is not None:
            running.add(id(frame))
            frame = frame.f_back
        self._blocks = [block for block in self._blocks if block[0] in running]


def _identity(frame: FrameType) -> int:
    return _ANY_FRAME if frame.f_code.co_flags & _SUSPENDABLE else id(frame)


masked: Final = Mask()
