"""Members with different lanes share a bus, and take over from one another."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import aembus
from aembus.shm.lanes import VARIABLE
from tests.support import c_members
from tests.support.c_lane import ROOT, lane_in_c
from tests.support.running import adds_up, statistics, until, workers

lane_c = lane_in_c()

JOBS: Final = 20_000
LANES: Final = ("c", "python")


@contextlib.contextmanager
def bus_with(
    name: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    supervisor: str,
    workers: int,
    *lanes: str,
) -> Iterator[None]:
    """Run a bus whose supervisor has one lane, and whose workers have others as they start."""
    c_members.choose_lanes(directory, *lanes)
    path = os.pathsep.join([str(directory), str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv(VARIABLE, supervisor)
    spec = aembus.WorkerSpec("w", "tests.support.c_members:worker", count=workers)
    with aembus.Supervisor(
        name, services=["timer"], workers=[spec], state_directory=directory, lane_bytes=16384
    ):
        yield


class Client:
    """A client in a process of its own."""

    def __init__(self, bus: str, lane: str, jobs: int, fatal: int = -1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.c_members", bus, lane, str(jobs), str(fatal)],
            cwd=ROOT,
            env={**os.environ, VARIABLE: lane},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._jobs = jobs

    def answers(self) -> list[tuple[int, int, str, int]]:
        """Wait for the end; check that all came back, each key's in order; return the answers."""
        output, _ = self._process.communicate(timeout=2 * c_members.SECONDS_MAX)
        assert self._process.returncode == 0
        said: dict[str, Any] = json.loads(output)
        assert said["timers"] == list(range(c_members.TIMERS))
        answers = [tuple(answer) for answer in said["answers"]]
        assert sorted(number for _, number, _, _ in answers) == list(range(self._jobs))
        for key in range(c_members.KEYS):
            numbers = [number for k, number, _, _ in answers if k == key]
            assert numbers == list(range(key, self._jobs, c_members.KEYS)), key
        return answers

    def kill(self) -> None:
        """End it in any case."""
        self._process.kill()
        self._process.communicate()


@pytest.mark.e2e
@pytest.mark.parametrize("supervisor", LANES)
def test_members_with_different_lanes_share_a_bus(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervisor: str
) -> None:
    """Clients, workers and the supervisor, half of them with either lane: 20,000 jobs in order."""
    with bus_with(bus_name, tmp_path, monkeypatch, supervisor, 2, *LANES):
        clients = [Client(bus_name, lane, JOBS // 2) for lane in LANES]
        try:
            answers = [client.answers() for client in clients]
        finally:
            for client in clients:
                client.kill()
        for of_client in answers:
            # Each client's keys are shared by the two workers, and each key keeps its worker.
            owners = {(key, lane) for key, _, lane, _ in of_client}
            assert {lane for _, lane in owners} == set(LANES)
            assert len(owners) == c_members.KEYS
            assert {attempt for *_, attempt in of_client} == {1}
        until("all is done", lambda: sum(w["delivered"] for w in workers(bus_name)) == JOBS)
        members = statistics(bus_name)["members"]
        assert all(adds_up(member["received"]) for member in members if "received" in member)
        assert not any(w["dead_lettered"] for w in workers(bus_name))


@pytest.mark.e2e
@pytest.mark.parametrize(("killed", "replacement"), [LANES, LANES[::-1]])
def test_a_worker_goes_on_where_one_with_the_other_lane_was_killed(
    bus_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: str,
    replacement: str,
) -> None:
    """kill -9 in a handler: that job comes again, the rest once, each key's in order."""
    jobs, fatal = 3000, 1234
    with bus_with(bus_name, tmp_path, monkeypatch, replacement, 1, killed, replacement):
        client = Client(bus_name, killed, jobs, fatal)
        try:
            answers = client.answers()
        finally:
            client.kill()
        lanes = {number: lane for _, number, lane, _ in answers}
        attempts = {number: attempt for _, number, _, attempt in answers}
        assert [lanes[n] for n in range(jobs)] == [killed] * fatal + [replacement] * (jobs - fatal)
        assert [n for n in range(jobs) if attempts[n] != 1] == [fatal]
        assert attempts[fatal] == 2
        (worker,) = workers(bus_name)
        assert (worker["restarts"], worker["dead_lettered"]) == (1, 0)
        until("all is done", lambda: workers(bus_name)[0]["received"]["delivered"] == jobs)
        assert adds_up(workers(bus_name)[0]["received"])
