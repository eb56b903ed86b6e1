"""The points of the control plane: every line of aembus that a process runs, in all its threads.

A point is a line and how often it was passed.  Seen by tracing; nothing of this is in aembus.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import aembus

_PACKAGE: Final = f"{Path(aembus.__file__).parent}{os.sep}"


class Lines:
    """Sees each line of aembus's code before it runs.

    Args:
        at: called with the place, ``file:line function``, and how often it was passed.
    """

    def __init__(self, at: Callable[[str, int], object]) -> None:
        self._at = at
        self._passed: dict[str, int] = {}

    def begin(self) -> None:
        """Trace this thread, and those that it will start."""
        threading.settrace(self._trace_call)
        sys.settrace(self._trace_call)

    def _trace_call(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        return self._trace_line

    def _trace_line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            file = frame.f_code.co_filename.removeprefix(_PACKAGE)
            place = f"{file}:{frame.f_lineno} {frame.f_code.co_qualname}"
            passed = self._passed[place] = self._passed.get(place, 0) + 1
            self._at(place, passed)
        return self._trace_line


def kill_at(place: str, passing: int) -> None:
    """Have this process killed when it comes by a place for the n-th time."""

    def at(reached: str, passed: int) -> None:
        if passed == passing and reached == place:
            os.kill(os.getpid(), signal.SIGKILL)

    Lines(at).begin()


def record(file: Path) -> None:
    """Have this process append to a file each place that it comes by for the first time."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def at(place: str, passed: int) -> None:
        if passed == 1:
            os.write(descriptor, f"{place}\n".encode())

    Lines(at).begin()
