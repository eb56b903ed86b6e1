"""A process that has begun already replaces the worker that dies next; what if that has ended, too.

Otherwise a replacement costs the time that Python takes to start.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

import aembus
from aembus.services.base import Caller, Service, call
from aembus.supervisor import spare
from aembus.supervisor.launching import Launched
from aembus.supervisor.ownership import BusLock, sweep
from aembus.supervisor.spare import Spare
from tests.support.running import program, statistics, until, workers

SOON_S = 20.0
HERE = __name__


def answer(bus: aembus.Bus) -> None:
    """Entry point: answers with its PID."""
    bus.register("who", lambda event: os.getpid(), group="w")


class Who(Service):
    """Says which process it is in."""

    name = "who"
    version = "1"

    @call
    def pid(self, caller: Caller) -> int:
        """Return the PID of the process."""
        return os.getpid()


class Started(NamedTuple):
    """A bus with one worker."""

    bus: str
    supervisor: int
    client: aembus.Bus

    def spares(self) -> list[int]:
        """Return the PIDs of the spare processes, as the bus's statistics have them."""
        found: list[int] = statistics(self.bus)["supervisor"]["spares"]
        return found

    def spare(self, *but: int) -> int:
        """Wait until there is a spare, other than these, and return its PID."""
        until("there is a spare", lambda: any(pid not in but for pid in self.spares()), SOON_S)
        (pid,) = self.spares()
        return pid

    def worker(self) -> int:
        """Return the PID of the worker's process."""
        (worker,) = workers(self.bus)
        return int(worker["pid"])

    def asks(self) -> int:
        """Return the PID of who answers now."""
        pid: int = self.client.point("who").call(timeout=SOON_S, redeliver=True)
        return pid

    def replacement(self, of: int) -> int:
        """Return the PID of who answers instead of a process that has died."""
        until("it is replaced", lambda: self.worker() not in (0, of), SOON_S)
        return self.asks()


def looks(seconds: float) -> Iterator[None]:
    """Let the caller look so long, again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


@contextmanager
def started(bus_name: str, tmp_path: Path, *, keep: bool = True) -> Iterator[Started]:
    """Run a bus with one worker."""
    spec = aembus.WorkerSpec("w", f"{HERE}:answer")
    with (
        aembus.Supervisor(
            bus_name, workers=[spec], state_directory=tmp_path, log_level="CRITICAL", spare=keep
        ) as supervisor,
        aembus.connect(bus_name) as client,
    ):
        yield Started(bus_name, supervisor.pid, client)


def test_a_spare_replaces_the_worker_that_dies_and_another_one_follows(
    bus_name: str, tmp_path: Path
) -> None:
    """Time after time, and it stays one process."""
    with started(bus_name, tmp_path) as it:
        dead, waiting = it.worker(), it.spare()
        for _ in range(3):
            os.kill(dead, signal.SIGKILL)
            assert it.replacement(dead) == waiting
            dead, waiting = waiting, it.spare(waiting)
        assert len(psutil.Process(it.supervisor).children()) == 2


def test_a_worker_is_replaced_without_a_spare(bus_name: str, tmp_path: Path) -> None:
    """`spare=False`: there is none, and a process is begun when it is needed."""
    with started(bus_name, tmp_path, keep=False) as it:
        dead = it.worker()
        os.kill(dead, signal.SIGKILL)
        assert it.replacement(dead) != dead
        assert not any(it.spares() for _ in looks(3 * spare.SETTLE_S))


def test_a_spare_that_has_ended_replaces_nobody(bus_name: str, tmp_path: Path) -> None:
    """Nor is another one begun at once, which may end as soon; the next replacement brings it."""
    with started(bus_name, tmp_path) as it:
        ended = it.spare()
        os.kill(ended, signal.SIGKILL)
        until("it is reaped", lambda: not psutil.pid_exists(ended))
        assert it.spares() == []
        dead = it.worker()
        os.kill(dead, signal.SIGKILL)
        second = it.replacement(dead)
        assert second not in (dead, ended)
        assert it.spare() not in (dead, ended, second)


def test_a_spare_that_dies_with_the_worker_is_not_waited_for(bus_name: str, tmp_path: Path) -> None:
    """Whichever end the supervisor sees first."""
    with started(bus_name, tmp_path) as it:
        for first in (0, 1):
            pids = it.worker(), it.spare()
            os.kill(it.supervisor, signal.SIGSTOP)
            try:
                for pid in (pids[first], pids[1 - first]):
                    os.kill(pid, signal.SIGKILL)
            finally:
                os.kill(it.supervisor, signal.SIGCONT)
            assert it.replacement(pids[0]) not in pids


def test_a_replacement_has_the_code_that_is_there_now(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spare has imported nothing of the application, nor settled what there is to be imported."""
    monkeypatch.syspath_prepend(tmp_path / "added later")
    module = tmp_path / "application.py"
    monkeypatch.syspath_prepend(tmp_path)
    say = 'def main(bus):\n    bus.register("what", lambda event: {!r})\n'
    module.write_text(say.format("old"))
    with (
        aembus.Supervisor(
            bus_name,
            workers=[aembus.WorkerSpec("w", "application:main")],
            state_directory=tmp_path / "state",
        ) as supervisor,
        aembus.connect(bus_name) as client,
    ):
        it = Started(bus_name, supervisor.pid, client)
        dead, waiting = it.worker(), it.spare()
        assert client.point("what").call(timeout=SOON_S) == "old"
        module.write_text("from added import answer\n" + say.replace("{!r}", "answer"))
        (tmp_path / "added later").mkdir()
        (tmp_path / "added later" / "added.py").write_text("answer = 'new'\n")
        os.kill(dead, signal.SIGKILL)
        until("it is replaced", lambda: it.worker() == waiting, SOON_S)
        assert client.point("what").call(timeout=SOON_S) == "new"


