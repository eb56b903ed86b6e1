"""Sweeps or replays kill points: see ``python -m tests.crash.points --help``."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import signal
import sys
import time
from pathlib import Path

import aembus
from aembus.shm import lanes
from tests.crash.points import registry
from tests.crash.points.cases import Case, Fault, Stage
from tests.crash.points.life import Life, try_places
from tests.crash.points.scenarios import SCENARIOS, STATES
from tests.crash.points.sources import SOURCES, environment
from tests.crash.points.steps import Bytecodes, Layer, NamedInC
from tests.crash.points.worker_life import WorkerLife
from tests.crash.points.world import PRODUCER, World

EXAMPLES = """examples:
  python -m tests.crash.points sweep --bus try --scenarios put deliver
  python -m tests.crash.points replay --bus try --scenario put --state wrap --points 117
  python -m tests.crash.points life --bus try --role supervisor --every 10
AEMBUS_SOURCES=DIRECTORY tries the aembus in that directory, AEMBUS_LANE=c|python one of its lanes.
"""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sweep", "replay", "registry", "life", "worker-life"])
    parser.add_argument("--bus", required=True, help="the name of the bus to make")
    parser.add_argument("--layer", choices=["bytecodes", "named"], default="bytecodes")
    parser.add_argument("--every", type=int, default=1, help="of the points without a change")
    parser.add_argument("--all", action="store_true", help="the same points for every fault")
    parser.add_argument("--first", action="store_true", help="stop at the first failure")
    parser.add_argument("--double", type=int, default=0, help="replacements to kill, at most")
    parser.add_argument("--faults", nargs="+", default=["kill"])
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--states", nargs="+", default=list(STATES), choices=STATES)
    parser.add_argument("--scenario", choices=list(SCENARIOS))
    parser.add_argument("--state", choices=STATES)
    parser.add_argument("--fault", default="kill", choices=["none", "kill", "stop", "interrupt"])
    parser.add_argument("--points", nargs="*", type=int, default=[])
    parser.add_argument("--role", choices=["visitor", "worker", "supervisor"], help="in a life")
    parser.add_argument("--wholly", nargs="*", default=[], help="functions: every line of them")
    parser.add_argument(
        "--share", nargs=2, type=int, default=(0, 1), help="of the chosen lines: which, of how many"
    )
    parser.add_argument("--place", help="the only line, as a failure names it")
    return parser.parse_args()


class Sweep:
    """Goes through the points of scenarios and states, and counts."""

    def __init__(self, world: World, options: argparse.Namespace) -> None:
        self._world = world
        self._options = options
        self._failures = 0

    def layer(self) -> Layer:
        """Return the layer of points that was asked for."""
        return NamedInC() if self._options.layer == "named" else Bytecodes()

    def run(self) -> int:
        """Run all; return how many cases failed."""
        for scenario, state in itertools.product(self._options.scenarios, self._options.states):
            if state not in SCENARIOS[scenario].states:
                continue
            stage = Stage(self._world, scenario, state, self.layer())
            try:
                self._sweep(stage, scenario, state)
            finally:
                stage.close()
        return self._failures

    def _sweep(self, stage: Stage, scenario: str, state: str) -> None:
        began = time.monotonic()
        walk = stage.walk()
        cases = self._try(stage, scenario, state, Case("none", ()))
        for fault in self._options.faults:
            if fault == "interrupt" and (
                stage.scenario.victim != PRODUCER or self._options.layer == "named"
            ):
                continue
            # Who lives on is tried where it matters; a kill, now and then, elsewhere too.
            every = self._options.every if fault == "kill" or self._options.all else 1 + walk.total
            for point in walk.chosen(every):
                cases += self._try(stage, scenario, state, Case(fault, (point,)))
        if self._options.double and stage.scenario.victim != PRODUCER:
            cases += self._sweep_replacements(stage, scenario, state, sorted(walk.changes))
        print(
            f"{lanes.IMPLEMENTATION} {self._options.layer}: {scenario}, {state}: "
            f"points={walk.total}, changes={len(walk.changes)}, cases={cases}, "
            f"took_s={time.monotonic() - began:.1f}",
            flush=True,
        )

    def _sweep_replacements(
        self, stage: Stage, scenario: str, state: str, points: list[int]
    ) -> int:
        cases = 0
        for first in points:
            walk = stage.walk((first,))
            chosen = sorted({1, *walk.changes, walk.total}) if walk.total else []
            for second in chosen[: self._options.double]:
                cases += self._try(stage, scenario, state, Case("kill", (first, second)))
        return cases

    def _try(self, stage: Stage, scenario: str, state: str, case: Case) -> int:
        try:
            stage.run(case)
        except AssertionError as error:
            self._failures += 1
            self._report(scenario, state, case, error)
            if self._failures > 5 or self._options.first:
                raise SystemExit("failed often enough, not going on") from None
        return 1

    def _report(self, scenario: str, state: str, case: Case, error: AssertionError) -> None:
        points = " ".join(map(str, case.points))
        print(
            f"FAILED {error}\n"
            f"  replay: AEMBUS_LANE={lanes.IMPLEMENTATION} python -m tests.crash.points replay "
            f"--bus {self._world.bus} --layer {self._options.layer} --scenario '{scenario}' "
            f"--state {state} --fault {case.fault} --points {points}",
            flush=True,
        )


def replay(world: World, options: argparse.Namespace) -> int:
    """Run one case and say where its point is."""
    layer: Layer = NamedInC() if options.layer == "named" else Bytecodes()
    stage = Stage(world, options.scenario, options.state, layer)
    try:
        walk = stage.walk()
        print(f"{walk.total} points; the shared memory changes before:")
        for number, where in walk.changes.items():
            print(f"  {number}: {where}")
        fault: Fault = options.fault
        stage.run(Case(fault, tuple(options.points)))
    finally:
        stage.close()
    print("every promise was kept")
    return 0


def sweep_registry(world: World) -> int:
    """Sweep both ends of the registry."""
    failures = 0
    for sweep in (registry.sweep_reader, registry.sweep_writer):
        cases, wrong = sweep(world)
        print(f"{sweep.__name__}: cases={cases}", *wrong[:20], sep="\nFAILED ", flush=True)
        failures += len(wrong)
    return 1 if failures else 0


def chosen_lines(places: list[str], every: int, wholly: list[str]) -> list[str]:
    """Return each n-th line, and all of some functions."""
    functions = [place.partition(" ")[2] for place in places]
    unknown = [name for name in wholly if not any(f.startswith(name) for f in functions)]
    if unknown:
        raise SystemExit(f"no line of these was passed: {unknown}")
    return [
        place
        for number, (place, function) in enumerate(zip(places, functions, strict=True))
        if number % every == 0 or function.startswith(tuple(wholly))
    ]


def kill_in_life(options: argparse.Namespace) -> int:
    """Kill somebody of a whole bus, line by line."""
    logging.disable(logging.CRITICAL)
    life: Life | WorkerLife = (Life if options.what == "life" else WorkerLife)(options.bus)
    began = time.monotonic()
    places = [options.place] if options.place else life.places(options.role)
    lines = len(places)
    if not options.place:
        which, shares = options.share
        places = chosen_lines(places, options.every, options.wholly)[which::shares]
    kills, wrong = try_places(life.run, options.role, places)
    print(
        f"{options.what}, {options.role}: lines={lines}, cases={len(places)}, kills={kills}, "
        f"took_s={time.monotonic() - began:.1f}",
        *wrong[:20],
        sep="\nFAILED ",
        flush=True,
    )
    return 1 if wrong else 0


def main() -> int:
    """Do what was asked; 1 if a promise was broken."""
    options = parse()
    package = Path(aembus.__file__).resolve().parent
    if package.parent != SOURCES or "PYTHONSAFEPATH" not in os.environ:  # not as the tests do it
        arguments = [sys.executable, "-m", "tests.crash.points", *sys.argv[1:]]
        os.execve(sys.executable, arguments, environment())
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    print(f"aembus={package}, lane={lanes.IMPLEMENTATION}, pid={os.getpid()}", flush=True)
    if options.what.endswith("life"):
        return kill_in_life(options)
    world = World(options.bus)
    try:
        if options.what == "replay":
            return replay(world, options)
        if options.what == "registry":
            return sweep_registry(world)
        return 1 if Sweep(world, options).run() else 0
    finally:
        world.close()


if __name__ == "__main__":
    sys.exit(main())
