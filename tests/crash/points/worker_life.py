"""The life of a bus with a worker that is replaced, in which somebody is killed.

The first worker dies of a job; its replacement takes over and does the rest.  Killed is that
replacement, or the supervisor while it hands over, before any line of aembus that they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import aembus
from aembus.shm import names
from aembus.supervisor import spare
from aembus.supervisor.configuration import Configuration, WorkerSpec
from aembus.supervisor.core import run_supervisor
from tests.crash.points import lines
from tests.crash.points.life import ORPHANED, Process, Victim, void
from tests.support.running import adds_up, statistics, until

JOBS: Final = 8
FATAL: Final = 2
TURN: Final = "AEMBUS_TEST_TURN"  # a folder: the worker that finds the file `2` there is the second
PLACE: Final = "AEMBUS_TEST_PLACE"  # where it is killed; empty: it writes its places down

SITECUSTOMIZE: Final = """
import sys
if "aembus.worker" in sys.orig_argv:
    from tests.crash.points import worker_life
    worker_life.begin()
"""


def begin() -> None:
    """Have the second worker be killed, or write its places down."""
    folder = Path(os.environ[TURN])
    for number in (1, 2):
        with contextlib.suppress(FileNotFoundError):
            (folder / str(number)).unlink()
            break
    else:
        return
    if number == 2 and os.environ[PLACE]:
        lines.kill_at(os.environ[PLACE], 1)
    elif number == 2:
        lines.record(folder / "places")


def work(bus: aembus.Bus) -> None:
    """Entry point of the worker."""
    done = bus.point("done")

    @bus.on("work", group="g")
    def handler(event: aembus.Event, number: int) -> None:
        assert event.job is not None
        if number == FATAL and event.job.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        done.activate(number, event.job.attempt)


class WorkerLife:
    """Lives of one bus, one after the other.

    Args:
        bus: its name.
    """

    def __init__(self, bus: str) -> None:
        self._bus = bus
        self._processes: list[Process] = []

    def places(self, role: str) -> list[str]:
        """Return the lines that the replacement, or the supervisor, comes by."""
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            if role == "worker":
                self._live(Victim("nobody"), folder)
                return (folder / "places").read_text().splitlines()
            file = folder / "places of the supervisor"
            self._live(Victim("supervisor", file=file), folder)
            return file.read_text().splitlines()

    def run(self, victim: Victim) -> bool:
        """Live one life; return whether the victim was killed.

        Raises AssertionError for a promise that was not kept.
        """
        with tempfile.TemporaryDirectory() as directory:
            killed = self._live(victim, Path(directory))
        left = names.leftovers(self._bus)
        assert not left, f"names left: {left}"
        return killed

    def _live(self, victim: Victim, folder: Path) -> bool:
        for number in (1, 2):
            (folder / str(number)).touch()
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        try:
            supervisor, ready = self._start_supervisor(victim, folder)
            if ready:
                client = self._start("the client", functools.partial(self._ask, victim))
                client.expect(0, *([ORPHANED] if victim.role == "supervisor" else []))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(supervisor.pid, signal.SIGTERM)
            if victim.role != "supervisor" or supervisor.wait() == 0:
                supervisor.expect(0)
                return victim.role == "worker"
            supervisor.expect(-signal.SIGKILL)
            self._start_anew(folder)
            return True
        finally:
            for process in self._processes:
                process.kill()
            self._processes.clear()
            until("no worker is left", lambda: not _workers(folder), 15.0)

    def _start_anew(self, folder: Path) -> None:
        for number in (1, 2):
            (folder / str(number)).unlink(missing_ok=True)
        supervisor, ready = self._start_supervisor(Victim("nobody"), folder)
        assert ready, "the next supervisor did not start"
        client = functools.partial(self._ask, Victim("nobody"))
        self._start("the next client", client).expect(0)
        os.kill(supervisor.pid, signal.SIGTERM)
        supervisor.expect(0)

    def _start(self, who: str, run: functools.partial[None]) -> Process:
        process = Process(who, run)
        self._processes.append(process)
        return process

    def _start_supervisor(self, victim: Victim, folder: Path) -> tuple[Process, bool]:
        begin_, end = os.pipe()
        configuration = Configuration(
            bus=self._bus,
            workers=(WorkerSpec("w", f"{__name__}:{work.__name__}"),),
            slots=8,
            lane_bytes=4096,
            stop_timeout_s=2.0,
            state_directory=str(folder / "state"),
            path=tuple(sys.path),
            log_level="CRITICAL",
            spare=victim.role == "supervisor",  # what a worker imports is to be found in its start
        )

        def run() -> None:
            os.environ[TURN] = str(folder)
            os.environ[PLACE] = victim.place if victim.role == "worker" else ""
            os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"
            vars(spare)["SETTLE_S"] = 0.0
            victim.trace("supervisor")
            asyncio.run(run_supervisor(configuration, lambda: void(os.write(end, b"r"))))

        process = Process("the supervisor", run)
        self._processes.append(process)
        os.close(end)
        ready = os.read(begin_, 1) == b"r"
        os.close(begin_)
        return process, ready

    def _ask(self, victim: Victim) -> None:
        done: list[tuple[int, int]] = []
        with aembus.connect(self._bus) as bus:
            bus.register("done", lambda event, *answer: done.append(answer))
            for number in range(JOBS):
                assert bus.activate("work", number) == 1
            while {number for number, _ in done} != set(range(JOBS)):
                bus.poll(0.05)
            numbers = [number for number, _ in done]
            # In order; what was in hand at a death comes again, and says so.
            again = {number for number in numbers if numbers.count(number) > 1}
            assert numbers == sorted(numbers), done
            assert len(again) <= (victim.role == "worker"), done
            retried = {number for number, attempt in done if attempt > 1}
            assert retried >= again | {FATAL}, done
            until("the sums agree", lambda: not self._totals()["queued"])
            totals = self._totals()
            assert adds_up(totals), totals
            assert totals["dead_lettered"] == 0, totals

    def _totals(self) -> dict[str, int]:
        totals: dict[str, int] = statistics(self._bus)["totals"]
        return totals


def _workers(folder: Path) -> list[int]:
    # The workers of a life are told by the folder in their environment.
    wanted = f"{TURN}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                is_worker = b"aembus.worker" in (entry / "cmdline").read_bytes()
                if is_worker and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
