"""``python -m bench.echo``: echo through the TCP service and a worker, beside plain servers.

The servers take turns in each round, so that what else slows the machine falls on all of them.
CPU is that of all processes that serve (supervisor and workers), for each request; the asking
process is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.arguments import interruptible, positive, positive_s
from bench.echo_load import Load
from bench.echo_servers import PLAIN, Serving, on_bus, plain
from bench.figures import Spread, percentile, ratios
from bench.report import aligned, describe

CONNECTIONS: Final = (1, 10, 100)
SIZES: Final = (64, 4096)
COMPUTE_US: Final = 200
COMPUTE_CONNECTIONS: Final = 100
WARM_UP_S: Final = 0.2
CPU_RATIO_MAX: Final = 2.0
RATE_RATIO_MIN: Final = 1.5
OURS: Final = "aembus "  # and which event loop its supervisor runs in
EXAMPLE: Final = """
examples:
  python -m bench.echo                          # 5 rounds of 0.5 s, 1, 10, 100 connections
  python -m bench.echo --rounds 3 --connections 100 --json echo.json
"""

Servers = dict[str, Callable[[], AbstractContextManager[Serving]]]


def measure(
    servers: Servers, connections: int, size: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Return, for each server, the CPU time and the rate of each round, and response times."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"cpu_us": [], "rate_per_s": [], "p50_us": [], "p99_us": []} for name in servers
    }
    with contextlib.ExitStack() as stack:
        serving = {name: stack.enter_context(make()) for name, make in servers.items()}
        loads = {
            name: stack.enter_context(Load(server.address, connections, size))
            for name, server in serving.items()
        }
        for load in loads.values():
            load.ask(WARM_UP_S)
        for number in range(rounds):
            names = list(servers) if number % 2 else list(servers)[::-1]
            for name in names:
                before_s = serving[name].cpu_s()
                asked = loads[name].ask(seconds)
                used_s = serving[name].cpu_s() - before_s
                cells = found[name]
                cells["cpu_us"].append(used_s / asked.requests * 1e6)
                cells["rate_per_s"].append(asked.rate_per_s)
                cells["p50_us"].append(percentile(asked.times_us, 0.5))
                cells["p99_us"].append(percentile(asked.times_us, 0.99))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    options = _parse(arguments)
    return interruptible(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    described = machine.describe()
    print(describe(described, {}), flush=True)
    known = [n for n in PLAIN if importlib.util.find_spec(n) is not None]
    servers: Servers = {name: functools.partial(plain, name) for name in known}
    servers |= {OURS + name: functools.partial(on_bus, loop=name) for name in known}
    rows = [["connections", "bytes", "server", "CPU a request", "requests/s", "p50", "p99",
             "CPU to the same loop's"]]  # fmt: skip
    cells = []
    for connections in options.connections:
        for size in options.sizes:
            found = measure(servers, connections, size, options.rounds, options.seconds)
            rows += [_row(found, name, connections, size) for name in servers]
            cells.append({"connections": connections, "size": size, "servers": found})
    print("\n".join(["Echo; CPU of everything that serves.", *aligned(rows)]), flush=True)
    computing: Servers = {name: functools.partial(plain, name, COMPUTE_US) for name in known}
    computing |= {
        OURS + name: functools.partial(on_bus, 2, COMPUTE_US, loop=name) for name in known
    }
    found = measure(computing, COMPUTE_CONNECTIONS, 64, options.rounds, options.seconds)
    rows = [["server", "requests/s", "rate to the same loop's"]]
    for name in computing:
        rate = found[name]["rate_per_s"]
        ratio = _ratio(rate, found[name.removeprefix(OURS)]["rate_per_s"])
        rows.append([name, f"{Spread.of(rate).median:,.0f}", ratio])
    title = f"A handler that computes for {COMPUTE_US} us; aembus with 2 workers."
    print("\n".join([title, *aligned(rows)]))
    if options.json is not None:
        document = {"machine": described, "cells": cells, "computing": found}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _row(found: dict[str, Any], name: str, connections: int, size: int) -> list[str]:
    cells = {key: Spread.of(values).median for key, values in found[name].items()}
    same_loop = found[name.removeprefix(OURS)]
    return [
        str(connections), str(size), name, f"{cells['cpu_us']:.1f} us",
        f"{cells['rate_per_s']:,.0f}", f"{cells['p50_us']:.0f} us", f"{cells['p99_us']:.0f} us",
        _ratio(found[name]["cpu_us"], same_loop["cpu_us"]),
    ]  # fmt: skip


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    found = ratios(ours, theirs)
    return f"{found.median:.2f} ({found.least:.2f} to {found.greatest:.2f})"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.echo",
        description="Compare echo through the TCP service and a worker with plain servers.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=positive, default=5, metavar="N", help="default: %(default)s")
    add("--seconds", type=positive_s, default=0.5, metavar="S", help="of a round: %(default)g")
    add("--connections", type=positive, nargs="+", default=list(CONNECTIONS), metavar="N",
        help="default: %(default)s")  # fmt: skip
    add("--sizes", type=positive, nargs="+", default=list(SIZES), metavar="BYTES",
        help="default: %(default)s")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