def test_a_roll_begins_a_process_and_renews_the_spare(bus_name: str, tmp_path: Path) -> None:
    """What was installed since the spare has begun is there in neither otherwise."""
    with started(bus_name, tmp_path) as it:
        old, waiting = it.worker(), it.spare()
        rolled = aembus.control.ControlClient(bus_name)
        try:
            rolled.request("roll", name="w-1", step_s=SOON_S)
        finally:
            rolled.close()
        new = it.asks()
        assert new not in (old, waiting)
        assert it.spare(waiting) not in (old, waiting, new)
        until("the one before has ended", lambda: not psutil.pid_exists(waiting))


def test_a_service_host_is_replaced_by_a_spare(bus_name: str, tmp_path: Path) -> None:
    """As workers are, by one of its own kind."""
    service = aembus.ServiceSpec(f"{HERE}:Who", hosts=1)
    with (
        aembus.Supervisor(
            bus_name, services=[service], state_directory=tmp_path, log_level="CRITICAL"
        ) as supervisor,
        aembus.connect(bus_name) as client,
    ):
        waiting = Started(bus_name, supervisor.pid, client).spare()
        os.kill(client.service("who").pid(), signal.SIGKILL)

        def answers() -> bool:
            try:
                return bool(client.service("who").pid(timeout=SOON_S) == waiting)
            except aembus.CallFailed:
                return False

        until("the spare answers", answers, SOON_S)


SUPERVISE = f"""
import sys, aembus
aembus.Supervisor(
    sys.argv[1], workers=[aembus.WorkerSpec("w", "{HERE}:answer")], state_directory=sys.argv[2],
).run(lambda: print("ready", flush=True))
"""


def test_a_spare_does_not_outlive_its_supervisor(bus_name: str, tmp_path: Path) -> None:
    """And says nothing when it ends: nobody has done anything wrong."""
    with program([sys.executable, "-c", SUPERVISE, bus_name, os.fspath(tmp_path)]) as running:
        running.read_until("ready")
        with aembus.connect(bus_name) as client:
            waiting = Started(bus_name, running.process.pid, client).spare()
            until("it reads", lambda: sleeps_in_read(waiting))
        os.kill(running.process.pid, signal.SIGKILL)
        until("it has ended", lambda: not psutil.pid_exists(waiting))
        rest, _ = running.process.communicate(timeout=SOON_S)
        assert "Traceback" not in rest
    lock = BusLock(bus_name)
    sweep(bus_name)
    lock.release()


def sleeps_in_read(pid: int) -> bool:
    """Say whether a process waits for its standard input, its imports done."""
    return Path(f"/proc/{pid}/wchan").read_text() in ("pipe_read", "anon_pipe_read", "0") and (
        psutil.Process(pid).status() == psutil.STATUS_SLEEPING
    )


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let the process have no more descriptors than the three that it began with."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_spare_that_cannot_be_begun_is_done_without(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And tried again when a worker has come up."""
    monkeypatch.setattr(spare, "SETTLE_S", 0.0)
    caplog.set_level("INFO", "aembus")

    async def scene() -> Launched | None:
        kept = Spare("json.tool", wanted=True)
        with no_descriptor_left():
            for _ in range(2):
                kept.prepare("json.tool")
                await asyncio.sleep(0.001)  # behind the timer, in the loop's order
        taken = kept.take("json.tool")
        kept.close()
        return taken

    assert asyncio.run(scene()) is None
    assert caplog.text.count("no spare process can be started") == 2
