"""Awaitable calls, all under way at once: ``python -m bench.calls``.

One process calls another so many times without waiting in between, and awaits all answers; printed
are the calls a second, how many were under way at most, and whether every answer was right.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from typing import Final

import aembus
from bench.arguments import positive

BUS: Final = "bench-calls"
CALLEE: Final = """
import sys, aembus
with aembus.connect(sys.argv[1]) as bus:
    bus.register("double", lambda event, n: 2 * n)
    bus.register("end", lambda event: bus.stop())
    bus.run()
"""


async def call_all(bus: aembus.Bus, calls: int, served: bool) -> tuple[float, int, bool]:
    """Return how long they took, how many were under way at most, and whether all were right."""
    serving = asyncio.create_task(bus.serve()) if served else None
    point = bus.point("double")
    under_way = most = 0

    async def one(number: int) -> bool:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        right: bool = await point.call_async(number, timeout=60.0) == 2 * number
        under_way -= 1
        return right

    began = time.monotonic()
    right = all(await asyncio.gather(*(one(number) for number in range(calls))))
    passed_s = time.monotonic() - began
    if serving is not None:
        bus.stop()
        await serving
    return passed_s, most, right


def main() -> int:
    """Measure, print, and return 0 if every answer was right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=positive, default=10_000)
    parser.add_argument("--rounds", type=positive, default=3)
    options = parser.parse_args()
    good = True
    with (
        tempfile.TemporaryDirectory() as directory,
        aembus.Supervisor(BUS, state_directory=directory),
        subprocess.Popen([sys.executable, "-c", CALLEE, BUS]) as callee,
        aembus.connect(BUS) as ender,
        contextlib.ExitStack() as failing,
    ):
        failing.callback(callee.kill)  # who has not been told to end would be waited for
        while not ender.point("double").try_activate(0) or not ender.activate("double", 0):
            if callee.poll() is not None:
                raise RuntimeError(f"the callee has ended, exit code={callee.returncode}")
            time.sleep(0.01)
        for served in (True, False) * options.rounds:
            with aembus.connect(BUS) as bus:
                passed_s, most, right = asyncio.run(call_all(bus, options.calls, served))
                late = bus.statistics().late_replies
            good = good and right and not late
            print(
                f"{'served' if served else 'not served':>10}: "
                f"{options.calls / passed_s:8.0f} calls/s, {most} under way at most, "
                f"{'all right' if right else 'WRONG'}, late {late}"
            )
        ender.activate("end")
        failing.pop_all()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
