"""What the bench's command lines share."""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def interruptible(run: Callable[[], int]) -> int:
    """Return what `run` returns; SIGINT and SIGTERM end it with a short word and their code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return run()
    except KeyboardInterrupt as interrupt:
        print("\ninterrupted; everything that was started is ended", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


class _Held:
    """Whether interruptions wait, and the one that does."""

    depth = 0
    number: int | None = None


@contextlib.contextmanager
def interruptions_held() -> Iterator[None]:
    """Let what would interrupt this block wait for its end, whichever thread the signal reaches."""
    _Held.depth += 1
    try:
        yield
    finally:
        _Held.depth -= 1
        if not _Held.depth and _Held.number is not None:
            _interrupt(_Held.number, None)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _Held.depth:
        _Held.number = number
        return
    # Cleaning up is bounded: once is enough.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def positive(text: str) -> int:
    """Return a whole number from 1 on, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1: {text}")
    return number


def positive_s(text: str) -> float:
    """Return a number of seconds (or of something a second) above 0, for argparse."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0: {text}")
    return number


def names_of(known: dict[str, Any]) -> Callable[[str], list[str]]:
    """Return what reads a list of known names, or "none", for argparse."""

    def parse(text: str) -> list[str]:
        names = [] if text.lower() == "none" else text.lower().split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of: {', '.join(known)}")
        return names

    return parse
