"""The command line of the bench: what is measured, printed and written."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.arguments import interruptible, names_of, positive
from bench.contest import Contest, Entrant
from bench.driver import Driver, Trip
from bench.drivers.limit import SHAPE as LIMIT_SHAPE
from bench.drivers.limit import LimitDriver
from bench.progress import Progress
from bench.report import LIMIT, Cell, describe
from bench.transports import LANES, PEERS, WAYS
from bench.work import ROUND_TRIP, SHAPES, SIZE_MAX, Shape, blob

ROUND_S: Final = 0.4
QUICK_ROUND_S: Final = 0.02
CROWDED: Final = "sixtytwo_to_two"  # of the peers, only those in CROWDED_PEERS take part
CALLS: Final = ("aembus-call", "aembus-call-async")  # of the round trips alone
CROWDED_PEERS: Final = ("pyzmq",)
TRIPS: Final = (Trip(apart=True), Trip(), Trip(spin=True, apart=True))
PLACES: Final = {"apart": "each on a core of its own", "free": "where the scheduler puts them"}
EXAMPLE: Final = """
examples:
  python -m bench throughput --topologies one_to_one --sizes 48 --peers pyzmq,pipe
  python -m bench all --rounds 15 --json figures.json
  python -m bench timers --help
  python -m bench spawning --help
