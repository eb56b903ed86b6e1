"""``python -m bench.disturbance``: what the others lose while one worker is killed every second.

One bus under load, in rounds that alternate: in every second one a worker, always the same, is
killed once a second; in the rounds between nobody is.  What is compared is the rate of the *other*
workers, each round with kills to the mean of the two beside it, so that what else slows the machine
falls on both.  The load runs on through all rounds, and every job is accounted for in the end.

The producers send as fast as there is room. In the load "apart" each worker has a producer of its
own; in the load "shared" every producer sends to all workers, and so waits for the killed one's
replacement when its lane has run full: what the others lose then is what they are not sent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from aembus.stress.kills import Recoveries, kill_worker
from aembus.stress.load import Producers
from aembus.stress.observer import Observer
from aembus.stress.options import Options
from aembus.stress.progress import ProgressLine
from aembus.stress.report import Report
from aembus.stress.run import StressRun
from bench import machine
from bench.arguments import interruptible, names_of, positive, positive_s
from bench.figures import Spread
from bench.report import aligned, describe
from bench.transports import LANES

EVERY_S: Final = 1.0
FIRST_KILL_S: Final = 0.25  # in a round, so that the last replacement is there at its end
SIZE: Final = 48
LOADS: Final = {"apart": True, "shared": False}
EXAMPLE: Final = """
examples:
  python -m bench.disturbance                      # 10 pairs of rounds, both loads and lanes
  python -m bench.disturbance --lane c --loads apart --pairs 5 --json disturbance.json
