"""Something that happens at the n-th bytecode of the code under test."""

from __future__ import annotations

import _thread
import contextlib
import functools
import operator
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import aembus

PACKAGE: Final = str(Path(aembus.__file__).parent)


class At:
    """Counts the bytecodes that run in aembus inside the block, and acts before some of them.

    Args:
        acts: what to do, by the bytecode's number, from 1; what one raises, the code under test
            sees.
    """

    def __init__(self, acts: dict[int, Callable[[], object]]) -> None:
        self._acts = dict(acts)
        self._kept = acts  # an Arrival must outlive the frame that calls it
        self._number = 0
        self.where: list[str] = []  # files, lines and offsets of the bytecodes acted before

    @property
    def happened(self) -> bool:
        """Whether there were so many bytecodes."""
        return not self._acts

    def __enter__(self) -> Self:
        self._before: Any = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 counts bytecodes after that only
        sys.settrace(self._trace_call)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.settrace(self._before)

    def _trace_call(self, frame: FrameType, event: str, arg: object) -> Any:
        if self.happened or not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace = self._trace_opcode  # here already: Python 3.13 wants it before the next
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._trace_opcode

    def _trace_opcode(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode" and self._acts:
            self._number += 1
            act = self._acts.pop(self._number, None)
            if act is not None:
                file = Path(frame.f_code.co_filename).name
                name, line, offset = frame.f_code.co_name, frame.f_lineno, frame.f_lasti
                self.where.append(f"{file}:{line} {name} {offset}")
                if not self._acts:
                    sys.settrace(None)
                kept = act()  # noqa: F841  # until this function has returned, see Arrival
        return self._trace_opcode


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Leave out what runs inside the block: the other side's code."""
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)


class Arrival:
    """Makes a signal arrive right after the tracing function that calls this.

    Python runs a signal's handler when the interpreter next looks for signals, which it does at
    certain bytecodes only.  So the signal must come in between two bytecodes of the code under
    test, but not while the tracing function runs, which would take it for itself.  It comes when
    what this returns is freed: as the last thing that the tracing function's frame does.
    """

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self._reference: _Reference | None = None

    def __call__(self) -> object:
        token = _Token()
        self._reference = _Reference(token, operator.methodcaller("arrive"))
        self._reference.arrive = functools.partial(_thread.interrupt_main, self._number)
        return token


class _Token:
    pass


class _Reference(weakref.ref[_Token]):
    arrive: Callable[[], None]


@contextlib.contextmanager
def handler(number: signal.Signals, run: Callable[[], object]) -> Iterator[None]:
    """Have `run` called by Python's handler of a signal."""
    before = signal.signal(number, lambda number, frame: run())
    try:
        yield
    finally:
        signal.signal(number, before)


def interrupt() -> None:
    """Do what Python's handler of Ctrl-C does."""
    raise KeyboardInterrupt


def every_ctrl_c(run: Callable[[At], object]) -> int:
    """Call `run` with a Ctrl-C that arrives at bytecode 1, 2, 3 ...; return how many there were.

    It arrives as another signal: an interrupt that comes too late must not end the tests.
    """
    with handler(signal.SIGUSR1, interrupt):
        return every_bytecode(lambda number: At({number: Arrival(signal.SIGUSR1)}), run)


def every_handler(run: Callable[[At], object], handle: Callable[[], object]) -> int:
    """Like `every_ctrl_c`, but have `handle` run by a signal handler at each bytecode.

    It runs right there, whether Python would look for signals there or not.
    """
    with handler(signal.SIGUSR1, handle):
        return every_bytecode(
            lambda number: At({number: lambda: signal.raise_signal(signal.SIGUSR1)}), run
        )


def every_bytecode(make: Callable[[int], At], run: Callable[[At], object]) -> int:
    """Call `run` with what happens at bytecode 1, 2, 3 ... until there are no more.

    Returns how many there were.
    """
    for number in numbers():
        at = make(number)
        run(at)
        if not at.happened:
            return number - 1
    raise AssertionError


def numbers() -> Iterator[int]:
    """Yield 1, 2, 3 ... up to what no activation can need."""
    yield from range(1, 100_000)
    raise AssertionError("the code under test never came to an end")
