from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

import aembus
from tests.support.running import adds_up, statistics, until, workers

TIMERS = 2000
LAST_DUE_S = 3.0
FIRST_DUE_S = 0.5
LOG = "TEST_DUE_LOG"


def worker(bus: aembus.Bus) -> None:
    """Entry point: writes down which timers were due, and at which attempt."""
    log = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def due(event: aembus.Event, number: int) -> None:
        assert event.job is not None
        os.write(log, b"%d %d\n" % (number, event.job.attempt))

    bus.register("due", due, group="g")


def test_no_timer_is_lost_over_upgrades_and_kills(
    bus_name: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of many timers is delivered, once but for jobs in hand at a death; all adds up.

    The timer service is upgraded with hand-over all the time, and workers are killed at random.
    """
    chance = random.Random(seed)
    log = tmp_path / "due"
    monkeypatch.setenv(LOG, str(log))
    spec = aembus.WorkerSpec("w", "tests.crash.test_service_upgrades:worker", count=2)
    upgrades = kills = next_kill = 0
    with (
        aembus.Supervisor(bus_name, services=["timer"], workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as bus,
        aembus.ServiceBox(bus_name) as box,
    ):
        timer = bus.service("timer")
        for number in range(TIMERS):
            timer.after(chance.uniform(FIRST_DUE_S, LAST_DUE_S), "due", number)

        def running() -> int:
            return sum(one.figures["running"] for one in box.list())

        while running():
            change = box.upgrade("timer", hand_over=True)
            assert change.handed_over
            upgrades += 1
            at_work = [w for w in workers(bus_name) if w["state"] == "running"]
            if len(at_work) == spec.count and upgrades >= next_kill:
                os.kill(chance.choice(at_work)["pid"], signal.SIGKILL)
                kills += 1
                next_kill = upgrades + chance.randint(2, 8)

        def at_rest() -> bool:
            now = statistics(bus_name)
            return (
                not now["totals"]["queued"]
                and len(now["services"]) == 1
                and all(w["state"] == "running" for w in now["members"] if w["kind"] == "worker")
            )

        until("all is delivered", at_rest)
        now = statistics(bus_name)
    print(f"{seed=}: {upgrades} upgrades, {kills} kills")
    assert upgrades > 2
    assert kills > 0
    assert adds_up(now["totals"])
    assert now["services"][0]["expired"] == TIMERS
    lines = [line.split() for line in log.read_text().splitlines()]
    first = Counter(int(number) for number, attempt in lines if attempt == "1")
    seen = {int(number) for number, _ in lines}
    assert len(seen) + now["supervisor"]["dead_letters"] == TIMERS
    assert set(first.values()) == {1}, "only a job in hand at a death comes again"