"""


class Rounds:
    """Kills in every second round, and counts what the others finish in each: a Saboteur.

    Args:
        round_s: how long a round is; the first one is without kills, and so is the last.
        producers, observer, recoveries: the run's.
    """

    def __init__(
        self, round_s: float, producers: Producers, observer: Observer, recoveries: Recoveries
    ) -> None:
        self._round_s = round_s
        self._observer = observer
        self.recoveries = recoveries
        self.victim, *self._others = observer.worker_names
        self.workers_killed = 0
        self.with_kills: set[int] = set()  # the rounds, by number, in which somebody was killed
        self._next_kill_s = round_s + FIRST_KILL_S
        self._marks = [(0.0, self._finished())]

    def _finished(self) -> int:
        return sum(self._observer.finished(worker) for worker in self._others)

    def tick(self, now_s: float) -> str | None:
        """Kill the victim if it is time, and note what was done when a round is over."""
        self.recoveries.look()
        if now_s >= len(self._marks) * self._round_s:
            self._marks.append((now_s, self._finished()))
        if now_s < self._next_kill_s:
            return None
        if int(now_s / self._round_s) % 2 == 0 or not self._kill():
            return None
        self._next_kill_s += EVERY_S
        if int(self._next_kill_s / self._round_s) % 2 == 0:
            self._next_kill_s = (int(now_s / self._round_s) + 2) * self._round_s + FIRST_KILL_S
        self.workers_killed += 1
        self.with_kills.add(len(self._marks) - 1)
        return f"worker {self.victim}"

    def _kill(self) -> bool:
        if self.recoveries.waiting:
            return False  # its replacement has not got a job yet: it would be taken for one that
        found = {worker.name: worker for worker in self._observer.workers()}  # cannot start
        if not kill_worker(found[self.victim], self._observer):
            return False
        self.recoveries.killed(self.victim)
        return True

    def rates(self) -> list[float]:
        """Return how many jobs a second the others finished, round by round."""
        return [(jobs - before) / (end - start) for (start, before), (end, jobs)
                in zip(self._marks, self._marks[1:], strict=False)]  # fmt: skip


def ratios(rates: Sequence[float], with_kills: Collection[int]) -> list[float]:
    """Return what each odd round's rate is to the mean of its two neighbours'.

    Args:
        with_kills: the rounds in which somebody was killed; no others are compared.
    """
    odd = range(1, len(rates) - 1, 2)
    return [rates[n] / ((rates[n - 1] + rates[n + 1]) / 2) for n in odd if n in with_kills]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 0, or 1 if a job was lost, doubled, reordered or changed."""
    options = _parse(arguments)
    return interruptible(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    described = machine.describe()
    drivers = {lane: LANES[lane] for lane in options.lanes if LANES[lane].missing() is None}
    print(describe(described, {d.name: d.version() for d in drivers.values()}), flush=True)
    for lane in options.lanes:
        if lane not in drivers:
            print(f"  left out: {LANES[lane].name}: {LANES[lane].missing()}", flush=True)
    rows = [["", "others, undisturbed", "ratio", "least to greatest", "kills",
             "rounds compared", "worker back, p50", "p99", "jobs", "wrong"]]  # fmt: skip
    cells: list[dict[str, Any]] = []
    failed = False
    for load in options.loads:
        for lane, driver in drivers.items():
            report, rates, with_kills = _measure(lane, LOADS[load], options)
            compared, recovery = ratios(rates, with_kills), report.recovery_ms()
            if not compared:
                raise RuntimeError("nobody was killed in any round; take longer ones (--round-s)")
            found = Spread.of(compared)
            failed = failed or bool(report.failures)
            rows.append([f"{load}, {driver.name}",
                         f"{Spread.of(rates[::2]).median:,.0f} jobs/s", f"{found.median:.0%}",
                         f"{found.least:.0%} to {found.greatest:.0%}", str(report.workers_killed),
                         f"{len(compared)} of {options.pairs}",
                         *(f"{recovery[name]:.0f} ms" if recovery else "-"
                           for name in ("p50", "p99")),
                         f"{report.accounts.delivered:,}",
                         "; ".join(report.failures) or "none"])  # fmt: skip
            cells.append({"load": load, "lane": lane, "rates_per_s": rates,
                          "ratio": found.to_json(), **report.to_json()})  # fmt: skip
    title = (f"{options.workers} workers, {options.producers} producers, {SIZE} bytes: "
             f"one worker killed every {EVERY_S:g} s in every second round")  # fmt: skip
    print("\n".join([title, *aligned(rows)]))
    if options.json is not None:
        document = {"machine": described, "round_s": options.round_s, "cells": cells}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failed else 0


def _measure(
    lane: str, apart: bool, options: argparse.Namespace
) -> tuple[Report, list[float], set[int]]:
    """Return the run, the others' rate in each round, and in which rounds there were kills."""
    rounds: list[Rounds] = []

    def sabotage(producers: Producers, observer: Observer, recoveries: Recoveries) -> Rounds:
        rounds.append(Rounds(options.round_s, producers, observer, recoveries))
        return rounds[0]

    line = ProgressLine(sys.stderr)
    run = StressRun(
        Options(
            bus=f"bench-disturbance-{os.getpid()}",
            producers=options.producers,
            workers=options.workers,
            seconds=(2 * options.pairs + 1) * options.round_s + 0.1,  # the last mark is in it
            size=SIZE,
            seed=random.randrange(1 << 32),
            lane=lane,
            apart=apart,
        ),
        line.show,
        sabotage=sabotage,
    )
    try:
        report = run.run()
    finally:
        line.end()
    return report, rounds[0].rates(), rounds[0].with_kills


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.disturbance",
        description="Measure what other workers lose while one is killed every second.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    add = parser.add_argument
    add("--pairs", type=positive, default=10, metavar="N",
        help="rounds with kills; each has one without before and behind it (default: %(default)s)")
    add("--round-s", type=positive_s, default=2.0, metavar="S",
        help="length of a round (default: %(default)g)")
    add("--workers", type=positive, default=4, metavar="W", help="default: %(default)s")
    add("--producers", type=positive, default=4, metavar="P", help="default: %(default)s")
    add("--lane", dest="lanes", type=names_of(LANES), default=list(LANES), metavar="NAME,...",
        help=f"of: {', '.join(LANES)} (default: both)")
    add("--loads", type=names_of(LOADS), default=list(LOADS), metavar="NAME,...",
        help=f"of: {', '.join(LOADS)} (default: both)")
    add("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    # fmt: on
    options = parser.parse_args(arguments)
    if options.workers < 2 or options.producers < options.workers:
        parser.error("want at least 2 workers, and as many producers")
    return options


if __name__ == "__main__":
    sys.exit(main())
