"""Rolling and scaling, when something else happens to the same worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import threading
import time
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
from tests.support.running import program, statistics, until, workers

pytestmark = pytest.mark.e2e

WAITS = """
(here / "there").touch()
while not (here / "go").exists():
    time.sleep(0.005)
"""

# What a worker's process says when it is up comes once it may; "said" is there when it has.
UP_LATE = """
control = bus._membership.control
request = control.request

def late(op, **fields):
    if op == "ready":
        (here / "there").touch()
        while not (here / "go").exists():
            time.sleep(0.005)
        control._send({"id": 0, "op": op, **fields})
        (here / "said").touch()
        return {}
    return request(op, **fields)

control.request = late
"""

# That it stands still comes once it may, the first time.
STANDS_STILL_LATE = """
control = bus._membership.control
tell = control.tell
firsts = ["suspended"]

def tell_late(op, **fields):
    while not (here / "late").exists():
        time.sleep(0.005)
    tell(op, **fields)
    (here / "told").touch()

def late(op, **fields):
    if op in firsts:
        firsts.remove(op)
        import threading
        threading.Thread(target=tell_late, args=(op,), kwargs=fields, daemon=True).start()
    else:
        tell(op, **fields)

control.tell = late
"""

# Asks for events that its predecessor has not, and dies before it can be told that it has them.
DIES_WHEN_UP = """
bus.on("new", name="new")(print)
control = bus._membership.control
request = control.request

def die(op, **fields):
    if op == "ready":
        request("stop_event", ids=[])  # what is published next waits for a while
        control._send({"id": 0, "op": op, **fields})
        control._send({"id": 0, "op": "stop_event", "ids": []})
        os._exit(7)
    return request(op, **fields)

control.request = die
"""

# Starts a timer and watches a process when it is asked to, and tells when either has come.
USES_SERVICES = """
import subprocess

@bus.on("use", name="use")
def use(event):
    def come(event, *data):
        bus.activate("answers", "came", os.getpid(), 0, 0)

    bus.service("timer").after(0.01, come)
    child = subprocess.Popen(["true"])
    bus.service("exit").watch(child.pid, come)
    child.wait()
"""

STARTS_AND_FAILS = """
def never(event, *data):
    pass

bus.service("timer").every(0.01, never)
bus.service("timer").after(3600.0, never)
bus.service("exit").watch(os.getppid(), never)
raise ValueError("not today")
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


def test_who_is_up_when_its_time_is_over_is_a_worker_or_none(two: Fleet) -> None:
    """If it says so just before it is killed nobody sends anything to it."""
    two.code(at_start=UP_LATE)
    pid = supervisor_pid(two)
    begun = time.monotonic()
    step_s = 3.0

    def scale() -> None:
        two.control.request("scale", kind="w", count=3, step_s=step_s, timeout_s=60.0)

    with meanwhile("scale", scale) as refused:
        until("it is about to be up", (two.directory / "there").exists)
        os.kill(pid, signal.SIGSTOP)
        try:
            (two.directory / "go").touch()
            until("it is up", (two.directory / "said").exists)
            until("its time is over", lambda: time.monotonic() > begun + step_s)
        finally:
            os.kill(pid, signal.SIGCONT)
    there = ["w-1", "w-2"] if refused else ["w-1", "w-2", "w-3"]
    until("it is gone, or up", lambda: names(two) == there)
    for number in range(6):
        two.client.activate("work", number)
    assert {name for name, *_ in two.wait_for(6)} == {*there}


def test_a_worker_that_dies_is_not_waited_for(two: Fleet) -> None:
    """Who takes it away is told so at once, and not that its handler takes long."""
    for _ in names(two):
        two.client.activate("wait", str(two.directory / "go"))
    two.wait_for(2)
    with meanwhile("scale", lambda: two.scale(1)) as refused:
        with pytest.raises(aembus.ControlError, match="taken away already"):
            until("it is taken away", lambda: two.roll("w-2", step_s=0.5) and None)
        os.kill(workers(two.bus)[1]["pid"], signal.SIGKILL)
    assert "died meanwhile" in refused[0]
    (two.directory / "go").touch()


def test_new_code_may_join_as_a_client_too(two: Fleet) -> None:
    """While it is imported and while its entry point runs, as any worker may."""
    join = f"import aembus\nwith aembus.connect({two.bus!r}): pass"
    two.code(join, join)
    assert two.scale(3)["count"] == 3
    two.roll("w-1")


