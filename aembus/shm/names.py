"""The names of everything that a bus keeps in /dev/shm, made in one place.

Segments, semaphores and pipes are ``aembus.<bus>.<nonce>.<role>``; the lock and the control
socket are ``aembus.<bus>.lock`` and ``aembus.<bus>.control``, without a nonce since they are how
a bus is found.  They too live in /dev/shm, so that no environment variable can make two processes
look in two places.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Final

from aembus.errors import OpenError

DIRECTORY: Final = Path("/dev/shm")
PREFIX: Final = "aembus"
BUS_NAME_MAX: Final = 40
_BUS_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{BUS_NAME_MAX}}}\Z")
_SEMAPHORE_PREFIX = "sem."  # what glibc puts before a semaphore's name


def check_bus_name(bus: str, what: str = "bus") -> str:
    """Return `bus` if it can name a bus (a worker, a member: `what`), else raise OpenError."""
    if not isinstance(bus, str) or not is_bus_name(bus):
        raise OpenError(
            f"a {what} name has 1 to {BUS_NAME_MAX} letters, digits, '-' or '_', name={bus!r}"
        )
    return bus


def is_bus_name(name: str) -> bool:
    """Say whether a bus can be called so; what else lies in /dev/shm anybody may have put there."""
    return _BUS_NAME.match(name) is not None


def new_nonce() -> str:
    """Return a fresh part for the names of one run of a bus."""
    return os.urandom(4).hex()


def shared_name(bus: str, nonce: str, role: str) -> str:
    """Return the POSIX name (with its leading slash) of a segment or semaphore."""
    return f"/{PREFIX}.{bus}.{nonce}.{role}"


def pipe_path(bus: str, nonce: str, role: str) -> Path:
    """Return the path of the named pipe that is a doorbell of kind descriptor."""
    return DIRECTORY / f"{PREFIX}.{bus}.{nonce}.{role}"


def lock_path(bus: str) -> Path:
    """Return the path of the file whose lock the running supervisor holds."""
    return DIRECTORY / f"{PREFIX}.{bus}.lock"


def control_path(bus: str) -> Path:
    """Return the path of the supervisor's control socket."""
    return DIRECTORY / f"{PREFIX}.{bus}.control"


def buses() -> list[str]:
    """Return the names of all buses of which a lock or a socket lies in /dev/shm, sorted."""
    found = set()
    for path in DIRECTORY.glob(f"{PREFIX}.*"):
        parts = path.name.split(".")
        if len(parts) == 3 and parts[2] in ("lock", "control") and is_bus_name(parts[1]):
            found.add(parts[1])
    return sorted(found)


def leftovers(bus: str) -> list[Path]:
    """Return what lies in /dev/shm under this bus's name, the lock and the socket apart."""
    keep = {lock_path(bus).name, control_path(bus).name}
    found = []
    for prefix in (f"{PREFIX}.{bus}.", f"{_SEMAPHORE_PREFIX}{PREFIX}.{bus}."):
        found += [p for p in DIRECTORY.glob(f"{glob.escape(prefix)}*") if p.name not in keep]
    return sorted(found)
