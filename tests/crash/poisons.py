"""Jobs that kill their worker, or try to: what each does, by name."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Final


class _Unspeakable(Exception):
    """An error that cannot even be described."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class _Foreign(BaseException):
    """Something that a handler may raise and that is no Exception."""


def _segfault() -> object:
    return ctypes.string_at(0)


def _exit_at_once() -> object:
    os._exit(3)


def _exit_politely() -> object:
    sys.exit(5)


def _memory_limit() -> object:
    megabyte = 1 << 20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * megabyte, before[1]))
    try:
        return [bytearray(megabyte) for _ in range(100_000)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _endless_loop() -> object:
    while True:
        pass


def _recursion() -> object:
    sys.setrecursionlimit(10**9)
    return _deeper(0)


def _deeper(level: int) -> int:
    # Through C each time, so that the machine's stack is what runs out.
    return max((level,), key=_deeper)


def _unencodable_result() -> object:
    return lambda: None


def _unspeakable() -> object:
    raise _Unspeakable


def _foreign() -> object:
    raise _Foreign


KINDS: Final = {
    "segfault": _segfault,
    "os._exit": _exit_at_once,
    "sys.exit": _exit_politely,
    "memory limit": _memory_limit,
    "endless loop": _endless_loop,
    "recursion": _recursion,
    "unencodable result": _unencodable_result,
    "unspeakable error": _unspeakable,
    "foreign error": _foreign,
}


def take(kind: str) -> object:
    """Do what a job of this kind does."""
    return KINDS[kind]()
