"""Rolling and scaling, when something else happens to the same worker."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aembus
from aembus.supervisor.configuration import Configuration
from aembus.supervisor.restarts import GiveUp, Restart
from aembus.supervisor.workers import Worker, Workers
from tests.crash.scene_view import descriptors
from tests.support.fleet import Fleet, fleet
from tests.support.running import statistics, until, workers

pytestmark = pytest.mark.e2e

WAITS = """
(here / "there").touch()
while not (here / "go").exists():
    time.sleep(0.005)
"""


@pytest.fixture
def two(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A bus with the workers w-1 and w-2."""
    with fleet(bus_name, tmp_path, monkeypatch, count=2) as it:
        yield it


def supervisor_pid(it: Fleet) -> int:
    """Return the PID of the bus's supervisor."""
    pid: int = statistics(it.bus)["supervisor"]["pid"]
    return pid


def names(it: Fleet) -> list[str]:
    """Return the names of the workers."""
    return [w["name"] for w in workers(it.bus)]


@contextmanager
def meanwhile(what: str, ask: object) -> Iterator[list[str]]:
    """Ask for something in a thread; at the end of the block its refusal is in the list."""
    refused: list[str] = []

    def run() -> None:
        try:
            ask()  # type: ignore[operator]
        except aembus.ControlError as error:
            refused.append(str(error))

    thread = threading.Thread(target=run, name=what)
    thread.start()
    try:
        yield refused
    finally:
        thread.join()


def test_a_worker_that_is_rolled_is_not_taken_away(two: Fleet) -> None:
    """Scaling down is refused meanwhile, and the roll is not disturbed."""
    two.code(WAITS)
    with meanwhile("roll", lambda: two.roll("w-2")) as refused:
        until("the new process imports", (two.directory / "there").exists)
        with pytest.raises(aembus.ControlError, match=r"being rolled.*worker='w-2'.*now=2"):
            two.scale(1)
        (two.directory / "go").touch()
    assert refused == []
    assert two.scale(1)["workers"] == ["w-1"]


def test_a_worker_that_is_taken_away_is_not_rolled(two: Fleet) -> None:
    """While its job in hand is finished, for instance."""
    for _ in names(two):
        two.client.activate("wait", str(two.directory / "go"))
    two.wait_for(2)
    with meanwhile("scale", lambda: two.scale(1)) as refused:
        with pytest.raises(aembus.ControlError, match=r"taken away already.*worker='w-2'"):
            until("it is taken away", lambda: two.roll("w-2", step_s=0.5) and None)
        (two.directory / "go").touch()
    assert refused == []
    assert names(two) == ["w-1"]


def test_a_roll_that_fails_starts_no_worker_that_is_about_to_be(bus_name: str) -> None:
    """A worker that has died meanwhile is started once, when its pause is over."""

    async def scene() -> None:
        third = asyncio.Event()
        deaths: list[Restart | GiveUp] = []

        def on_death(worker: Worker, decision: Restart | GiveUp) -> None:
            deaths.append(decision)
            if len(deaths) == 3:
                third.set()

        spec = aembus.WorkerSpec("w", "nobody:main")
        configuration = Configuration(bus=bus_name, workers=(spec,))
        program = "json.tool"  # ends by itself
        fleet = Workers(configuration, [spec], program, lambda name: 0, on_death, lambda _: None)
        (worker,) = fleet
        worker.history.ever_ready = True
        fleet.spawn(worker)
        fleet.spawn_successor(worker)
        await asyncio.wait_for(third.wait(), 20.0)
        assert worker.process is None
        again = worker.again
        fleet.discard(worker)
        assert worker.again is again
        assert deaths == [Restart(0.0, False), Restart(0.0, False), Restart(0.1, True)]
        fleet.stop_restarting()

    asyncio.run(scene())


def test_a_worker_s_name_may_be_taken(two: Fleet) -> None:
    """By a client: no worker is added then, and nothing of the client is mixed up with it."""
    with aembus.connect(two.bus, name="w-3") as client:
        with pytest.raises(aembus.ControlError, match=r"name='w-3'.*now=2"):
            two.scale(3)
        found = [m for m in statistics(two.bus)["members"] if m["name"] == "w-3"]
        assert [(m["kind"], m["slot"]) for m in found] == [("client", client.slot)]
    assert two.scale(3)["workers"] == ["w-1", "w-2", "w-3"]


def test_a_worker_that_finds_no_descriptors_is_taken_away_again(two: Fleet) -> None:
    """Wherever they run out: the bus has what it had before, and may be scaled later."""
    pid = supervisor_pid(two)
    members = len(statistics(two.bus)["members"])
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = sum(descriptors(pid).values())
    for spare in range(12):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, limits[1]))
        with meanwhile("scale", lambda: two.scale(3)) as refused:
            pass
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        if not refused:
            break
        assert "now=2" in refused[0]
        assert len(statistics(two.bus)["members"]) == members
        assert names(two) == ["w-1", "w-2"]
    assert two.scale(3)["workers"] == ["w-1", "w-2", "w-3"]
