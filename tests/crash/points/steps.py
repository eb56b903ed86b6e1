"""The points of one act: every bytecode of aembus that it runs, or the named points in C.

Nothing of this is in aembus: bytecodes are seen by tracing, and the named points are macros that
only a build with -DAEMBUS_KILLPOINTS compiles in.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

import aembus

_PACKAGE: Final = f"{Path(aembus.__file__).parent}{os.sep}"
# The handler and the notes around it count too: a kill in the middle of a handler is one more.
_HANDLER: Final = frozenset(("_handle", "note"))

At = Callable[[int, str], object]


class Layer(Protocol):
    """One kind of points."""

    def run(self, act: Callable[[], object], at: At) -> int:
        """Run `act`, calling ``at(number, where)`` at each point; return how many there were."""

    def run_to(self, act: Callable[[], object], number: int, signal_number: int) -> None:
        """Run `act` and send this process a signal at the point of this number (0: nowhere)."""


class Bytecodes:
    """Every bytecode of aembus's Python code."""

    def run(self, act: Callable[[], object], at: At) -> int:
        """See Layer."""
        tracer = _Tracer(lambda number, frame: at(number, where(frame)))
        tracer.trace(act)
        return tracer.number

    def run_to(self, act: Callable[[], object], number: int, signal_number: int) -> None:
        """See Layer."""
        if not number:
            act()
            return

        def at(reached: int, frame: FrameType) -> None:
            if reached == number:
                os.kill(os.getpid(), signal_number)

        _Tracer(at).trace(act)


class _Tracer:
    def __init__(self, at: Callable[[int, FrameType], object]) -> None:
        self._at = at
        self.number = 0

    def trace(self, act: Callable[[], object]) -> None:
        sys._getframe().f_trace_opcodes = True  # Python 3.12 counts bytecodes after that only
        sys.settrace(self._trace_call)
        try:
            act()
        finally:
            sys.settrace(None)

    def _trace_call(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if not (code.co_filename.startswith(_PACKAGE) or code.co_name in _HANDLER):
            return None
        frame.f_trace = self._trace_opcode  # here already: Python 3.13 wants it before the next
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._trace_opcode

    def _trace_opcode(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode":
            self.number += 1
            self._at(self.number, frame)
        return self._trace_opcode


def where(frame: FrameType) -> str:
    """Return the place of a frame's next bytecode."""
    code = frame.f_code
    file = os.path.basename(code.co_filename)
    return f"{file}:{frame.f_lineno} {code.co_qualname} +{frame.f_lasti}"


_Called: Final = ctypes.PYFUNCTYPE(None, ctypes.c_uint64, ctypes.c_char_p)


class NamedInC:
    """The named points of the lane in C, in a build that has them (see `copy_with_points`)."""

    def __init__(self) -> None:
        from aembus.shm import _lane

        library = ctypes.PyDLL(_lane.__file__)
        self._begin = library.killpoints_begin
        self._begin.argtypes, self._begin.restype = (ctypes.c_uint64, ctypes.c_int, _Called), None
        self._end = library.killpoints_end
        self._end.restype = ctypes.c_uint64

    def run(self, act: Callable[[], object], at: At) -> int:
        """See Layer."""
        called = _Called(lambda number, name: at(number, name.decode()))
        self._begin(0, 0, called)
        act()
        return int(self._end())

    def run_to(self, act: Callable[[], object], number: int, signal_number: int) -> None:
        """See Layer."""
        self._begin(number, signal_number, _Called())
        act()
        self._end()


KILL: Final = int(signal.SIGKILL)
STOP: Final = int(signal.SIGSTOP)
