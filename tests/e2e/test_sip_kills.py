from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import adds_up, sip_responder, statistics, until, workers
from tests.support.sipp import Sipp

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.required_in_ci,
    pytest.mark.skipif(shutil.which("sipp") is None, reason="sipp is not installed"),
]

RATE = 200  # calls a second
LENGTH_MS = 500  # of each


def replaced(bus: str, victim: dict[str, Any]) -> bool:
    """Say whether the worker runs again as another process; fail if one is held back."""
    now = workers(bus)
    assert {w["state"] for w in now} <= {"running", "starting"}, "a worker is held back"
    return any(
        w["name"] == victim["name"] and w["pid"] != victim["pid"] and w["state"] == "running"
        for w in now
    )


def kill_a_worker(bus: str, choice: random.Random) -> None:
    """Kill one of the workers, whatever it does at the moment, and see it replaced."""
    victim = choice.choice(workers(bus))
    os.kill(victim["pid"], signal.SIGKILL)
    until("a replacement", lambda: replaced(bus, victim))


@pytest.mark.parametrize(
    ("seconds", "kill_every_s"),
    [(10, 1.0), pytest.param(60, 2.0, marks=pytest.mark.slow)],
)
def test_sipp_under_kills(
    bus_name: str, free_port: int, tmp_path: Path, seconds: int, kill_every_s: float
) -> None:
    """Workers die again and again; no connection does, and no call that none of them had in hand.

    A worker has at most one message in hand, so that at most one call a kill may fail.  Both sides
    count the same calls, but for messages that came again and were counted twice.
    """
    seed = random.randrange(1 << 32)
    choice = random.Random(seed)
    calls = seconds * RATE
    with sip_responder(bus_name, free_port) as responder:
        sipp = Sipp(
            tmp_path, free_port, "-t", "t1", "-m", str(calls), "-r", str(RATE),
            "-d", str(LENGTH_MS), timeout_s=2 * seconds + 60,
        )  # fmt: skip
        until("calls", lambda: all(w["delivered"] > 100 for w in workers(bus_name)))
        kills = 0
        next_s = time.monotonic()
        while sipp.process.poll() is None:
            if time.monotonic() < next_s:
                time.sleep(0.01)  # between two looks at the clock: kills come at their own pace
                continue
            next_s = time.monotonic() + kill_every_s * choice.uniform(0.5, 1.5)
            kill_a_worker(bus_name, choice)
            kills += 1
        theirs = sipp.totals()
        until("nothing is queued", lambda: statistics(bus_name)["totals"]["queued"] == 0)
        now = statistics(bus_name)
        assert responder.end() == 0
    print(f"seed {seed}: {kills} kills, {theirs['FailedCall']} of {calls} calls failed")

    ours: Counter[str] = Counter()
    for member in now["members"]:
        ours.update(member["counters"])
        assert adds_up(member["received"])
    tcp = next(service for service in now["services"] if service["name"] == "tcp")
    assert kills >= seconds / kill_every_s / 2
    assert sum(w["restarts"] for w in now["members"]) == kills
    assert (tcp["accepted"], theirs["FailedTcpConnect"], theirs["FailedTcpClosed"]) == (1, 0, 0)
    assert (now["totals"]["dead_lettered"], now["supervisor"]["dead_letters"]) == (0, 0)
    assert theirs["SuccessfulCall"] + theirs["FailedCall"] == calls
    assert theirs["FailedCall"] <= kills
    for name in ("calls", "calls_ended"):
        assert theirs["SuccessfulCall"] <= ours[name] <= calls + kills
    assert 3 * theirs["SuccessfulCall"] <= ours["messages"] <= 3 * calls + kills
