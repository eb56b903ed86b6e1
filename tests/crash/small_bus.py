"""A bus with a worker and a client that talk: ``python -m tests.crash.small_bus BUS STATE``.

Says how many pages of /dev/shm that took, or why it could not be, and what is left.
"""

from __future__ import annotations

import os
import sys

import aembus

JOBS = 10


def main(bus: aembus.Bus) -> None:
    """Entry point of the worker."""
    bus.register("work", lambda event, number: None, name="work")


def run(bus_name: str, state: str) -> None:
    """Run the bus once."""
    spec = aembus.WorkerSpec("w", "tests.crash.small_bus:main")
    supervisor = aembus.Supervisor(
        bus_name, workers=[spec], slots=8, lane_bytes=8192, registry_bytes=8192,
        state_directory=state, log_level="CRITICAL",
    )  # fmt: skip
    try:
        with supervisor, aembus.connect(bus_name) as bus:
            for number in range(JOBS):
                assert bus.activate("work", number, timeout=10) == 1
            space = os.statvfs("/dev/shm")
            print(space.f_blocks - space.f_bfree)
    except aembus.AembusError as error:
        print(f"{type(error).__name__}: {error}")
    left = [name for name in os.listdir("/dev/shm") if f"aembus.{bus_name}." in name]
    if left:
        print("left:", left)


if __name__ == "__main__":
    run(*sys.argv[1:])
