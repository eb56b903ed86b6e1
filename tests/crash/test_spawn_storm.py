"""Children, nursery, spawn host and registrant are killed at random moments, under load."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil
import pytest

import aembus
from tests.crash import spawned
from tests.support.running import ROOT, adds_up, statistics, until

THIS = "tests.crash.test_spawn_storm"
PRODUCERS = 2
JOBS_EACH = 60
PRODUCER = """
import random, sys
import aembus
bus, folder, seed, first, jobs = sys.argv[1:3] + [int(word) for word in sys.argv[3:]]
dice = random.Random(seed)
with aembus.connect(bus) as me:
    for number in range(first, first + jobs):
        misdeed = dice.choice(["", "", "", "raise", "exit"])
        me.activate("work", folder, number, dice.random() * 0.08, misdeed, timeout=60.0)
"""


def worker(bus: aembus.Bus) -> None:
    """Entry point: whose registration it is."""
    options = {"spawn": True, "children_max": 4, "retries": 1, "backoff": 0.01}
    bus.register("work", spawned.work, **options)  # type: ignore[arg-type]


def victims(bus: str) -> dict[str, list[int]]:
    """Return the PIDs of whom there is to kill, by what they are."""
    found = statistics(bus)
    pids = {m["kind"]: [m["pid"]] for m in found["members"] if m["pid"]}
    with contextlib.suppress(psutil.NoSuchProcess, KeyError):
        nurseries = psutil.Process(pids["spawn"][0]).children()
        pids["nursery"] = [process.pid for process in nurseries]
    children = [e["children"] for p in found["points"] for e in p["events"] if p["name"] == "work"]
    pids["child"] = [pid for of_event in children for pid, _ in of_event]
    return pids


def storm(
    bus: str, folder: Path, seed: int, jobs_each: int, *, kills_max: int, children: int
) -> Counter[str]:
    """Have producers send their jobs while others are killed; return how many of which."""
    dice, killed = random.Random(seed), Counter[str]()
    producers = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", PRODUCER, bus, str(folder)),
                *map(str, (seed + which, which * jobs_each, jobs_each)),
            ],
            cwd=ROOT,
        )
        for which in range(PRODUCERS)
    ]
    while statistics(bus)["totals"]["queued"] or any(p.poll() is None for p in producers):
        time.sleep(dice.random() * 0.1)  # a random moment is what is wanted here
        if killed.total() >= kills_max:
            continue
        (kind,) = dice.choices(["child", "nursery", "spawn", "worker"], [children, 2, 1, 1])
        pids = victims(bus).get(kind)
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(pids), signal.SIGKILL)
                killed[kind] += 1
    for producer in producers:
        assert producer.wait() == 0
    return killed


def check(bus: str, folder: Path, jobs: int, killed: Counter[str]) -> None:
    """Each job has ended in a child, or is a dead letter; no attempt overlapped another."""
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    assert not [line for line in lines if line[0] == "overlap"]
    attempts: dict[int, list[int]] = defaultdict(list)
    for what, number, attempt, _ in lines:
        if what == "begun":
            attempts[int(number)].append(int(attempt))
    assert all(sorted(set(found)) == sorted(found) for found in attempts.values())
    ended = {int(number) for what, number, _, _ in lines if what == "ended"}
    with aembus.DeadLetterBox(bus) as box:
        letters = box.list(point="work")
    # Killed between its last line and its outcome a job may be among both.
    assert len(ended) + len(letters) >= jobs
    assert len(ended) <= jobs
    totals = statistics(bus)["totals"]
    assert adds_up(totals)
    assert totals["queued"] == 0
    assert totals["delivered"] + len(letters) == jobs
    reasons = {letter["reason"] for letter in letters}
    assert reasons <= {
        "its handler raised",
        "its child ended with exit code 3",
        "in hand at 3 deaths",
    }
    assert killed


def run(
    bus_name: str, folder: Path, seed: int, jobs_each: int, kills_max: int, children: int
) -> None:
    """Run one storm, on a bus of its own."""
    print(f"seed {seed}")
    spec = aembus.WorkerSpec("one", f"{THIS}:worker")
    with aembus.Supervisor(bus_name, workers=[spec], state_directory=folder / "dead"):
        killed = storm(bus_name, folder, seed, jobs_each, kills_max=kills_max, children=children)
        print(dict(killed))
        check(bus_name, folder, PRODUCERS * jobs_each, killed)
        with aembus.connect(bus_name) as me:
            answer = me.point("work").call(str(folder), -1, 0.0, "", timeout=20.0, redeliver=True)
            assert answer == -1
        until("no child is left", lambda: not victims(bus_name)["child"])


def test_nothing_is_lost_when_whoever_spawns_is_killed(bus_name: str, tmp_path: Path) -> None:
    """A short storm."""
    run(bus_name, tmp_path, seed=5, jobs_each=JOBS_EACH, kills_max=25, children=24)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_a_long_storm(bus_name: str, tmp_path: Path, seed: int) -> None:
    """Ten of them, each with other dice, half of them with few children among the killed."""
    run(bus_name, tmp_path, seed, jobs_each=400, kills_max=100, children=(2, 40)[seed % 2])