"""

Drivers = dict[str, type[Driver]]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    what: str
    rounds: int
    round_s: float
    sizes: list[int]
    shapes: list[Shape]
    trips: list[Trip]
    lanes: list[str]
    peers: list[str]
    json: Path | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; return 0, or 1 if a transport failed."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["timers"]:  # another comparison, with options of its own
        from bench import timers

        return timers.main(given[1:])
    if given[:1] == ["spawning"]:
        from bench import spawning

        return spawning.main(given[1:])
    options = _parse(arguments)
    return interruptible(lambda: _run(options))


def _run(options: Options) -> int:
    described = machine.describe()
    ours, peers, skipped = _available(options)
    versions = {d.name: d.version() for d in (*ours.values(), *peers.values())}
    print(describe(described, versions))
    for name, reason in skipped.items():
        print(f"  left out: {name}: {reason}")
    cells = []
    plans = list(_plans(options, ours, peers))
    progress = Progress(
        sum(len(plan.entrants) * len(plan.sizes) for plan in plans) * options.rounds
    )
    with tempfile.TemporaryDirectory(prefix="aembus-bench-") as scratch:
        for plan in plans:
            with Contest(plan.entrants, Path(scratch), options.round_s, progress) as contest:
                for size in plan.sizes:
                    cell = plan.measure(contest, size)
                    cells.append(cell)
                    progress.clear()
                    print(f"\n{cell.table()}", flush=True)
    progress.clear()
    described["load_after"] = machine.load()
    if options.json is not None:
        document = {
            "machine": described,
            "versions": versions,
            "skipped": skipped,
            "rounds": options.rounds,
            "round_s": options.round_s,
            "cells": [cell.to_json() for cell in cells],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(cell.failures for cell in cells) else 0


def _available(options: Options) -> tuple[Drivers, Drivers, dict[str, str]]:
    skipped: dict[str, str] = {}

    def keep(names: list[str], drivers: Drivers) -> Drivers:
        kept = {}
        for name in names:
            reason = drivers[name].missing()
            if reason is None:
                kept[name] = drivers[name]
            else:
                skipped[drivers[name].name] = reason
        return kept

    return keep(options.lanes, LANES), keep(options.peers, {**PEERS, **WAYS}), skipped


# --- what is measured together ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    entrants: list[Entrant]
    sizes: list[int]
    measure: Callable[[Contest, int], Cell]


def _plans(options: Options, ours: Drivers, peers: Drivers) -> Iterator[_Plan]:
    if options.what in ("throughput", "all"):
        for shape in options.shapes:
            yield _throughput(options, shape, ours, peers)
    if options.what == "limit":
        yield _throughput(options, SHAPES["one_to_one"], ours, {})
    if options.what in ("roundtrip", "all"):
        for trip in options.trips:
            yield _round_trip(options, trip, ours, peers)


def _throughput(options: Options, shape: Shape, ours: Drivers, peers: Drivers) -> _Plan:
    peers = {name: driver for name, driver in peers.items() if name not in CALLS}
    entrants = [Entrant(driver.name, driver, shape) for driver in ours.values()]
    if shape.name == CROWDED:
        peers = {name: driver for name, driver in peers.items() if name in CROWDED_PEERS}
        alone = SHAPES["one_to_one"]
        entrants += [Entrant(f"{d.name}, one_to_one", d, alone) for d in ours.values()]
    entrants += [Entrant(driver.name, driver, shape) for driver in peers.values()]
    if shape.name == "one_to_one":
        entrants.append(Entrant(LIMIT, LimitDriver, LIMIT_SHAPE))

    def measure(contest: Contest, size: int) -> Cell:
        results = contest.measure_rates(size, options.rounds)
        title = f"{shape.name}, {size} bytes: thousands of handler calls a second"
        tags = {"topology": shape.name, "size": size}
        names = tuple(driver.name for driver in ours.values())
        return Cell("throughput", title, names, tags, results, dict(contest.failures))

    return _Plan(entrants, options.sizes, measure)


def _round_trip(options: Options, trip: Trip, ours: Drivers, peers: Drivers) -> _Plan:
    drivers = [d for d in (*ours.values(), *peers.values()) if trip.spin in d.spins]
    entrants = [Entrant(driver.name, driver, ROUND_TRIP, trip) for driver in drivers]
    waiting = "spinning" if trip.spin else "sleeping"
    place = "apart" if trip.apart else "free"

    def measure(contest: Contest, size: int) -> Cell:
        results = contest.measure_trips(size, options.rounds)
        title = f"round trip, both sides {waiting}, {PLACES[place]}, {size} bytes: microseconds"
        tags = {"waiting": waiting, "place": place, "size": size}
        names = tuple(driver.name for driver in ours.values())
        return Cell("roundtrip", title, names, tags, results, dict(contest.failures))

    return _Plan(entrants, options.sizes[:1], measure)


# --- arguments ----------------------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Compare aembus with other ways between processes on this machine.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="?",
        default="all",
        choices=("throughput", "roundtrip", "limit", "all"),
        help="what to measure (default: all)",
    )
    parser.add_argument(
        "--rounds", type=positive, help="rounds of each; 15 for figures to quote (default: 5)"
    )
    parser.add_argument(
        "--sizes",
        type=_sizes,
        metavar="BYTES,...",
        help="encoded sizes of a job; round trips use the first (default: 48,256,1000)",
    )
    parser.add_argument(
        "--topologies",
        type=names_of(SHAPES),
        metavar="NAME,...",
        help=f"of the throughput: {', '.join(SHAPES)} (default: all of them)",
    )
    parser.add_argument(
        "--peers",
        type=names_of({**PEERS, **WAYS}),
        default=list(PEERS),
        metavar="NAME,...",
        help=f"beside aembus: {', '.join(PEERS)}, or none (default: all that are installed); "
        f"and other ways to use it: {', '.join(WAYS)}",
    )
    parser.add_argument(
        "--lane",
        choices=("c", "python", "both"),
        default="both",
        help="which implementation of aembus's lanes (default: both, where there is one in C)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only see whether it works: one short round, one size, one_to_one",
    )
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    quick = given["quick"]
    return Options(
        what=given["what"],
        rounds=given["rounds"] or (1 if quick else 5),
        round_s=QUICK_ROUND_S if quick else ROUND_S,
        sizes=given["sizes"] or ([48] if quick else [48, 256, 1000]),
        shapes=[SHAPES[n] for n in given["topologies"] or (["one_to_one"] if quick else SHAPES)],
        trips=_trips(quick),
        lanes=["c", "python"] if given["lane"] == "both" else [given["lane"]],
        peers=given["peers"],
        json=given["json"],
    )


def _trips(quick: bool) -> list[Trip]:
    possible = [t for t in TRIPS if not t.apart or len(os.sched_getaffinity(0)) > 1]
    return possible[:1] if quick else possible


def _sizes(text: str) -> list[int]:
    sizes = []
    for part in text.split(","):
        size = positive(part)
        try:
            blob(size)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if size > SIZE_MAX:
            raise argparse.ArgumentTypeError(f"must be at most {SIZE_MAX}: {size}")
        sizes.append(size)
    return sizes
