"""``aembus clean``: removes what dead supervisors left in /dev/shm."""

from __future__ import annotations

import argparse
from pathlib import Path

from aembus.cli import buses
from aembus.cli.text import count
from aembus.cli.usage import Commands, add_command, bus_name
from aembus.errors import BusAlreadyRunning, PermissionRefused
from aembus.shm import names

_DESCRIPTION = """Remove what dead supervisors left in /dev/shm.

A bus that runs is never touched: its lock is taken first.  The next start of a bus cleans up by
itself; this command is for buses that will not be started again."""

_EXAMPLES = """
aembus clean --dry-run
aembus clean
aembus clean --bus switch"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "clean", "remove what dead supervisors left", _DESCRIPTION, _EXAMPLES
    )
    parser.add_argument(
        "--bus", type=bus_name, metavar="NAME", help="only this bus (default: every dead one)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> int:
    """Clean up, and print what was removed."""
    removed: list[Path] = []
    if arguments.bus is not None:
        removed = _clean(buses.find(arguments.bus), dry_run=arguments.dry_run)
    else:
        for bus in buses.find_all():
            if bus.state == buses.DEAD:
                try:
                    removed += _clean(bus, dry_run=arguments.dry_run)
                except (BusAlreadyRunning, PermissionRefused) as error:  # started meanwhile
                    print(f"left alone: {error}")
    for path in removed:
        print(path)
    verb = "would be removed" if arguments.dry_run else "removed"
    print(f"{verb}: {count(len(removed), 'name')}" if removed else "nothing to remove")
    return 0


def _clean(bus: buses.FoundBus, *, dry_run: bool) -> list[Path]:
    from aembus.supervisor.ownership import BusLock, sweep

    if bus.state == buses.RUNNING:
        raise BusAlreadyRunning(
            "the bus runs, so nothing of it was removed; stop it first, "
            f"bus={bus.name!r}, pid={bus.pid}"
        )
    if bus.state == buses.FOREIGN:
        raise PermissionRefused(
            "the bus belongs to another user, who may clean it, "
            f"bus={bus.name!r}, lock={names.lock_path(bus.name)}"
        )
    left = buses.left_in_shared_memory(bus.name)
    if dry_run or not left:
        return left
    lock_was_there = names.lock_path(bus.name) in left
    lock = BusLock(bus.name)
    try:
        removed = sweep(bus.name)
    finally:
        lock.release()
    return [*removed, *([names.lock_path(bus.name)] if lock_was_there else [])]
