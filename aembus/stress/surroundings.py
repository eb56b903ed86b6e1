"""What a stress run sets for itself and all that it starts, and what it clears up afterwards."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aembus.errors import OpenError
from aembus.shm import lanes
from aembus.supervisor.ownership import BusLock, sweep


@contextlib.contextmanager
def chosen_lane(lane: str | None) -> Iterator[None]:
    """Let every process that is started meanwhile use this lane, "c" or "python".

    Raises: OpenError if it is not to be had.
    """
    if lane == "c":
        try:
            importlib.import_module("aembus.shm._lane")
        except ImportError as error:
            raise OpenError(
                "the lane in C was not built here; install a C compiler and aembus again, or take "
                f"the lane in plain Python (--lane python), error={error}"
            ) from error
    before = os.environ.get(lanes.VARIABLE)
    if lane is not None:
        os.environ[lanes.VARIABLE] = lane
    try:
        yield
    finally:
        if before is not None:
            os.environ[lanes.VARIABLE] = before
        else:
            os.environ.pop(lanes.VARIABLE, None)


@contextlib.contextmanager
def one_core(wanted: bool) -> Iterator[None]:
    """Keep this process and every one that is started meanwhile on one core, if that is wanted."""
    before = os.sched_getaffinity(0)
    if wanted:
        os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def state_directory(bus: str, nonce: str) -> Iterator[Path]:
    """Yield where dead letters may be kept meanwhile; it is made by whoever has one to keep."""
    directory = Path(tempfile.gettempdir()) / f"aembus-{bus}-{nonce}"
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def sweep_up(bus: str) -> None:
    """Remove what the bus's supervisor has left, which it only does if it was killed."""
    with contextlib.suppress(OpenError):  # another one runs the bus: then nothing is ours
        lock = BusLock(bus)
        sweep(bus)
        lock.release()
