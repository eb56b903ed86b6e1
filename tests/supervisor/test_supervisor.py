"""`with aembus.Supervisor(...)`: how the bus's process starts, speaks and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import aembus
from aembus.cli import buses
from aembus.services import Service
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.running import program, until

LINES = 200
LINE = "x" * 1000  # more than a pipe holds, together


def talkative(bus: aembus.Bus) -> None:
    """Entry point: prints, as everybody's does."""
    print("it starts", flush=True)
    done = bus.point("done")

    @bus.on("work")
    def work(event: aembus.Event) -> None:
        print(LINE, flush=True)
        done.activate()


def slow(bus: aembus.Bus) -> None:
    """Entry point: says that it is there, and takes its time."""
    Path(sys.argv[1]).touch()
    time.sleep(60)


def test_what_workers_print_is_printed(
    bus_name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It goes where the program's own output goes, holds nobody up, and is no message of ours."""
    spec = aembus.WorkerSpec("w", "tests.supervisor.test_supervisor:talkative")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        done: list[aembus.Event] = []
        client.register("done", done.append)
        for _ in range(LINES):
            client.activate("work", timeout=20.0)
        until("all are done", lambda: client.poll(0.05) * 0 or len(done) == LINES)
    printed = capfd.readouterr().out.splitlines()
    assert printed == ["it starts", *[LINE] * LINES]


def test_ctrl_c_while_it_starts_leaves_no_bus(bus_name: str, tmp_path: Path) -> None:
    """Whoever goes on after it finds no process and no name."""
    there = tmp_path / "there"
    spec = aembus.WorkerSpec(
        "w", "tests.supervisor.test_supervisor:slow", arguments=(os.fspath(there),)
    )
    supervisor = aembus.Supervisor(
        bus_name, workers=[spec], state_directory=tmp_path, stop_timeout_s=0.5
    )

    def interrupt() -> None:
        until("the worker starts", there.exists)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        supervisor.__enter__()
    interrupting.join()
    assert buses.left_in_shared_memory(bus_name) == []
    with pytest.raises(aembus.SupervisorError, match="inside its with block"):
        supervisor.pid  # noqa: B018


def test_two_buses_have_two_state_directories(bus_name: str, tmp_path: Path) -> None:
    """In one they would write over each other's dead letters; the second is told at its start."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path / "state"):
        second = aembus.Supervisor(f"{bus_name}-2", state_directory=tmp_path / "state")
        with pytest.raises(aembus.SupervisorError, match="another bus keeps its dead letters"):
            second.__enter__()
    with aembus.Supervisor(f"{bus_name}-2", state_directory=tmp_path / "state"):
        pass


EARLY = """
import os, signal, sys
import aembus
from aembus.supervisor import core

class Lock(core.BusLock):
    def __init__(self, bus):
        super().__init__(bus)
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))

core.BusLock = Lock
spec = aembus.WorkerSpec("w", "tests.supervisor.test_supervisor:talkative")
aembus.Supervisor(sys.argv[1], workers=[spec], state_directory=sys.argv[3]).run()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_while_it_starts_leaves_nothing(bus_name: str, tmp_path: Path, name: str) -> None:
    """From its first name on it ends in order."""
    command = [sys.executable, "-c", EARLY, bus_name, name, os.fspath(tmp_path)]
    with program(command) as running:
        assert running.process.wait(20) == 0
    assert buses.left_in_shared_memory(bus_name) == []


class Lingers(Service):
    """A service that does not stop."""

    name = "lingers"
    version = "1"

    async def stop(self) -> None:
        """Go on for longer than anybody waits."""
        await asyncio.sleep(60)


class LingersToo(Lingers):
    """Another one."""

    name = "lingers-too"


@pytest.mark.slow
def test_a_service_that_does_not_stop_costs_nothing_but_time(bus_name: str, tmp_path: Path) -> None:
    """What is queued is kept all the same, and no name is left."""
    with (
        aembus.Supervisor(
            bus_name,
            services=[f"{__name__}:Lingers", f"{__name__}:LingersToo"],
            state_directory=tmp_path,
            stop_timeout_s=0.2,
        ),
        aembus.connect(bus_name, name="idle") as idle,
    ):
        idle.register("idle", lambda event: None)
        idle.publish_registrations()
        assert idle.activate("idle") == 1
        idle.close(keep=True)
    assert buses.left_in_shared_memory(bus_name) == []
    (letter,) = DeadLetters(tmp_path).read()
    assert letter["reason"] == "the bus was stopped"
