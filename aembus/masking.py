"""Holding interruptions off: `with masked:` in the main thread.

Interruptions (`aembus.interruption`) come to a process's main thread alone, so there is one mask a
process.  In any other thread it does nothing: nobody is interrupted there.  Inside of aembus it
guards what is not made to be entered again by its own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, final


@final
class Mask:
    """A context manager that may be entered again inside itself.

    depth: how many blocks the main thread is in.
    pending: something is to be delivered when the last of them is left.
    deliver: what is called then; None while nothing interrupts this process.
    """

    __slots__ = ("deliver", "depth", "pending")

    def __init__(self) -> None:
        self.depth = 0
        self.pending = False
        self.deliver: Callable[[], None] | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.depth -= 1
        if self.pending and not self.depth and self.deliver is not None:
            self.deliver()


masked: Final = Mask()
