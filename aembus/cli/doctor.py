"""``aembus doctor``: what is in use here, and whether the machine fits."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Final

from aembus.cli import buses
from aembus.cli.text import size, table
from aembus.cli.usage import Commands, add_command, add_json, version
from aembus.errors import OpenError, SupervisorError
from aembus.shm import layout, names

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

PYTHON_MIN: Final = (3, 11)
DESCRIPTORS_MIN: Final = 4096
MEMBERS_MIN: Final = 2  # the supervisor and one more
DEPENDENCIES: Final = {"posix-ipc": "posix_ipc", "msgpack": "msgpack", "psutil": "psutil"}

_EXAMPLES = """
aembus doctor
aembus doctor --json"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    status: str
    name: str
    text: str


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "doctor",
        "say what is in use and whether the machine fits",
        "Say what is in use here, and whether the machine fits.  Exit code 1 if it does not.",
        _EXAMPLES,
    )
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    findings = list(examine())
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        lines = table(("", "", ""), [(f.status, f.name, f.text) for f in findings])
        print(lines.strip("\n"))
    return 1 if any(finding.status == FAIL for finding in findings) else 0


def examine() -> Iterator[Finding]:
    """Look at everything, and yield what is found."""
    yield _python()
    yield _platform()
    yield _memory_model(platform.machine())
    yield _aembus()
    yield from map(_dependency, DEPENDENCIES)
    yield _event_loop()
    yield _descriptors()
    yield _pidfd()
    yield _shared_memory()
    yield _stale()


def _python() -> Finding:
    text = f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    if sys.version_info < PYTHON_MIN:
        least = ".".join(map(str, PYTHON_MIN))
        return Finding(FAIL, "python", f"{text}: too old, want {least} or later")
    if platform.python_implementation() != "CPython":
        return Finding(WARN, "python", f"{text}: the lanes were only ever run on CPython")
    return Finding(OK, "python", text)


def _platform() -> Finding:
    text = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform != "linux":
        return Finding(FAIL, "platform", f"{text}: aembus needs Linux")
    return Finding(OK, "platform", text)


def _memory_model(machine: str) -> Finding:
    if machine in ("x86_64", "AMD64"):
        return Finding(OK, "memory model", "x86-64: stores are seen in order")
    return Finding(
        WARN,
        "memory model",
        f"{machine}: plain-Python lanes rely on x86-64, where stores are seen in order; here jobs "
        "may be lost or torn under load",
    )


def _aembus() -> Finding:
    from aembus.shm import lanes

    text = f"{version()}, layout {layout.LAYOUT_VERSION}"
    try:
        lanes.check()
    except OpenError as error:
        return Finding(FAIL, "aembus", f"{text}: {error}")
    return Finding(OK, "aembus", f"{text}, lanes in {lanes.IMPLEMENTATION}")


def _dependency(name: str) -> Finding:
    try:
        importlib.import_module(DEPENDENCIES[name])
        return Finding(OK, name, metadata.version(name))
    except ImportError as error:  # metadata.PackageNotFoundError is one
        return Finding(FAIL, name, f"{error}: pip install {name}")


def _event_loop() -> Finding:
    from aembus.hosting import event_loop

    try:
        chosen = event_loop.chosen_loop()
    except SupervisorError as error:
        return Finding(FAIL, "event loop", str(error))
    if chosen == event_loop.UVLOOP:
        return Finding(OK, "event loop", f"uvloop {metadata.version('uvloop')}")
    return Finding(OK, "event loop", "asyncio's own; uvloop is used where it is installed")


def _descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"up to {hard} in a process; each TCP connection takes one"
    if hard < DESCRIPTORS_MIN:
        return Finding(WARN, "descriptors", f"{text}; raise the hard limit: ulimit -Hn, nofile")
    return Finding(OK, "descriptors", text)


def _pidfd() -> Finding:
    try:
        descriptor = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(descriptor, 0)
        finally:
            os.close(descriptor)
    except (AttributeError, OSError) as error:
        return Finding(FAIL, "pidfd", f"not available ({error}): aembus needs Linux 5.4 or later")
    return Finding(OK, "pidfd", "available")


def _shared_memory() -> Finding:
    name = str(names.DIRECTORY)
    try:
        space = os.statvfs(names.DIRECTORY)
    except OSError as error:
        return Finding(FAIL, name, f"cannot be used: {error}")
    if not os.access(names.DIRECTORY, os.R_OK | os.W_OK | os.X_OK):
        return Finding(FAIL, name, "cannot be written to by this user")
    total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    return _space(name, total, free)


def bytes_for(members: int) -> int:
    """Return what a bus of default sizes takes, if every member but the supervisor talks with it.

    Each member has an inbox, a doorbell, and a lane to and from the supervisor.
    """
    inbox = layout.rings_offset(layout.SLOTS_DEFAULT) + layout.PAGE
    registry = layout.registry_bytes(layout.REGISTRY_HALF_BYTES_DEFAULT)
    return registry + members * inbox + 2 * (members - 1) * layout.LANE_BYTES_DEFAULT


def _space(name: str, total: int, free: int) -> Finding:
    default = layout.SLOTS_DEFAULT
    each = bytes_for(2) - bytes_for(1)
    fit = max(0, (free - bytes_for(1)) // each + 1)
    text = (
        f"{size(total)}, {size(free)} free: room for about {fit} members of default sizes "
        f"(a full bus has {default} and takes about {size(bytes_for(default))})"
    )
    if fit >= default:
        return Finding(OK, name, text)
    status = WARN if fit >= MEMBERS_MIN else FAIL
    way_out = "make it larger: mount -o remount,size=..., docker run --shm-size=..."
    return Finding(status, name, f"{text}; {way_out}")


def _stale() -> Finding:
    dead = [bus.name for bus in buses.find_all() if bus.state == buses.DEAD]
    if dead:
        return Finding(
            WARN, "stale names", f"dead supervisors left some; run: aembus clean, buses={dead}"
        )
    return Finding(OK, "stale names", "none")
