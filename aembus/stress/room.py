"""How large the shared memory of a stress run is, and whether it fits into /dev/shm."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from aembus.errors import OutOfSharedMemory
from aembus.shm import layout, names
from aembus.stress import message
from aembus.stress.board import Board
from aembus.stress.ledger import Ledger

SPARE_SLOTS: Final = 8  # beside the supervisor, the workers and the producers
LANE_JOBS: Final = 256  # that a lane has room for, if there is space enough
LANE_JOBS_MIN: Final = 4
SHARE: Final = 0.5  # of the free space, which larger lanes may take


@dataclass(frozen=True, slots=True)
class Room:
    """The sizes of a run's bus."""

    slots: int
    lane_bytes: int


def job_size_max() -> int:
    """Return how large a job's body may be in the largest of lanes."""
    return layout.payload_bytes_max(layout.LANE_BYTES_MAX) - message.job_bytes(0) - layout.WORD


def choose(producers: int, workers: int, size: int, replaced: bool) -> Room:
    """Return sizes that fit a run, and /dev/shm.

    Args:
        producers, workers: how many.
        size: of a job's body, in bytes.
        replaced: producers will be killed and replaced, so there may be more of them for a moment.

    Raises: OutOfSharedMemory if not even the smallest lanes fit.
    """
    spare = SPARE_SLOTS + (producers if replaced else 0)
    slots = min(1 + workers + producers + spare, layout.SLOTS_MAX)
    record = layout.record_units(message.job_bytes(size)) * layout.UNIT
    smallest = _power_of_two(LANE_JOBS_MIN * record)
    space = os.statvfs(names.DIRECTORY)
    free = space.f_bavail * space.f_frsize
    lane_bytes = _power_of_two(LANE_JOBS * record)
    while lane_bytes > smallest and _need(producers, workers, slots, lane_bytes) > SHARE * free:
        lane_bytes //= 2
    need = _need(producers, workers, slots, lane_bytes)
    if need > free:
        raise OutOfSharedMemory(
            f"too little space in {names.DIRECTORY}: make it larger (mount -o remount,size=..., "
            "or docker run --shm-size=...), or take fewer producers, workers or bytes, "
            f"need={need}, free={free}, producers={producers}, workers={workers}, size={size}"
        )
    return Room(slots, lane_bytes)


def _power_of_two(number: int) -> int:
    power = 1 << (number - 1).bit_length()
    return min(max(power, layout.LANE_BYTES_MIN), layout.LANE_BYTES_MAX)


def _need(producers: int, workers: int, slots: int, lane_bytes: int) -> int:
    inbox = layout.rings_offset(slots) + layout.PAGE  # a semaphore takes a page, too
    return (
        layout.registry_bytes(layout.REGISTRY_HALF_BYTES_DEFAULT)
        + slots * inbox
        + producers * workers * lane_bytes
        + workers * (Ledger.size_bytes(slots, producers) + layout.PAGE)
        + Board.size_bytes(producers, workers)
    )
