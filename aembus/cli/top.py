"""``aembus top``: what a bus does now, again and again: rates, queues, and who is busy.

Rates are differences of counts that are read off the lanes, so they cost the members nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

from aembus.cli import buses
from aembus.cli.text import MAY_MISS, cut, duration, narrow_table, terminal_columns, terminal_size
from aembus.cli.usage import Commands, add_command, add_json, bus_name, positive_int, positive_s

INTERVAL_S: Final = 1.0
CLEAR: Final = "\x1b[H\x1b[2J"  # the cursor home, the screen empty; ECMA-48, 8.3.21 and 8.3.39

_EXAMPLES = """
aembus top
aembus top --bus switch --interval 5
aembus top --count 1 --json"""

_COLUMNS: Final = ("kind", "name", "pid", "state", "in/s", "out/s", "queued", "held", "retrying",
                   "failed", "dead", "restarts")  # fmt: skip


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "top",
        "show what a bus does now, once a second",
        "Show the members of a bus, busiest first, once a second: jobs delivered (in/s) and sent\n"
        "(out/s) a second, and what waits. Ctrl-C ends it.",
        _EXAMPLES,
    )
    parser.add_argument(
        "--bus", type=bus_name, metavar="NAME", help="which bus (default: the only one that runs)"
    )
    parser.add_argument(
        "--interval",
        type=positive_s,
        default=INTERVAL_S,
        metavar="S",
        help="seconds between two looks (default: %(default)g)",
    )
    parser.add_argument(
        "--count", type=positive_int, metavar="N", help="end after N looks (default: go on)"
    )
    add_json(parser)
    parser.set_defaults(execute=execute)


@dataclass(frozen=True, slots=True)
class Look:
    """The bus at one moment.

    at: seconds on the monotonic clock.
    """

    at: float
    found: dict[str, Any]


def execute(arguments: argparse.Namespace) -> int:
    """Look again and again."""
    bus = buses.the_one_running(arguments.bus)
    before = _look(bus)
    left = arguments.count
    while left is None or left > 0:
        time.sleep(arguments.interval)
        now = _look(bus)
        rows = rates(before, now)
        if arguments.json:
            print(json.dumps({"bus": bus, "members": rows}), flush=True)
        else:
            if sys.stdout.isatty():
                print(CLEAR, end="")
            print(cut(text(now, rows, terminal_columns()), terminal_size()), flush=True)
        before = now
        left = None if left is None else left - 1
    return 0


def _look(bus: str) -> Look:
    return Look(time.monotonic(), buses.statistics(bus))


def rates(before: Look, now: Look) -> list[dict[str, Any]]:
    """Return a row for each member that is there now, busiest first.

    One that has come since `before` has been idle until then.
    """
    elapsed_s = max(now.at - before.at, 1e-9)
    earlier = {(m["slot"], m["name"]): m for m in before.found["members"]}
    rows = []
    for member in now.found["members"]:
        was = earlier.get((member["slot"], member["name"]), {"delivered": 0, "sent": 0})
        row = {key: member[key] for key in ("kind", "name", "pid", "state")}
        row["in_per_s"] = round(max(member["delivered"] - was["delivered"], 0) / elapsed_s)
        row["out_per_s"] = round(max(member["sent"] - was["sent"], 0) / elapsed_s)
        for key in ("queued", "held", "retrying", "failed", "dead_lettered", "restarts"):
            row[key] = member[key]
        rows.append(row)
    return sorted(rows, key=lambda row: (-row["in_per_s"] - row["out_per_s"], row["name"]))


def text(now: Look, rows: list[dict[str, Any]], columns: int | None = None) -> str:
    """Return one look for a person, without what nobody has any of if that is too wide."""
    supervisor, totals = now.found["supervisor"], now.found["totals"]
    delivered = sum(row["in_per_s"] for row in rows)
    head = (
        f"bus {now.found['bus']!r}, up {duration(supervisor['uptime_s'])}: {delivered} jobs/s, "
        f"queued {totals['queued']}, dead-lettered {totals['dead_lettered']}"
    )
    cells = [list(row.values()) for row in rows]
    return f"{head}\n\n{narrow_table(_COLUMNS, cells, columns, MAY_MISS)}"
