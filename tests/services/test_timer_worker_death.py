from __future__ import annotations

import os
import signal
from pathlib import Path

import aembus
from tests.support.running import statistics, until


def start_and_die(bus: aembus.Bus) -> None:
    """Entry point: starts timers, and dies by kill -9 when told to."""
    timer = bus.service("timer")

    @bus.on("start")
    def start(event: aembus.Event) -> None:
        assert event.job is not None
        if event.job.attempt == 1:
            timer.after(0.3, "fired", "point")
            timer.after(0.2, lambda event: bus.activate("fired", "handler"))
            timer.every(0.1, "ticked", name="ticker")
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_timer_with_a_point_outlives_its_starter(bus_name: str, tmp_path: Path) -> None:
    """After kill -9 of the worker that started them; one with a handler goes with it."""
    spec = aembus.WorkerSpec("w", "tests.services.test_timer_worker_death:start_and_die")
    with (
        aembus.Supervisor(bus_name, services=["timer"], workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        fired: list[str] = []
        ticks: list[int] = []
        client.register("fired", lambda event, what: fired.append(what))
        client.register("ticked", lambda event: ticks.append(1))
        client.activate("start")
        until("it fired", lambda: client.poll(0.05) * 0 or fired)
        seen = len(ticks)
        until("it ticks on", lambda: client.poll(0.05) * 0 or len(ticks) >= seen + 3)
        assert fired == ["point"]
        assert statistics(bus_name)["totals"]["dead_lettered"] == 0
