"""Timers of a bus beside asyncio's, in pairs: memory, the cost of a start and a cancel, slip.

`python -m bench timers`: each round has both in turn, each in a process of its own; a timer of the
bus is started in one process and runs in another, a timer of asyncio does both in one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import machine
from bench.arguments import interruptible, positive, positive_s
from bench.progress import Progress
from bench.report import describe

FEW: Final = 10_000
MANY: Final = 2_000_000
BURST: Final = 10_000
EXAMPLE: Final = """
examples:
  python -m bench timers                          # about two minutes, 1 GB of memory
  python -m bench timers --many 200000 --rounds 1 --json timers.json
"""
OURS, THEIRS = "aembus", "asyncio"
MIB: Final = 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0, or 1 if a timer was lost or early."""
    options = _parse(arguments)
    return interruptible(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    described = machine.describe()
    print(describe(described, {}), flush=True)
    progress = Progress(options.rounds * 4 + 2)
    costs: dict[str, dict[int, list[dict[str, Any]]]] = {
        who: {options.few: [], options.many: []} for who in (OURS, THEIRS)
    }
    for _ in range(options.rounds):
        for count in (options.few, options.many):
            for who in (OURS, THEIRS):
                progress.step(f"{who}, {count:,} timers")
                order = {"what": "costs", "count": count, "burst": BURST, "bursts": options.bursts}
                costs[who][count].append(_measure(who, order))
    expiries = {}
    for who in (OURS, THEIRS):
        progress.step(f"{who}, {options.rate:,} expiries a second")
        order = {"what": "expiries", "rate": options.rate, "seconds": options.seconds}
        expiries[who] = _measure(who, order)
    progress.clear()
    summary = {who: _summary(costs[who]) for who in costs}
    print(_cost_table(summary, options), flush=True)
    print(_expiry_table(expiries, options), flush=True)
    described["load_after"] = machine.load()
    if options.json is not None:
        document = {"machine": described, "costs": costs, "summary": summary, "expiries": expiries}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    ours = expiries[OURS]
    return 1 if ours["lost"] or ours["early"] else 0


def _measure(who: str, order: dict[str, Any]) -> dict[str, Any]:
    if who == THEIRS:
        return _load(order)
    import aembus
    from aembus.control import ControlClient

    bus = f"bench-timers-{os.getpid()}"
    with (
        tempfile.TemporaryDirectory(prefix="aembus-bench-") as directory,
        aembus.Supervisor(bus, services=["timer"], state_directory=Path(directory)),
    ):
        control = ControlClient(bus)
        members = control.request("statistics")["members"]
        host = next(m["pid"] for m in members if m["kind"] == "supervisor")
        result = _load({**order, "bus": bus, "host": host})
        (service,) = control.request("statistics")["services"]
        control.close()
    return {**result, "service": service}


def _load(order: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.timer_load", json.dumps(order)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# --- figures ------------------------------------------------------------------------------------


def _summary(costs: dict[int, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the medians over rounds and bursts, by number of timers."""
    summary = {}
    for count, rounds in costs.items():
        per_process = len(rounds[0]["memory_bytes"])
        figures: dict[str, Any] = {
            "memory_bytes": [
                median(r["memory_bytes"][p] for r in rounds) for p in range(per_process)
            ]
        }
        for what in ("start_us", "cancel_us"):
            bursts = [burst for r in rounds for burst in r[what]]
            figures[what] = median(sum(burst[:-1]) for burst in bursts)
            figures[f"{what}_apart"] = [median(b[p] for b in bursts) for p in range(per_process)]
            figures[f"{what}_wall"] = median(burst[-1] for burst in bursts)
        summary[str(count)] = figures
    return summary


def _cost_table(summary: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    title = "one process starts timers with handlers: microseconds of CPU, all processes together"
    lines = [
        f"\n{title} (medians of {options.rounds} rounds)",
        f"  {'':28}{OURS:>12}{'(starter':>12}{'+ host)':>10}{THEIRS:>12}{'ratio':>9}",
    ]
    for what, name in (("start_us", "start"), ("cancel_us", "cancel, random order")):
        for count in (options.few, options.many):
            ours, theirs = (summary[who][str(count)] for who in (OURS, THEIRS))
            apart = ours[f"{what}_apart"]
            lines.append(
                f"  {f'{name}, {count:,} run':28}{ours[what]:12.2f}{apart[0]:12.2f}"
                f"{apart[1]:10.2f}{theirs[what]:12.2f}{ours[what] / theirs[what]:9.2f}"
            )
    for what, name in (("start_us", "start"), ("cancel_us", "cancel")):
        growth = [
            summary[who][str(options.many)][what] / summary[who][str(options.few)][what]
            for who in (OURS, THEIRS)
        ]
        label = f"{name}, {options.many:,} / {options.few:,}"
        lines.append(f"  {label:28}{growth[0]:12.2f}{'':22}{growth[1]:12.2f}")
    ours, theirs = (summary[who][str(options.many)]["memory_bytes"] for who in (OURS, THEIRS))
    apart_text = f"starter {ours[0] / MIB:.0f} MiB, host {ours[1] / MIB:.0f} MiB"
    each = f"{sum(ours) / options.many:5.0f} bytes each"
    lines += [
        f"\nmemory of {options.many:,} running timers, above idle (PSS)",
        f"  aembus   {sum(ours) / MIB:7.0f} MiB  {each}: {apart_text}",
        f"  asyncio  {sum(theirs) / MIB:7.0f} MiB  {sum(theirs) / options.many:5.0f} bytes each",
    ]
    return "\n".join(lines)


def _expiry_table(expiries: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    title = f"{options.rate:,} expiries a second for {options.seconds:g} s, seen by the handlers"
    lines = [
        f"\n{title}: milliseconds late, microseconds of CPU",
        f"  {'':10}{'p50':>9}{'p99':>9}{'max':>9}{'lost':>7}{'early':>7}{'CPU each':>10}",
    ]
    for who, result in expiries.items():
        slip = result["slip_us"]
        late = "".join(f"{slip[name] / 1000:9.2f}" for name in ("p50", "p99", "max"))
        lines.append(
            f"  {who:10}{late}{result['lost']:7}{result['early']:7}{sum(result['cpu_us']):10.2f}"
            + ("" if result["started_in_time"] else "  (started too late)")
        )
    service = expiries[OURS]["service"]
    lines.append(
        f"  by the service's own count: p50 {service['slip_us_p50'] / 1000:.2f}, "
        f"p99 {service['slip_us_p99'] / 1000:.2f}, max {service['slip_us_max'] / 1000:.2f}"
    )
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench timers",
        description="Compare the timers of a bus with asyncio's call_later.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=2, help="pairs of each (default: 2)")
    parser.add_argument("--bursts", type=positive, default=5, help="in a round (default: 5)")
    parser.add_argument("--few", type=positive, default=FEW, help="timers (default: 10,000)")
    parser.add_argument("--many", type=positive, default=MANY, help="timers (default: 2,000,000)")
    parser.add_argument("--rate", type=positive, default=100_000, help="expiries a second")
    parser.add_argument(
        "--seconds", type=positive_s, default=10.0, help="of expiries (default: 10)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    return parser.parse_args(arguments)
