"""The command line: transports take turns at being killed in, and a table says what came of it."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.arguments import interruptible, names_of, positive
from bench.kills.board import SCENARIOS, Scenario
from bench.kills.report import Tally, table
from bench.kills.series import Order, Series, SeriesFailed
from bench.kills.wires import OURS, WIRES
from bench.progress import Progress
from bench.report import describe

KILLS: Final = 30
KILLS_FULL: Final = 100
KILLS_FULL_OURS: Final = 1000
EXAMPLE: Final = """
examples:
  python -m bench.kills                                   # 30 kills each, about 2 minutes
  python -m bench.kills --full --json kills.json          # 100 each, aembus 1,000
  python -m bench.kills --kills 20 --wires queue,aembus-c --seed 1
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0, or 1 if aembus did what it promises not to do, or a series failed."""
    options = _parse(arguments)
    return interruptible(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    described = machine.describe()
    skipped = {name: reason for name in options.wires
               if (reason := WIRES[name].driver.missing()) is not None}  # fmt: skip
    names = [name for name in options.wires if name not in skipped]
    versions = {WIRES[name].driver.name: WIRES[name].driver.version() for name in names}
    print(describe(described, versions))
    for name, reason in skipped.items():
        print(f"  left out: {name}: {reason}")
    print(f"  seed {options.seed}", flush=True)
    scenarios = [SCENARIOS[name] for name in options.scenarios]
    kills = {name: _kills(options, name) for name in names}
    progress = Progress(sum(kills.values()) * len(scenarios))
    document: dict[str, Any] = {"machine": described, "versions": versions, "skipped": skipped,
                                "seed": options.seed, "scenarios": {}}  # fmt: skip
    wrong = False
    for scenario in scenarios:
        tallies, failures = _measure(scenario, kills, options.seed, progress)
        progress.clear()
        print(f"\n{table(scenario.title, tallies, failures)}", flush=True)
        document["scenarios"][scenario.name] = {
            "transports": {name: tally.to_json() for name, tally in tallies.items()},
            "failures": failures,
        }
        wrong = wrong or bool(failures)
        for name in OURS:
            if name in tallies and (shortcomings := tallies[name].shortcomings):
                print(f"  {name} does not keep its promises: {', '.join(shortcomings)}")
                wrong = True
    document["machine"]["load_after"] = machine.load()
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if wrong else 0


def _measure(
    scenario: Scenario, kills: dict[str, int], seed: int, progress: Progress
) -> tuple[dict[str, Tally], dict[str, str]]:
    """Let the transports take turns, a trial each, until each has had its kills."""
    tallies: dict[str, Tally] = {}
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="aembus-bench-"))
        running: dict[str, Series] = {}
        for name in kills:
            progress.say(f"starting {name}")
            series = Series(Order(name, scenario.name, str(seed), scratch))
            try:
                running[name] = stack.enter_context(series)
            except SeriesFailed as error:
                failures[name] = str(error)
        for number in range(1, max(kills.values(), default=0) + 1):
            for name in [name for name in running if number <= kills[name]]:
                progress.step(f"{scenario.name} killed, {number} of {kills[name]}: {name}")
                try:
                    running[name].kill_once()
                except SeriesFailed as error:
                    failures[name] = str(error)
                    del running[name]
        for name, series in running.items():
            progress.say(f"looking again at {name}")
            try:
                results = series.end()
            except SeriesFailed as error:
                failures[name] = str(error)
            else:
                tally = Tally(results["outcomes"], results["kept"])
                tallies[WIRES[name].driver.name] = tally
    return tallies, failures


def _kills(options: argparse.Namespace, name: str) -> int:
    if options.full:
        return KILLS_FULL_OURS if WIRES[name].driver.name in OURS else KILLS_FULL
    kills: int = options.kills
    return kills


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kills",
        description="Kill processes that share a transport, and see whether the others go on.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--kills",
        type=positive,
        default=KILLS,
        metavar="N",
        help="of each transport in each scenario (default: %(default)s)",
    )
    add(
        "--full",
        action="store_true",
        help=f"figures to quote: {KILLS_FULL} kills, for aembus {KILLS_FULL_OURS:,}",
    )
    add(
        "--wires",
        type=names_of(WIRES),
        default=list(WIRES),
        metavar="NAME,...",
        help=f"of: {', '.join(WIRES)} (default: all that are installed)",
    )
    add(
        "--scenarios",
        type=names_of(SCENARIOS),
        default=list(SCENARIOS),
        metavar="NAME,...",
        help=f"who is killed: {', '.join(SCENARIOS)} (default: both)",
    )
    add(
        "--seed",
        type=int,
        default=random.randrange(1 << 32),
        metavar="N",
        help="of the moments (default: another one each time; it is printed)",
    )
    add("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    return parser.parse_args(arguments)
