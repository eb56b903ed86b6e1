"""Runs something again and again, each time with another system call failing.

``python -m tests.crash.faulted SCENARIO BUS [ONLY]``, under the shim: forks a child for n = 1, 2, 3
... in which the n-th call fails, until a child comes through without one; prints a JSON line for
each: which call failed, how it ended, and whether anything was left open.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aembus
from tests.crash.parent_death import die_with_parent
from tests.crash.scene_log import POINTS, PROBE
from tests.crash.scene_stage import PLAIN, checksum
from tests.crash.scene_view import names_by_kind

# What is imported now needs no calls later.
for module in ("aembus.services.timer", "aembus.supervisor.core", "aembus.supervisor.supervisor"):
    importlib.import_module(module)

LIMIT: Final = 2000  # of calls; more would be an endless row
PATIENCE_S: Final = 8
SLOTS: Final = 8

shim = ctypes.CDLL(None)
shim.shim_failed.restype = ctypes.c_char_p


class Hung(Exception):
    """It took too long."""


def give_up(number: int, frame: object) -> None:
    """End whoever hangs."""
    raise Hung(f"did not end in {PATIENCE_S} s")


def come_to_the_end() -> None:
    """Stop the supervisor that this process is; that much shall go well."""
    shim.shim_disarm()
    os.kill(os.getpid(), signal.SIGTERM)


def client(bus_name: str, arm: Callable[[], None]) -> None:
    """Join, register, activate for the first time, and leave."""
    arm()
    with aembus.connect(bus_name) as bus:
        got: list[int] = []
        bus.register("faulted.echo", lambda event, number: got.append(number))
        assert bus.activate("faulted.echo", 1) == 1
        job = (1 << 30, os.getpid(), PLAIN, b"")
        assert bus.activate(f"{POINTS[PROBE]}.w-1", 0, *job, checksum(*job)) == 1
        deadline = time.monotonic() + PATIENCE_S
        while not got and time.monotonic() < deadline:
            bus.poll(0.1)
        assert got == [1]


def supervisor(bus_name: str, arm: Callable[[], None]) -> None:
    """Start a supervisor without workers, and stop it when it is ready."""
    with tempfile.TemporaryDirectory() as state:
        arm()
        aembus.Supervisor(bus_name, services=["timer"], slots=SLOTS, state_directory=state).run(
            on_ready=come_to_the_end
        )


def stop(bus_name: str, arm: Callable[[], None]) -> None:
    """Start a supervisor without workers; calls fail from the moment when it is ready."""

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        arm()

    with tempfile.TemporaryDirectory() as state:
        aembus.Supervisor(bus_name, services=["timer"], slots=SLOTS, state_directory=state).run(
            on_ready=end
        )


def nothing(bus: aembus.Bus) -> None:
    """Entry point of a worker that has nothing to do."""


def workers(bus_name: str, arm: Callable[[], None]) -> None:
    """Start a supervisor with a worker, and stop it when it is ready."""
    spec = aembus.WorkerSpec("w", "tests.crash.faulted:nothing")
    with tempfile.TemporaryDirectory() as state:
        arm()
        aembus.Supervisor(bus_name, workers=[spec], slots=SLOTS, state_directory=state).run(
            on_ready=come_to_the_end
        )


SCENARIOS: Final = {
    "client": client,
    "supervisor": supervisor,
    "stop": stop,
    "workers": workers,
}


def be_the_child(scenario: str, bus_name: str, number: int, report: int) -> None:
    """Run the scenario with one call failing, and say how it ended."""
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    before = set(os.listdir("/proc/self/fd"))
    result: dict[str, Any] = {"n": number, "error": "", "text": ""}
    try:
        SCENARIOS[scenario](bus_name, lambda: shim.shim_arm(number))
    except Exception as error:
        result["error"] = type(error).__name__
        result["text"] = str(error)
        result["known"] = isinstance(
            error, aembus.AembusError | OSError | MemoryError | RuntimeError
        )
        result["trace"] = traceback.format_exc()
    shim.shim_disarm()
    result["call"] = shim.shim_failed().decode()
    result["descriptors"] = sorted(
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in set(os.listdir("/proc/self/fd")) - before
        if os.path.exists(f"/proc/self/fd/{fd}")
    )
    os.write(report, json.dumps(result).encode())
    os._exit(0)


def run_once(scenario: str, bus_name: str, number: int) -> dict[str, Any]:
    """Fork a child that does it; return what it said, or how it died."""
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        die_with_parent()  # who hangs where no alarm reaches it must not outlive its test
        os.close(receiver)
        be_the_child(scenario, bus_name, number, sender)
    os.close(sender)
    with open(receiver, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    result: dict[str, Any] = json.loads(said) if said else {"n": number, "call": "?"}
    result["status"] = status
    if scenario != "client":
        result["names"] = names_by_kind(bus_name)
        for path in Path("/dev/shm").glob(f"*aembus.{bus_name}.*"):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    return result


def main(scenario: str, bus_name: str, only: str = "") -> None:
    """Go through all calls."""
    shim.shim_only(only.encode())
    for number in range(1, LIMIT):
        result = run_once(scenario, bus_name, number)
        print(json.dumps(result), flush=True)
        if not result["call"]:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
