"""``aembus trace``: a line for each job of an activation point, as it is sent."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, Final

from aembus.cli import buses
from aembus.cli.text import count
from aembus.cli.usage import Commands, add_command, add_json, bus_name, positive_int

POLL_S: Final = 0.5
DATA_CHARACTERS_MAX: Final = 100
POINTS_MAX: Final = 12  # that are named where a point may be mistyped

_EXAMPLES = """
aembus trace call.setup
aembus trace call.setup --count 10 --json"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "trace",
        "show the jobs of an activation point",
        "Show a line for each job of an activation point: when it was activated, by whom, the\n"
        "hash of its key, its data. Jobs are copied and nobody waits for this command: what it\n"
        "has no room for is dropped, and how many that were is said at the end. Ctrl-C ends it.",
        _EXAMPLES,
    )
    parser.add_argument("point", metavar="POINT", help="the activation point's name")
    parser.add_argument(
        "--bus", type=bus_name, metavar="NAME", help="which bus (default: the only one that runs)"
    )
    parser.add_argument(
        "--count", type=positive_int, metavar="N", help="end after N jobs (default: go on)"
    )
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> int:
    """Show jobs until there were enough."""
    from aembus.connecting import connect

    shown = 0
    name = buses.the_one_running(arguments.bus)
    points = sorted(point["name"] for point in buses.statistics(name)["points"])
    if arguments.point not in points and not arguments.json:
        some = f"{points[:POINTS_MAX]}{'...' if len(points) > POINTS_MAX else ''}"
        said = f"nobody is registered at {arguments.point!r} now, points={some}"
        print(f"aembus trace: {said}", file=sys.stderr, flush=True)
    with connect(name) as bus:

        def show(event: Any, *data: Any) -> None:
            nonlocal shown
            if arguments.count is not None and shown >= arguments.count:
                return
            shown += 1
            job = event.job
            found = {
                "at": time.time() - (time.monotonic_ns() - job.activated_ns) / 1e9,
                "from": bus.name_of(job.origin[0]),
                "key": job.key,
                "data": data,
            }
            print(_json(found) if arguments.json else _line(found), flush=True)

        bus.tap(arguments.point, show, name="aembus trace")
        try:
            while arguments.count is None or shown < arguments.count:
                bus.poll(POLL_S)
        finally:
            dropped = bus.statistics().dropped
            if not arguments.json:
                said = f"{count(shown, 'job')} shown, {dropped} dropped"
                print(f"aembus trace: {said}", file=sys.stderr)
    return 0


def _json(found: dict[str, Any]) -> str:
    return json.dumps(found, default=repr)


def _line(found: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(found["at"]))
    data = ", ".join(map(repr, found["data"]))
    if len(data) > DATA_CHARACTERS_MAX:
        data = f"{data[:DATA_CHARACTERS_MAX]}..."
    millis = int(found["at"] * 1000) % 1000
    return f"{at}.{millis:03d}  {found['from']}  key={found['key']:#010x}  {data}"
