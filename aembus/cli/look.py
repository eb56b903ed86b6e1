"""``aembus ls`` and ``aembus stats``: which buses there are, and what one does."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aembus.cli import buses
from aembus.cli.text import (
    MAY_MISS,
    count,
    duration,
    fits,
    named_counts,
    narrow_table,
    table,
    terminal_columns,
    wrap,
)
from aembus.cli.usage import Commands, add_command, add_json, bus_name
from aembus.errors import BusBroken, BusNotFound, ControlError, VersionMismatch
from aembus.routing import STATE_DEGRADED
from aembus.service_box import LoadedService

STARTING: Final = "starting, stopping, or not answering"
OTHER_RELEASE: Final = "runs with another release of aembus"
DEAD_TEXT: Final = "dead, run: aembus clean"

_LS_EXAMPLES = """
aembus ls
aembus ls --json"""

_STATS_EXAMPLES = """
aembus stats
aembus stats --bus switch
aembus stats --bus switch --json"""

_MEMBER_COLUMNS: Final = (
    ("slot", "slot"),
    ("kind", "kind"),
    ("name", "name"),
    ("pid", "pid"),
    ("state", "state"),
    ("restarts", "restarts"),
    ("delivered", "delivered"),
    ("queued", "queued"),
    ("held", "held"),
    ("retrying", "retrying"),
    ("dead", "dead_lettered"),
    ("expired", "expired"),
    ("dropped", "dropped"),
    ("failed", "failed"),
)


SERVICE_COLUMNS: Final[Mapping[str, Callable[[LoadedService], object]]] = {
    "service": lambda service: service.name,
    "version": lambda service: service.version,
    "state": lambda service: service.state,
    "users": lambda service: len(service.users),
}


def add_ls(commands: Commands) -> None:
    """Add the command ``ls``."""
    parser = add_command(
        commands,
        "ls",
        "list the buses of this machine",
        "List the buses of this machine: those that run, and what dead ones left.",
        _LS_EXAMPLES,
    )
    add_json(parser)
    parser.set_defaults(execute=list_buses)


def add_stats(commands: Commands) -> None:
    """Add the command ``stats``."""
    parser = add_command(
        commands,
        "stats",
        "show what a bus does",
        "Show a bus's members, jobs, activation points and services.\n\n"
        "sent = delivered + dead-lettered + queued, always.  Of the queued ones, those held were\n"
        "taken by a handler that has not completed them (job.hold), and those retrying failed\n"
        "and wait for their next attempt.  Of the dead-lettered ones, those expired were too old\n"
        "(ttl) when their turn came.  Those dropped were never sent: there was no room, and the\n"
        "member's event is registered with full='drop'.",
        _STATS_EXAMPLES,
    )
    parser.add_argument(
        "--bus", type=bus_name, metavar="NAME", help="which bus (default: the only one that runs)"
    )
    add_json(parser)
    parser.set_defaults(execute=show_statistics)


def list_buses(arguments: argparse.Namespace) -> int:
    """Print the buses."""
    entries = [_entry(bus) for bus in buses.find_all()]
    if arguments.json:
        print(json.dumps(entries, indent=2))
    elif not entries:
        print("no bus runs here; start one: aembus run MODULE:FUNCTION")
    else:
        print(table(("bus", "supervisor", "members", "uptime", "state"), [*map(_row, entries)]))
    return 0


def _entry(bus: buses.FoundBus) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "bus": bus.name,
        "state": bus.state,
        "supervisor_pid": bus.pid or None,
        "members": {},
        "degraded": 0,
        "uptime_s": None,
    }
    if bus.state == buses.RUNNING:
        try:
            found = buses.statistics(bus.name)
        except (BusNotFound, BusBroken, ControlError):
            entry["state"] = STARTING
        except VersionMismatch:
            entry["state"] = OTHER_RELEASE
        else:
            entry["members"] = Counter(member["kind"] for member in found["members"])
            entry["degraded"] = sum(m["state"] == STATE_DEGRADED for m in found["members"])
            entry["uptime_s"] = found["supervisor"]["uptime_s"]
    return entry


def _row(entry: dict[str, Any]) -> list[str]:
    members = ", ".join(
        kind if kind == "supervisor" else count(number, kind)
        for kind, number in entry["members"].items()
    )
    uptime_s = entry["uptime_s"]
    return [
        entry["bus"],
        str(entry["supervisor_pid"] or "-"),
        members or "-",
        "-" if uptime_s is None else duration(uptime_s),
        _state_text(entry),
    ]


def _state_text(entry: dict[str, Any]) -> str:
    if entry["state"] == buses.DEAD:
        return DEAD_TEXT
    degraded = f", {entry['degraded']} degraded" if entry["degraded"] else ""
    return f"{entry['state']}{degraded}"


def show_statistics(arguments: argparse.Namespace) -> int:
    """Print the statistics of a bus."""
    found = buses.statistics(buses.the_one_running(arguments.bus))
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(statistics_text(found, terminal_columns()))
    return 0


def statistics_text(found: dict[str, Any], columns: int | None = None) -> str:
    """Return a bus's statistics for a person, in lines of so many columns where that can be."""
    supervisor, totals = found["supervisor"], found["totals"]
    now_ns = time.monotonic_ns()
    blocks = [
        (
            f"bus {found['bus']!r}, supervisor pid {supervisor['pid']}, "
            f"up {duration(supervisor['uptime_s'])}"
            + "".join(f", spare pid {pid}" for pid in supervisor.get("spares", ()))
        ),
        narrow_table(
            [title for title, _ in _MEMBER_COLUMNS],
            [[member[key] for _, key in _MEMBER_COLUMNS] for member in found["members"]],
            *(columns, MAY_MISS),
        ),
        (
            f"sent {totals['sent']} = delivered {totals['delivered']} + "
            f"dead-lettered {totals['dead_lettered']} + queued {totals['queued']}; "
            f"expired {totals['expired']}, dropped {totals['dropped']}"
        ),
    ]
    points = [
        (point["name"], len(point["events"]), sum(e["stopped"] for e in point["events"]))
        for point in found["points"]
    ]
    blocks.append(table(("point", "events", "stopped"), points) if points else "points: none")
    children = [
        (event["name"], point["name"], pid, duration(max(0.0, (now_ns - begun_ns) / 1e9)))
        for point in found["points"]
        for event in point["events"]
        for pid, begun_ns in event["children"]
    ]
    if children:
        blocks.append(table(("event", "point", "child's pid", "for"), children))
    services = [LoadedService.from_statistics(service) for service in found["services"]]
    if services:
        blocks.append(
            services_table(services, SERVICE_COLUMNS, columns)
            + f"\nservice calls {supervisor['calls']}, failed {supervisor['call_failures']}"
        )
    else:
        blocks.append("services: none")
    if found["counters"]:
        blocks.append(f"counters: {named_counts(found['counters'])}")
    return "\n\n".join(blocks)


def services_table(
    services: Sequence[LoadedService],
    shown: Mapping[str, Callable[[LoadedService], object]],
    columns: int | None,
) -> str:
    """Return a table of loaded versions; what each counts stands below it if it is too long.

    Args:
        shown: what to show besides, by title.
    """
    rows = [[value(service) for value in shown.values()] for service in services]
    counts = [named_counts(service.figures) or "-" for service in services]
    wide = [[*row, text] for row, text in zip(rows, counts, strict=True)]
    whole = table([*shown, "counts"], wide)
    if fits(whole, columns):
        return whole
    below = [f"{s.name} {s.version}: {c}" for s, c in zip(services, counts, strict=True)]
    return "\n".join([table([*shown], rows), *(wrap(line, columns) for line in below)])
