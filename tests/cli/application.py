"""The workers' entry point in the tests of the command line."""

from __future__ import annotations

from typing import Any

import aembus


def main(bus: aembus.Bus) -> None:
    """Take jobs at "work", count them, and fail at those that are negative."""
    jobs = bus.counter("jobs")

    @bus.on("work", group="workers")
    def work(event: Any, number: int) -> None:
        jobs.add()
        if number < 0:
            raise ValueError(f"a negative number: {number}")
