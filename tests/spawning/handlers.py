"""Handlers that run in children, for the tests: whatever they need is found by name."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aembus
from aembus.spawning.child import PR_SET_PDEATHSIG


@dataclass
class Order:
    item: str
    pieces: int


def whoami(event: aembus.Event, *data: Any) -> list[Any]:
    """Say who runs this, and what it was given."""
    assert event.job is not None
    return [os.getpid(), os.getppid(), threading.active_count(), event.name, *data]


def job_of(event: aembus.Event) -> list[Any]:
    """Say what the job is."""
    job = event.job
    assert job is not None
    return [list(job.origin), job.attempt, job.key, list(job.identity), event.context]


def hold(event: aembus.Event) -> None:
    """Try what only a member can."""
    assert event.job is not None
    event.job.hold()


def close(event: aembus.Event) -> None:
    """Try what only who registered can."""
    event.close()


def big(event: aembus.Event, size: int) -> bytes:
    """Return as many bytes as asked for."""
    return b"x" * size


def fail(event: aembus.Event, text: str) -> None:
    """Raise."""
    raise ValueError(text)


def say_and_refuse(event: aembus.Event, text: str) -> None:
    """Print it, and refuse."""
    print(text)
    raise aembus.Refused(text)


def refuse(event: aembus.Event, text: str) -> None:
    """Refuse."""
    raise aembus.Refused(text)


def leave(event: aembus.Event, code: Any) -> None:
    """End as a program does."""
    sys.exit(code)


def execute(event: aembus.Event, *command: str) -> None:
    """Become another program."""
    os.execv(command[0], command)


def kill_self(event: aembus.Event, number: int = signal.SIGKILL) -> None:
    """Die."""
    os.kill(os.getpid(), number)


def unanswerable(event: aembus.Event) -> object:
    """Return what does not fit msgpack."""
    return object()


async def awaits(event: aembus.Event, number: int) -> int:
    """Return a number, a little later."""
    await asyncio.sleep(0)
    return number + 1


def wait_for_file(event: aembus.Event, folder: str, number: int) -> str:
    """Say by a file that this has begun, with the PID, and wait until its number is let go."""
    path = Path(folder)
    assert event.job is not None
    (path / f"begun-{number}-{event.job.attempt}").write_text(str(os.getpid()))
    while not (path / f"go-{number}").exists():
        time.sleep(0.002)
    return f"went-{number}"


def wait_without_parent(event: aembus.Event, folder: str, number: int) -> str:
    """Like `wait_for_file`, in a process that its nursery's end does not end."""
    assert ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0) == 0
    return wait_for_file(event, folder, number)


def die_first(event: aembus.Event, deaths: int) -> int:
    """Die at the first attempts; return which one lived."""
    assert event.job is not None
    if event.job.attempt <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return event.job.attempt


def fail_first(event: aembus.Event, failures: int) -> int:
    """Raise at the first attempts; return which one did not."""
    assert event.job is not None
    if event.job.attempt <= failures:
        raise ValueError(f"attempt {event.job.attempt}")
    return event.job.attempt


def order(event: aembus.Event, instance: Order) -> list[Any]:
    """Say what came at a typed point."""
    return [type(instance).__name__, instance.item, instance.pieces]


def double(event: aembus.Event, number: int) -> tuple[int]:
    """Be a constructor."""
    return (number * 2,)


def plus_one(event: aembus.Event, number: int) -> int:
    """Be a handler."""
    return number + 1


def shown(event: aembus.Event, result: Any, error: BaseException | None) -> str:
    """Be a destructor."""
    return f"{result} {error}"


def opens_in_a_fork(event: aembus.Event) -> int:
    """Return how many files of a process that it forks are closed in one that this forks."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(32)]
        if os.fork() == 0:
            os.write(writing, b"%d" % sum(not Path(f"/proc/self/fd/{n}").exists() for n in opened))
        else:
            os.wait()
        os._exit(0)
    os.wait()
    return int(os.read(reading, 9))


def connects(event: aembus.Event, bus: str) -> int:
    """Join the bus from within."""
    with aembus.connect(bus) as own:
        return own.activate("heard", os.getpid())


class Kept:
    @classmethod
    def method(cls, event: aembus.Event) -> str:
        return cls.__name__

    def bound(self, event: aembus.Event) -> None:
        """Cannot be found."""
