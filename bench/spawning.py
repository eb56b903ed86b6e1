"""How soon a child begins, and how many a second there can be: ``python -m bench spawning``.

Beside events with spawn=True the same of multiprocessing's forkserver, which also forks from a
process that was warmed up; the two take turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from typing import Final

import aembus
from bench import machine, spawning_load
from bench.arguments import interruptible, positive
from bench.report import describe

BUS: Final = "bench-spawning"
NS_A_MS: Final = 1e6
EXAMPLE: Final = """
example:
  python -m bench spawning --jobs 300 --rounds 5
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench spawning",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--jobs", type=positive, default=200, help="a round")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--children-max", type=positive, default=4)
    options = parser.parse_args(arguments)
    return interruptible(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    print(describe(machine.describe(), {}), flush=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "bench.spawning_load"])
    late: dict[str, list[int]] = {"aembus": [], "forkserver": []}
    rates = []
    with (
        tempfile.TemporaryDirectory() as directory,
        aembus.Supervisor(BUS, state_directory=directory),
        aembus.connect(BUS) as bus,
    ):
        limit = options.children_max
        bus.register("begin", spawning_load.begin, spawn=True, children_max=limit)
        bus.register("nothing", spawning_load.nothing, spawn=True, children_max=limit)
        bus.point("begin").call()
        for _ in range(options.rounds):
            for _ in range(options.jobs):
                begun_ns, activated_ns = bus.point("begin").call()
                late["aembus"].append(begun_ns - activated_ns)
            for _ in range(options.jobs):
                ours, theirs = context.Pipe(duplex=False)
                started_ns = time.monotonic_ns()
                process = context.Process(target=spawning_load.tell, args=(theirs,))
                process.start()
                late["forkserver"].append(ours.recv() - started_ns)
                process.join()
                ours.close()
                theirs.close()
            rates.append(_rate(bus, options.jobs))
    for who, found in late.items():
        found.sort()
        figures = [found[int(share * (len(found) - 1))] / NS_A_MS for share in (0.5, 0.9, 0.99)]
        p50, p90, p99 = (f"{figure:.2f}" for figure in figures)
        print(f"{who:10}  begun after p50 {p50} ms, p90 {p90} ms, p99 {p99} ms")
    rates.sort()
    print(
        f"aembus      {rates[len(rates) // 2]:.0f} children a second "
        f"({rates[0]:.0f} to {rates[-1]:.0f}), {options.children_max} at once"
    )
    return 0


def _rate(bus: aembus.Bus, jobs: int) -> float:
    point = bus.point("nothing")
    started = time.monotonic()
    for _ in range(jobs):
        point.activate(timeout=60.0)
    point.call(timeout=60.0)  # begun behind all of them
    return jobs / (time.monotonic() - started)
