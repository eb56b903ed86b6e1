from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import aembus
from tests.support.running import adds_up, statistics, until

pytestmark = pytest.mark.e2e

WORKERS = 16
CLIENTS = 32
SECONDS = float(os.environ.get("AEMBUS_CHURN_SECONDS", "6"))


def main(bus: aembus.Bus) -> None:
    """The workers' entry point."""
    timer = bus.service("timer")

    @bus.on("work", group="workers")
    def work(event: aembus.Event, client: int, number: int) -> None:
        if number % 50 == 0:
            timer.after(0.01, "later", client, number)
        if number % 10 == 0:
            bus.activate("news", client, number)

    @bus.on("later", group="workers")
    def later(event: aembus.Event, client: int, number: int) -> None: ...

    @bus.on("all")
    def everybody(event: aembus.Event, number: int) -> None: ...


def collector(seen: list[int]) -> Callable[[aembus.Event, int, int], None]:
    """Return a handler that keeps what it gets."""
    return lambda event, client, number: seen.append(number)


def be_a_client(bus_name: str, number: int, seconds: float) -> None:
    """Join, register, activate and leave again and again."""
    deadline = time.monotonic() + seconds
    choose = random.Random(number)
    sent = received = sessions = 0
    while sessions == 0 or time.monotonic() < deadline:
        with aembus.connect(bus_name) as bus:
            seen: list[int] = []
            event = bus.register("news", collector(seen))
            point = bus.point("work")
            for job in range(choose.randrange(50, 300)):
                assert point.activate(number, job, key=f"{number}.{job % 7}", timeout=10) == 1
                sent += 1
                if job % 20 == 0:
                    bus.poll()
            assert bus.activate("all", number, timeout=10) == WORKERS
            while not seen:
                bus.poll(1.0)
            if choose.random() < 0.3:
                event.close()
            received += len(seen)
            sessions += 1
    assert sent > 0
    assert received > 0


def test_members_come_and_go(bus_name: str, tmp_path: Path) -> None:
    """16 workers and 32 clients register, activate, leave and join at once; no job is lost."""
    spec = aembus.WorkerSpec("w", "tests.e2e.test_churn:main", count=WORKERS)
    with aembus.Supervisor(bus_name, services=["timer"], workers=[spec], state_directory=tmp_path):
        command = [sys.executable, "-m", "tests.e2e.test_churn", bus_name]
        clients = [
            subprocess.Popen([*command, str(number), str(SECONDS)]) for number in range(CLIENTS)
        ]
        assert [client.wait(SECONDS + 60) for client in clients] == [0] * CLIENTS

        def settled() -> bool:
            now = statistics(bus_name)
            return now["totals"]["queued"] == 0 and len(now["members"]) == WORKERS + 1

        until("everybody has left and nothing is queued", settled)
        now = statistics(bus_name)
        assert adds_up(now["totals"])
        for member in now["members"]:
            if member["kind"] == "worker":
                assert adds_up(member["received"])
                assert member["delivered"] > 0
                assert (member["restarts"], member["failed"], member["corrupted"]) == (0, 0, 0)
        assert now["totals"]["delivered"] > 0


if __name__ == "__main__":
    be_a_client(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
