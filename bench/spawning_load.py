"""What `bench.spawning` runs in other processes."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

import aembus


def begin(event: aembus.Event) -> list[int]:
    """Return when this began, and when it was activated."""
    now_ns = time.monotonic_ns()
    assert event.job is not None
    return [now_ns, event.job.activated_ns]


def nothing(event: aembus.Event) -> None:
    """Do nothing."""


def tell(pipe: Connection) -> None:
    """Say when this began."""
    pipe.send(time.monotonic_ns())