def test_a_successor_that_is_not_waited_for_any_more_holds_up_no_departure(two: Fleet) -> None:
    """Who leaves meanwhile is gone when the worker has its process again."""
    two.code(at_start="(here / 'there').touch(); os.kill(os.getpid(), signal.SIGSTOP)")
    command = [sys.executable, "-m", "tests.support.member", two.bus, "leaver", "--keep", "0"]
    with program(command) as leaver:
        leaver.read_until("runs")
        with meanwhile("roll", lambda: two.roll("w-1", step_s=2.0)) as refused:
            until("it has joined", (two.directory / "there").exists)
            leaver.end(signal.SIGKILL)
        assert "did not run its entry point in time" in refused[0]
    until("the other one is gone", lambda: "leaver" not in str(statistics(two.bus)["members"]))


def test_a_worker_that_gets_its_process_back_has_the_events_of_that(two: Fleet) -> None:
    """Also if new code has registered others already: those are nobody's, and none is missing."""
    two.code(at_start=DIES_WHEN_UP)
    with contextlib.ExitStack() as others:
        for _ in range(20):  # the more there are, the longer changes are collected
            others.enter_context(aembus.connect(two.bus))
        with pytest.raises(aembus.ControlError, match="exit code 7"):
            two.roll("w-1")
    points = {point["name"] for point in statistics(two.bus)["points"]}
    assert points >= {"work", "hold", "wait"}
    assert "new" not in points
    assert two.client.point("new").activate() == 0
    two.code()
    two.roll("w-1")


def test_what_a_successor_had_of_services_ends_with_it(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timers and watches; the worker's process goes on with its own, and with new ones."""
    with fleet(bus_name, tmp_path, monkeypatch, services=["timer", "exit"]) as it:

        def used() -> list[int]:
            services = {s["name"]: s for s in statistics(bus_name)["services"]}
            return [services["timer"]["running"], services["exit"]["watches"]]

        it.code(at_start=USES_SERVICES)
        it.roll()
        it.code(at_start=STARTS_AND_FAILS)
        for _ in range(2):
            with pytest.raises(aembus.ControlError, match="not today"):
                it.roll()
            until("nothing is left", lambda: used() == [0, 0])
            it.got.clear()
            it.client.activate("use")
            assert [name for name, *_ in it.wait_for(2)] == ["came", "came"]


def test_who_stands_still_too_late_is_not_taken_away(two: Fleet) -> None:
    """What it says of an attempt that was given up is not taken for the next one's."""
    two.code(at_start=STANDS_STILL_LATE)
    two.roll("w-2")
    two.code()
    with pytest.raises(aembus.ControlError, match=r"wait longer.*now=2"):
        two.control.request("scale", kind="w", count=1, step_s=1.0, timeout_s=60.0)
    go, late = two.directory / "go", two.directory / "late"
    for _ in names(two):
        two.client.activate("wait", str(go))
    two.wait_for(2)
    with meanwhile("scale", lambda: two.scale(1)) as refused:
        with pytest.raises(aembus.ControlError, match="taken away already"):
            until("it is taken away", lambda: two.roll("w-2", step_s=0.5) and None)
        late.touch()
        until("it has said so", (two.directory / "told").exists)
        for _ in range(20):  # it has been heard by then, most probably
            assert names(two) == ["w-1", "w-2"]
        go.touch()
    assert refused == []
    assert names(two) == ["w-1"]
    until("all is done", lambda: not statistics(two.bus)["totals"]["queued"])
    assert statistics(two.bus)["totals"]["dead_lettered"] == 0


def test_who_is_to_stand_still_again_does_so(two: Fleet) -> None:
    """Also while an attempt that was given up has not come to its end, since a handler runs."""
    runner, in_handler, go = two.client._runner, threading.Event(), threading.Event()

    def handle(event: aembus.Event) -> None:
        in_handler.set()
        go.wait()

    def stand_still() -> None:
        with runner.suspended():
            pass

    two.client.register("busy", handle)
    for _ in range(30):
        in_handler.clear()
        go.clear()
        two.client.activate("busy")
        in_handler.wait()
        attempts = [threading.Thread(target=stand_still, daemon=True) for _ in range(2)]
        for attempt in attempts:
            attempt.start()
        until("it is told to", lambda: runner.is_stopping)
        go.set()
        for attempt in attempts:
            attempt.join(10.0)
            assert not attempt.is_alive()
