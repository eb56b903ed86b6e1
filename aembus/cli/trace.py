"""``aembus trace``: a line for each job of an activation point, as it is sent."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Final

from aembus.cli import buses
from aembus.cli.text import count, to_json
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
    seen: list[dict[str, Any]] = []
    name = buses.the_one_running(arguments.bus)
    points = sorted(point["name"] for point in buses.statistics(name)["points"])
    if arguments.point not in points:
        some = f"{points[:POINTS_MAX]}{'...' if len(points) > POINTS_MAX else ''}"
        said = f"nobody is registered at {arguments.point!r} now, points={some}"
        print(f"aembus trace: {said}", file=sys.stderr, flush=True)
    with connect(name) as bus:

        def see(event: Any, *data: Any) -> None:
            # Not shown here: a handler that cannot print would only be logged, again and again.
            job = event.job
            seen.append(
                {
                    "at": time.time() - (time.monotonic_ns() - job.activated_ns) / 1e9,
                    "from": bus.name_of(job.origin[0]),
                    "key": job.key,
                    "data": data,
                }
            )

        bus.tap(arguments.point, see, name="aembus trace")
        try:
            while arguments.count is None or shown < arguments.count:
                try:
                    bus.poll(POLL_S)
                finally:  # what had come is shown, also if the bus is gone
                    left = None if arguments.count is None else arguments.count - shown
                    for found in seen[:left]:
                        print(to_json(found) if arguments.json else _line(found), flush=True)
                        shown += 1
                    seen.clear()
        finally:
            said = f"{count(shown, 'job')} shown, {bus.statistics().dropped} dropped"
            print(f"aembus trace: {said}", file=sys.stderr)
    return 0


def _line(found: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(found["at"]))
    data = ", ".join(map(repr, found["data"]))
    if len(data) > DATA_CHARACTERS_MAX:
        data = f"{data[:DATA_CHARACTERS_MAX]}..."
    millis = int(found["at"] * 1000) % 1000
    return f"{at}.{millis:03d}  {found['from']}  key={found['key']:#010x}  {data}"
