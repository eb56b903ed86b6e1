from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from aembus.stress import message
from bench.disturbance import ratios
from bench.kills import trial as trials
from bench.kills.board import SCENARIOS, Scenario
from bench.kills.report import Tally
from bench.kills.trial import Outcome, Trial, Verdict
from bench.kills.wires import FORK, PosixQueueWire, Put
from tests.support.running import ROOT, until

NUMBER: Final = 2  # of the job with which it is done; before it, all have had one


class Sabotaged(PosixQueueWire):
    """A wire on which the survivor's jobs do not go the way they should."""

    def __init__(self, scenario: Scenario, scratch: Path, what: str) -> None:
        super().__init__(scenario, scratch)
        self.what = what
        self.never = FORK.Semaphore(0)

    def producer(self) -> Put:
        put = super().producer()

        def sabotaged(data: tuple[Any, ...]) -> None:
            head = message.read(*data)
            assert head is not None
            if (head.producer, head.sequence) != (1, NUMBER):
                put(data)
            elif self.what == "hung":
                self.never.acquire()
            elif self.what == "slow":
                time.sleep(0.5)  # what is tried is a wire that takes so long
                put(data)
            elif self.what == "twice":
                put(data)
                put(data)
            elif self.what == "damaged":
                first, checksum, body = data
                put((first, checksum, bytes([body[0] ^ 1]) + body[1:]))

        return sabotaged


def outcome_of(what: str, tmp_path: Path) -> Outcome:
    """Return what a trial finds out about a wire that is sabotaged so."""
    trial = Trial(Sabotaged(SCENARIOS["producer"], tmp_path, what), random.Random(1))
    try:
        trial.begin()
        found: Outcome = until("its outcome is clear", trial.look)
        return found
    finally:
        trial.close()


def test_a_hang_is_told_from_slowness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes on late is slow, and only who does not go on at all has hung."""
    monkeypatch.setattr(trials, "PROMPT_S", 0.1)
    assert outcome_of("slow", tmp_path).verdict is Verdict.SLOW
    assert outcome_of("nothing", tmp_path).died == 0
    monkeypatch.setattr(trials, "HANG_S", 1.0)
    hung = outcome_of("hung", tmp_path)
    assert (hung.verdict, hung.recovery_s, hung.missing) == (Verdict.HUNG, None, None)


def test_every_job_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is lost, handled twice or damaged is counted as that, once."""
    monkeypatch.setattr(trials, "QUIET_S", 0.2)
    lost, twice, damaged = (outcome_of(what, tmp_path) for what in ("lost", "twice", "damaged"))
    assert (lost.missing, lost.twice, lost.damaged) == ([(1, NUMBER)], 0, 0)
    assert (twice.missing, twice.twice, twice.damaged) == ([], 1, 0)
    assert (damaged.missing, damaged.twice, damaged.damaged) == ([(1, NUMBER)], 0, 1)
    outcomes = [outcome.to_json() for outcome in (lost, twice, damaged)]
    assert Tally(outcomes, kept=1).shortcomings == ["1 lost", "1 twice", "1 damaged"]


def test_kills_are_tried_and_told(tmp_path: Path) -> None:
    """Two kills in each scenario: aembus keeps its promises, table and JSON say so, all is gone."""
    file = tmp_path / "kills.json"
    options = ("--kills", "2", "--wires", "aembus-python,posix_ipc", "--seed", "1")
    done = subprocess.run(
        ["env", f"TMPDIR={tmp_path}", sys.executable, "-m", "bench.kills", *options,
         "--json", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["seed"] == 1
    assert list(found["scenarios"]) == list(SCENARIOS)
    for scenario in found["scenarios"].values():
        assert scenario["failures"] == {}
        assert list(scenario["transports"]) == ["aembus-python", "posix_ipc"]
        ours = scenario["transports"]["aembus-python"]
        assert (ours["kills"], ours["hung"], ours["lost"], ours["twice"], ours["damaged"]) == (
            *(2, 0, 0, 0, 0),
        )
        assert ours["sent"] > 0
        assert all(outcome["recovery_s"] > 0 for outcome in ours["outcomes"])
    assert "two producers flood one consumer" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["kills.json"]


def test_a_disturbed_round_is_compared_with_its_neighbours() -> None:
    """A machine that grows slower all the time disturbs nobody."""
    rates = [100.0, 81.0, 80.0, 35.0, 60.0]
    assert ratios(rates, {1, 3}) == [0.9, 0.5]
    assert ratios(rates, {3}) == [0.5]  # nobody was killed in the other: that says nothing


def test_the_disturbance_is_measured(tmp_path: Path) -> None:
    """One pair of rounds: a worker is killed, the others' rate is told, every job is there."""
    file = tmp_path / "disturbance.json"
    options = ("--pairs", "1", "--round-s", "1", "--workers", "2", "--producers", "2")
    done = subprocess.run(
        ["env", f"TMPDIR={tmp_path}", sys.executable, "-m", "bench.disturbance", *options,
         "--lane", "python", "--json", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for cell, load in zip(json.loads(file.read_text())["cells"], ("apart", "shared"), strict=True):
        assert (cell["load"], cell["workers_killed"], cell["failures"]) == (load, 1, [])
        assert len(cell["rates_per_s"]) == 3
        assert cell["ratio"]["median"] > 0


def test_a_recovery_is_measured(tmp_path: Path) -> None:
    """One kill of each kind: every stage has a time, and nothing is left."""
    file = tmp_path / "recovery.json"
    done = subprocess.run(
        ["env", f"TMPDIR={tmp_path}", sys.executable, "-m", "bench.recovery", "--kills", "1",
         "--supervisors", "1", "--json", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    times = {k: v for k, v in json.loads(file.read_text()).items() if isinstance(v, dict)}
    stages = [stage for stage in times if stage != "machine"]
    assert len(stages) == 5
    assert all(times[stage]["max"] > 0 for stage in stages)
    assert [path.name for path in tmp_path.iterdir()] == ["recovery.json"]
    assert not list(Path("/dev/shm").glob("*aembus.bench-recovery.*"))
