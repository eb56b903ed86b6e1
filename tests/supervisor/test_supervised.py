"""What a supervisor has started does not outlive it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

import aembus
from aembus.services.base import Caller, Service, call
from aembus.supervisor.ownership import BusLock, sweep
from tests.support.running import program, until

pytestmark = pytest.mark.e2e

FOR_EVER_S = 3600.0


class Stuck(Service):
    """Blocks its process."""

    name = "stuck"
    version = "1"

    @call
    def block(self, caller: Caller) -> None:
        """Never return."""
        block()


def stuck(bus: aembus.Bus) -> None:
    """Entry point of a worker that blocks, too; and so does what it has spawned."""
    bus.register("block", block, name="here")
    bus.register("block", block, name="in a child", spawn=True)


def block(event: aembus.Event | None = None) -> None:
    """Never return."""
    print("blocked", flush=True)
    time.sleep(FOR_EVER_S)


RUN = f"""
import sys, aembus
aembus.Supervisor(
    sys.argv[1],
    services=[aembus.ServiceSpec("{__name__}:Stuck", hosts=1)],
    workers=[aembus.WorkerSpec("stuck", "{__name__}:stuck")],
    state_directory=sys.argv[2],
).run(lambda: print("ready", flush=True))
"""


def test_who_is_stuck_does_not_outlive_its_supervisor(bus_name: str, tmp_path: Path) -> None:
    """Workers, service hosts and spawned children end, whatever their code does."""
    with program([sys.executable, "-c", RUN, bus_name, os.fspath(tmp_path)]) as running:
        running.read_until("ready")
        with aembus.connect(bus_name) as client:
            assert client.activate("block") == 2
            with pytest.raises(aembus.CallTimeout):
                client.service("stuck").block(timeout=0.1)
            for _ in range(3):
                running.read_until("blocked")
            children = psutil.Process(running.process.pid).children(recursive=True)
            os.kill(running.process.pid, signal.SIGKILL)
            until("they have ended", lambda: not any(child.is_running() for child in children))
    lock = BusLock(bus_name)
    sweep(bus_name)
    lock.release()
