"""Which buses there are on this machine, running or dead, as the commands see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aembus.cli.usage import WrongUsage
from aembus.errors import BusNotFound, PermissionRefused
from aembus.shm import names

RUNNING: Final = "running"
DEAD: Final = "dead"
FOREIGN: Final = "another user's"

ANSWER_S_MAX: Final = 5.0  # a supervisor that takes longer is stopped, or busy beyond use


@dataclass(frozen=True, slots=True)
class FoundBus:
    """A bus of which something lies in /dev/shm.

    state: RUNNING if a supervisor holds its lock, DEAD if nobody does, FOREIGN if this user may
        not know.
    pid: the supervisor's, 0 if that is not known.
    """

    name: str
    state: str
    pid: int


def find(bus: str) -> FoundBus:
    """Return what is known of one bus."""
    from aembus.supervisor.ownership import lock_holder

    try:
        holder = lock_holder(bus)
    except PermissionRefused:
        return FoundBus(bus, FOREIGN, 0)
    if holder is None:
        return FoundBus(bus, DEAD, 0)
    return FoundBus(bus, RUNNING, holder)


def find_all() -> list[FoundBus]:
    """Return every bus of which anything lies in /dev/shm, sorted by name."""
    return [find(bus) for bus in sorted({*names.buses(), *_buses_of_strays()})]


def _buses_of_strays() -> set[str]:
    # Names whose lock somebody has removed by hand.
    found = set()
    for path in names.DIRECTORY.glob(f"*{names.PREFIX}.*.*.*"):
        before, _, rest = path.name.partition(f"{names.PREFIX}.")
        if before in ("", "sem."):
            found.add(rest.split(".")[0])
    return {bus for bus in found if names.is_bus_name(bus)}


def left_in_shared_memory(bus: str) -> list[Path]:
    """Return everything of a bus in /dev/shm, the lock and the socket included."""
    own = (names.lock_path(bus), names.control_path(bus))
    return [*names.leftovers(bus), *(path for path in own if path.exists())]


def the_one_running(
    wanted: str | None, way_out: str = "start one: aembus run MODULE:FUNCTION"
) -> str:
    """Return the bus to look at: the one that is named, else the only one that runs.

    Args:
        way_out: what to do if none runs.

    Raises: BusNotFound if none runs, WrongUsage if several do.
    """
    if wanted is not None:
        return wanted
    running = [bus.name for bus in find_all() if bus.state == RUNNING]
    if not running:
        raise BusNotFound(f"no bus runs here; {way_out}")
    if len(running) > 1:
        raise WrongUsage(f"several buses run here; choose one: --bus NAME, running={running}")
    return running[0]


def statistics(bus: str) -> dict[str, Any]:
    """Ask a bus's supervisor for its statistics.

    Raises: BusNotFound, PermissionRefused, VersionMismatch, BusBroken, ControlError.
    """
    from aembus.control import ControlClient

    client = ControlClient(bus, timeout_s=ANSWER_S_MAX)
    try:
        return client.request("statistics")
    finally:
        client.close()
