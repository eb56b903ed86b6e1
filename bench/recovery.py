"""``python -m bench.recovery``: how soon a bus goes on after a kill.

Three times, each on a bus of its own that does nothing else:

- a worker is killed: from the kill to the first job that its replacement has begun, with a job sent
  every millisecond, and to the first line of its entry point;
- the callee is killed: from the kill to CallFailed in the caller;
- the supervisor is killed: from the kill to BusBroken in the last client, and to the last worker's
  end.  Clients and workers are idle, each in `run`.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aembus
from aembus.cli.buses import statistics
from aembus.supervisor.ownership import BusLock, sweep
from bench import machine
from bench.arguments import interruptible, positive
from bench.figures import percentile

BUS: Final = "bench-recovery"
NS: Final = 1_000_000
SEND_S: Final = 0.001
PATIENCE_S: Final = 30.0
SETTLE_S: Final = 1.0  # after a replacement is up, until there is a spare again
WORKERS: Final = 4
CLIENTS: Final = 4
EXAMPLE: Final = """
example:
  python -m bench.recovery --kills 100 --json recovery.json
"""

CLIENT: Final = """
import sys, time, aembus
with aembus.connect(sys.argv[1]) as bus:
    bus.register("nothing", print)
    print("ready", flush=True)
    try:
        bus.run()
    except aembus.BusBroken:
        print(time.monotonic_ns(), flush=True)
"""


def worker(bus: aembus.Bus) -> None:
    """Entry point: says when it got its first job."""
    began_ns = time.monotonic_ns()
    first = True

    def handle(event: aembus.Event) -> None:
        nonlocal first
        if first:
            first = False
            bus.activate("first", os.getpid(), began_ns, time.monotonic_ns())

    def hang(event: aembus.Event) -> None:
        bus.activate("in hand", os.getpid())
        threading.Event().wait()

    bus.register("job", handle)
    bus.register("hang", hang)


def kill(pid: int) -> int:
    """Kill a process; return when, in nanoseconds of the monotonic clock."""
    at_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    return at_ns


class Watched:
    """A bus with one worker, and what that has said about itself."""

    def __init__(self, bus: aembus.Bus) -> None:
        self._bus = bus
        self.pid = 0
        self.began_ns = self.first_ns = 0
        self._in_hand = 0
        bus.register("first", self._note_first)
        bus.register("in hand", self._note_in_hand)

    def _note_first(self, event: aembus.Event, pid: int, began_ns: int, first_ns: int) -> None:
        self.pid, self.began_ns, self.first_ns = pid, began_ns, first_ns

    def _note_in_hand(self, event: aembus.Event, pid: int) -> None:
        self._in_hand = pid

    def _until(self, come: Callable[[], bool], send: bool = True) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not come():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing in {PATIENCE_S} s")
            if send:
                self._bus.point("job").try_activate()
            self._bus.poll(SEND_S)

    def await_first(self, not_pid: int) -> None:
        """Send jobs until a process other than this has begun one."""
        self._until(lambda: self.pid not in (0, not_pid))

    def kill_worker(self) -> dict[str, float]:
        """Return the stages of a recovery, in milliseconds from the kill."""
        pid = self.pid
        killed_ns = kill(pid)
        self.await_first(pid)
        return {
            "kill to entry point": (self.began_ns - killed_ns) / NS,
            "kill to first job": (self.first_ns - killed_ns) / NS,
        }

    def kill_callee(self) -> float:
        """Return how long a caller waits after its callee's death, in milliseconds."""
        killed_ns: list[int] = []

        def kill_once_in_hand() -> None:
            with aembus.connect(BUS) as bus:
                bus.register("in hand", lambda event, pid: killed_ns.append(kill(pid)))
                ready.set()
                while not killed_ns:
                    bus.poll(PATIENCE_S)

        ready = threading.Event()
        killer = threading.Thread(target=kill_once_in_hand)
        killer.start()
        ready.wait()
        try:
            self._bus.point("hang").call(timeout=PATIENCE_S)
        except aembus.CallFailed:
            failed_ns = time.monotonic_ns()
        killer.join()
        return (failed_ns - killed_ns[0]) / NS


def workers_killed(kills: int, directory: str) -> dict[str, list[float]]:
    """Kill a worker so often, and as often one that is called."""
    found: dict[str, list[float]] = {}
    spec = aembus.WorkerSpec("w", "bench.recovery:worker")
    with (
        aembus.Supervisor(BUS, workers=[spec], state_directory=directory, log_level="CRITICAL"),
        aembus.connect(BUS) as bus,
    ):
        watched = Watched(bus)
        watched.await_first(0)
        for _ in range(kills):
            time.sleep(SETTLE_S)
            for stage, ms in watched.kill_worker().items():
                found.setdefault(stage, []).append(ms)
        for _ in range(kills):
            time.sleep(SETTLE_S)
            pid = watched.pid
            found.setdefault("callee's death to CallFailed", []).append(watched.kill_callee())
            watched.await_first(pid)
    return found


def one_supervisor_killed(directory: str) -> tuple[float, float]:
    """Return when the last client had noticed, and the last worker had ended."""
    spec = aembus.WorkerSpec("w", "bench.recovery:worker", WORKERS)
    with aembus.Supervisor(
        BUS, workers=[spec], state_directory=directory, log_level="CRITICAL"
    ) as supervisor:
        command = [sys.executable, "-c", CLIENT, BUS]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(CLIENTS)]
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        workers = [m["pid"] for m in statistics(BUS)["members"] if m["kind"] == "worker"]
        pidfds = [os.pidfd_open(pid) for pid in workers]
        killed_ns = kill(supervisor.pid)
        for pidfd in pidfds:
            select.select([pidfd], [], [], PATIENCE_S)
            os.close(pidfd)
        gone_ns = time.monotonic_ns()
        told_ns = max(int(client.communicate()[0]) for client in clients)
    return (told_ns - killed_ns) / NS, (gone_ns - killed_ns) / NS


def supervisor_killed(times: int, directory: str) -> dict[str, list[float]]:
    """Kill a supervisor so often; return when clients and workers had noticed."""
    noticed_ms, gone_ms = [], []
    for _ in range(times):
        noticed, gone = one_supervisor_killed(directory)
        noticed_ms.append(noticed)
        gone_ms.append(gone)
    lock = BusLock(BUS)
    sweep(BUS)
    lock.release()
    return {
        "supervisor's death to BusBroken, last client": noticed_ms,
        "supervisor's death to the end of the last worker": gone_ms,
    }


def summary(values: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum."""
    ordered = sorted(values)
    return {
        "times": len(ordered),
        "p50": round(percentile(ordered, 0.5), 1),
        "p99": round(percentile(ordered, 0.99), 1),
        "max": round(ordered[-1], 1),
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.recovery",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=positive, default=100, help="of workers (default: 100)")
    parser.add_argument(
        "--supervisors", type=positive, default=20, help="kills of those (default: 20)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="aembus-recovery-") as directory:
        found = workers_killed(options.kills, directory)
        found |= supervisor_killed(options.supervisors, directory)
    figures: dict[str, Any] = {what: summary(values) for what, values in found.items()}
    print(f"{'milliseconds':50} {'times':>6} {'p50':>8} {'p99':>8} {'max':>8}")
    for what, values in figures.items():
        print(f"{what:50} " + " ".join(f"{values[n]:>8}" for n in ("times", "p50", "p99", "max")))
    print(f"load before / after: {about['load_before']} / {machine.load()}")
    if options.json:
        figures = {"machine": about, "load_after": machine.load(), **figures}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
