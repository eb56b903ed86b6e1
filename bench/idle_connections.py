"""``python -m bench.idle_connections``: what thousands of idle connections cost the active ones.

One bus with the TCP service and a worker.  In each round the response times of the active
connections are taken with no idle ones, and then with each number of idle ones; what is compared is
the pair of one round.  The idle ones are opened and closed by a process of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.arguments import interruptible, positive, positive_s
from bench.echo_load import Load, connect
from bench.echo_servers import Serving, on_bus
from bench.figures import Spread, percentile, ratios
from bench.report import aligned, describe

IDLE: Final = (100, 1000, 10_000)
ACTIVE: Final = 100
SIZE: Final = 64
RATIO_MAX: Final = 1.1
SPARE_DESCRIPTORS: Final = 200
COME_S_MAX: Final = 20.0  # until the service has accepted them all, or let go of the last ones
LOOK_S: Final = 0.02
EXAMPLE: Final = """
examples:
  python -m bench.idle_connections                              # 5 rounds
  python -m bench.idle_connections --plot idle.png --json idle.json
"""


class Idlers:
    """A process with connections that say nothing; a context manager.

    Args:
        address: whose.
        count: how many.
    """

    def __init__(self, address: str, count: int) -> None:
        command = [sys.executable, "-m", "bench.idle_connections", "--idle-at", address, str(count)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Idlers:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError("the idle connections could not be opened")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def be_idle(address: str, count: int) -> int:
    """Open connections and keep them until standard input ends."""
    raise_limit(count)
    connections = [connect(address) for _ in range(count)]
    print("ready", flush=True)
    sys.stdin.read()
    for connected in connections:
        connected.close()
    return 0


def raise_limit(connections: int) -> None:
    """Let this process open so many connections, or end it with a clear word."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < connections + SPARE_DESCRIPTORS:
        sys.exit(
            "too few descriptors for so many connections; raise the hard limit (ulimit -Hn) or "
            f"lower --idle, hard limit={hard}, connections={connections}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def await_connections(serving: Serving, wanted: int, patience_s: float = COME_S_MAX) -> None:
    """Return when the service has so many connections, no more and no fewer.

    Raises: RuntimeError if that does not come: it has refused or closed some.
    """
    deadline = time.monotonic() + patience_s
    while (found := serving.counts()["connections"]) != wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not as many connections, wanted={wanted}, found={found}")
        time.sleep(LOOK_S)  # another process accepts them


def measure(
    serving: Serving, load: Load, idle: int, active: int, seconds: float
) -> dict[str, float]:
    """Return the response times with so many idle connections, and the supervisor's memory."""
    with Idlers(serving.address, idle):
        await_connections(serving, idle + active)
        load.ask(0.1)
        asked = load.ask(seconds)
        await_connections(serving, idle + active, 0.0)  # it is them that this was measured with
        return {
            "p50_us": percentile(asked.times_us, 0.5),
            "p99_us": percentile(asked.times_us, 0.99),
            "rate_per_s": asked.rate_per_s,
            "rss_mib": serving.rss_bytes() / 2**20,
            "connections": idle + active,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; or be the process with the idle connections."""
    options = _parse(arguments)
    if options.idle_at:
        return be_idle(options.idle_at[0], int(options.idle_at[1]))
    raise_limit(max(options.idle) + options.active)
    return interruptible(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    described = machine.describe()
    print(describe(described, {}), flush=True)
    numbers = [0, *options.idle]
    found: dict[int, dict[str, list[float]]] = {idle: {} for idle in numbers}
    bare: dict[int, dict[str, list[float]]] = {idle: {} for idle in numbers}
    with on_bus() as serving, Load(serving.address, options.active, SIZE) as load:
        for _ in range(options.rounds):
            for idle in options.idle:  # each beside a time without idle ones
                for number, into in ((0, bare[idle]), (idle, found[idle])):
                    figures = measure(serving, load, number, options.active, options.seconds)
                    for name, value in figures.items():
                        into.setdefault(name, []).append(value)
    rows = [["idle", "p50", "p99", "p50 to none idle", "p99 to none idle", "supervisor's memory"]]
    cells = []
    for idle in options.idle:
        p50, p99 = (ratios(found[idle][n], bare[idle][n]) for n in ("p50_us", "p99_us"))
        rows += [_row(0, bare[idle]), _row(idle, found[idle], p50, p99)]
        cells.append(
            {
                "idle": idle,
                "with": found[idle],
                "without": bare[idle],
                "p50_ratio": p50.to_json(),
                "p99_ratio": p99.to_json(),
            }
        )
    title = f"{options.active} active connections, {SIZE} bytes; wanted: at most {RATIO_MAX}."
    print("\n".join([title, *aligned(rows)]))
    if options.json is not None:
        document = {"machine": described, "active": options.active, "cells": cells}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.plot is not None:
        draw(cells, options.plot)
    return 0


def _row(
    idle: int,
    values: dict[str, list[float]],
    p50: Spread | None = None,
    p99: Spread | None = None,
) -> list[str]:
    medians = {name: Spread.of(of_rounds).median for name, of_rounds in values.items()}
    texts = [
        "" if s is None else f"{s.median:.2f} ({s.least:.2f} to {s.greatest:.2f})"
        for s in (p50, p99)
    ]
    times = [f"{medians[name]:.0f} us" for name in ("p50_us", "p99_us")]
    return [f"{idle:,}", *times, *texts, f"{medians['rss_mib']:.0f} MiB"]


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the ratios over the number of idle connections."""
    try:
        import matplotlib as mpl
    except ImportError:
        sys.exit("--plot needs matplotlib: pip install aembus[plot]")
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    idle = [cell["idle"] for cell in cells]
    for name in ("p50_ratio", "p99_ratio"):
        medians = [cell[name]["median"] for cell in cells]
        below = [m - cell[name]["least"] for m, cell in zip(medians, cells, strict=True)]
        above = [cell[name]["greatest"] - m for m, cell in zip(medians, cells, strict=True)]
        label = name.removesuffix("_ratio")
        axes.errorbar(idle, medians, yerr=[below, above], marker="o", capsize=3, label=label)
    axes.axhline(RATIO_MAX, linestyle=":", color="grey", label=f"{RATIO_MAX}, wanted")
    axes.set_xscale("log")
    axes.set_xlabel("idle connections")
    axes.set_ylabel("response time, to none idle")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.idle_connections",
        description="Measure what idle connections cost the active ones.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=positive, default=5, metavar="N", help="default: %(default)s")
    add(
        "--seconds", type=positive_s, default=1.0, metavar="S", help="of a measurement: %(default)g"
    )
    add("--idle", type=positive, nargs="+", default=list(IDLE), metavar="N",
        help="default: %(default)s")  # fmt: skip
    add("--active", type=positive, default=ACTIVE, metavar="N", help="default: %(default)s")
    add("--plot", type=Path, metavar="FILE.png", help="also draw the curve")
    add("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    add("--idle-at", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
