"""Urgent events: their jobs come first, and do not keep the others from coming."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.shm.inbox import BUDGET_BESIDE_URGENT, URGENT_BUDGET
from tests.support.lanes import both_lanes
from tests.support.running import adds_up, statistics, until, workers

THIS = "tests.test_urgent"
LONG_S = 60.0  # a time-out that no test waits for


@pytest.fixture
def bus_options() -> dict[str, Any]:
    """See tests/conftest.py."""
    return {"lane_bytes": 16384}


def poll_all(bus: aembus.Bus) -> int:
    """Deliver until nothing is left."""
    handled = 0
    while more := bus.poll():
        handled += more
    return handled


@both_lanes
def test_urgent_jobs_come_before_those_that_were_sent_earlier(bus: str) -> None:
    """What is urgent is delivered first, each kind in its own order."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        got: list[tuple[str, int]] = []
        receiver.register("plain", lambda event, n: got.append(("plain", n)), name="plain")

        @receiver.on("alarm", urgent=True)
        def alarm(event: aembus.Event, number: int) -> None:
            got.append(("alarm", number))

        for number in range(20):
            sender.activate("plain", number)
        for number in range(3):
            assert sender.activate("alarm", number) == 1
        assert poll_all(receiver) == 23
        assert got == [("alarm", n) for n in range(3)] + [("plain", n) for n in range(20)]
        assert adds_up(statistics(bus)["totals"])


def test_ordinary_jobs_go_on_beside_urgent_ones_without_an_end(bus: str) -> None:
    """A budget keeps ordinary jobs alive: urgent ones that never end delay them, and no more."""
    with aembus.connect(bus) as receiver:
        alarms = 0
        when: list[int] = []  # how many alarms there had been at each ordinary job

        def alarm(event: aembus.Event) -> None:
            nonlocal alarms
            alarms += 1
            receiver.activate("alarm")  # there is always a next one

        receiver.register("alarm", alarm, urgent=True)
        receiver.register("plain", lambda event: when.append(alarms))
        for _ in range(2 * BUDGET_BESIDE_URGENT):
            receiver.activate("plain")
        receiver.activate("alarm")
        while len(when) < 2 * BUDGET_BESIDE_URGENT:
            receiver.poll()
        assert set(when) == {URGENT_BUDGET, 2 * URGENT_BUDGET}
        assert alarms == 2 * URGENT_BUDGET


@both_lanes
def test_fan_out_goes_by_both_kinds_of_lanes(bus: str) -> None:
    """One activation reaches urgent and ordinary events, all or none."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as a, aembus.connect(bus) as b:
        got: list[str] = []
        a.register("p", lambda event, n: got.append("urgent"), urgent=True, name="urgent")
        a.register("p", lambda event, n: got.append("plain"), name="plain")
        b.register("p", lambda event, n: None, urgent=True)
        point = sender.point("p")
        assert point.activate(0) == 3
        assert poll_all(a) == 2
        assert got == ["urgent", "plain"]
        sent = 1
        while point.try_activate(sent):
            sent += 1
            poll_all(a)
        assert poll_all(b) == sent
        assert len(got) == 2 * sent


@dataclass(frozen=True)
class Alarm:
    """What a typed point carries."""

    number: int


def test_a_typed_point_takes_every_option(bus: str) -> None:
    """What may be asked for at a point by its name may be asked for at a typed one."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        got: list[Alarm] = []

        @receiver.on(
            receiver.point("alarm", Alarm),
            urgent=True,
            full="drop",
            group="g",
            policy="least_loaded",
            once=True,
        )
        def alarm(event: aembus.Event, data: Alarm) -> None:
            assert event.job is not None
            assert event.job.identity.lane_class == 1
            got.append(data)

        (event,) = receiver.events
        event.stop()
        assert sender.point("alarm", Alarm).activate(Alarm(1), ttl=LONG_S) == 0
        event.start()
        assert sender.point("alarm", Alarm).activate(Alarm(2), ttl=LONG_S) == 1
        assert sender.point("alarm", Alarm).try_activate(Alarm(3), key="k", ttl=LONG_S)
        poll_all(receiver)
        assert got == [Alarm(2)]
        assert receiver.events == []


@both_lanes
def test_room_in_an_urgent_lane_is_waited_for(bus: str) -> None:
    """A full urgent lane makes its producer wait, and it goes on when there is room."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        receiver.register("p", lambda event, n: None, urgent=True)
        point = sender.point("p")
        sent = 0
        while point.try_activate(sent):
            sent += 1
        jobs: list[int] = []
        waiting = threading.Thread(target=lambda: jobs.append(point.activate(-1, timeout=LONG_S)))
        waiting.start()
        while waiting.is_alive():
            receiver.poll(0.01)
        poll_all(receiver)
        assert jobs == [1]
        assert statistics(bus)["totals"]["delivered"] == sent + 1


def test_an_urgent_event_is_called(bus: str) -> None:
    """A call to an urgent event overtakes what is queued."""
    with aembus.connect(bus) as caller, aembus.connect(bus) as callee:
        got: list[str] = []
        callee.register("plain", lambda event: got.append("plain"), name="plain")
        callee.register("p", lambda event: [*got], urgent=True, name="p")
        caller.activate("plain")
        callee.run_in_thread()
        answers = [caller.point("p").call(timeout=LONG_S)]
        assert answers in ([[]], [["plain"]])  # it may have been delivered before the call


def mortal(bus: aembus.Bus) -> None:
    """Entry point: urgent jobs that kill, and one that answers."""
    log = bus.point("log")

    @bus.on("work", urgent=True, group="g")
    def work(event: aembus.Event, kills: int) -> None:
        assert event.job is not None
        if event.job.attempt <= kills:
            os.kill(os.getpid(), signal.SIGKILL)
        log.activate(kills, event.job.attempt, event.job.identity.lane_class)


def test_an_urgent_job_outlives_its_worker(bus_name: str, tmp_path: Path) -> None:
    """What was in hand comes again, by an urgent lane as by any other."""
    spec = aembus.WorkerSpec("w", f"{THIS}:mortal")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        got: list[tuple[int, ...]] = []
        client.register("log", lambda event, *line: got.append(line))
        client.activate("work", 1)
        client.activate("work", 0)
        until("the others are done", lambda: client.poll(0.05) * 0 or len(got) == 2)
        assert got == [(1, 2, 1), (0, 1, 1)]
        assert workers(bus_name)[0]["restarts"] == 1
        assert adds_up(statistics(bus_name)["totals"])
