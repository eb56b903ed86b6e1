"""Jobs with a ttl: whoever comes to them too late leaves them to the dead letters."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.lanes import both_lanes
from tests.support.running import adds_up, statistics, until

THIS = "tests.test_ttl"
LONG_S = 60.0
SHORT_S = 0.02
TOO_OLD = "its ttl ended before its turn came"


@pytest.fixture
def bus_options() -> dict[str, Any]:
    """See tests/conftest.py."""
    return {"lane_bytes": 4096}


def poll_all(bus: aembus.Bus) -> int:
    """Deliver until nothing is left."""
    handled = 0
    while more := bus.poll():
        handled += more
    return handled


def reasons(directory: Path) -> list[str]:
    """Return why each dead letter is one."""
    return [letter["reason"] for letter in DeadLetters(directory).read()]


def grow_old() -> None:
    """Return when what was activated before with a ttl of SHORT_S is too old."""
    end = time.monotonic() + SHORT_S
    until("it is too old", lambda: time.monotonic() > end)


@both_lanes
def test_a_job_too_old_is_a_dead_letter(bus: str, tmp_path: Path) -> None:
    """Only what is too old when its turn comes is not delivered, and is counted everywhere."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        got: list[int] = []
        event = receiver.register("p", lambda event, n: got.append(n))
        point = sender.point("p")
        assert point.activate(1) == 1
        assert point.activate(2, ttl=SHORT_S) == 1
        assert point.activate(3, ttl=LONG_S) == 1
        assert point.try_activate(4, ttl=SHORT_S)
        assert sender.activate("p", 5) == 1
        grow_old()
        assert poll_all(receiver) == 5
        assert got == [1, 3, 5]
        assert event.statistics() == aembus.EventStatistics(delivered=3, failed=0, expired=2)
        of_process = receiver.statistics().event_struct
        assert (of_process.expired, of_process.dead_lettered) == (2, 2)
        assert reasons(tmp_path) == [TOO_OLD] * 2
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert (totals["expired"], totals["dead_lettered"], totals["delivered"]) == (2, 2, 3)


def test_an_event_that_wants_one_job_gets_one(bus: str, tmp_path: Path) -> None:
    """A job that is too old does not use up an event that is to have one."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        got: list[Any] = []
        event = receiver.register("p", lambda event, n: got.append(n), once=True, group="g")
        sender.activate("p", 1, ttl=SHORT_S)
        sender.activate("p", 2, ttl=LONG_S, key="k")
        grow_old()
        poll_all(receiver)
        assert got == [2]
        assert event not in receiver.events
        assert reasons(tmp_path) == [TOO_OLD]


def test_a_retrying_job_grows_too_old(bus: str, tmp_path: Path) -> None:
    """A job that failed is not tried again once it is too old."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        attempts: list[int] = []

        def fail(event: aembus.Event) -> None:
            assert event.job is not None
            attempts.append(event.job.attempt)
            raise RuntimeError("no")

        event = receiver.register("p", fail, retries=100, backoff=SHORT_S)
        sender.activate("p", ttl=3 * SHORT_S)
        until("it is given up", lambda: receiver.poll(SHORT_S) * 0 or reasons(tmp_path))
        assert reasons(tmp_path) == [TOO_OLD]
        assert attempts
        assert event.statistics().expired == 1
        assert adds_up(statistics(bus)["totals"])


def test_nobody_waits_for_room_beyond_a_ttl(bus: str) -> None:
    """What could not be done any more is not sent: InboxFull comes when the ttl ends."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as full:
        full.register("p", lambda event: None)
        while sender.point("p").try_activate(ttl=LONG_S):
            pass
        with pytest.raises(aembus.InboxFull, match=r"timeout_s=0\.05"):
            sender.activate("p", timeout=LONG_S, ttl=0.05)


def test_a_ttl_that_is_none_is_refused(bus: str) -> None:
    """It is a time to live, so more than 0 and finite; nothing is sent."""
    with aembus.connect(bus) as member:
        member.register("p", lambda event: None)
        for ttl in (0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"more than 0 .*ttl={ttl}"):
                member.activate("p", ttl=ttl)
        assert poll_all(member) == 0


def fatal(bus: aembus.Bus) -> None:
    """Entry point: dies of the first job that it gets, and takes its time to come back."""
    log = bus.point("log")

    @bus.on("work", group="g")
    def work(event: aembus.Event, number: int, dies: bool) -> None:
        assert event.job is not None
        if dies and event.job.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        log.activate(number, event.job.attempt)


def test_jobs_grow_old_while_their_worker_is_away(bus_name: str, tmp_path: Path) -> None:
    """A dead worker's replacement delivers what is worth doing still, and gives up the rest."""
    spec = aembus.WorkerSpec("w", f"{THIS}:fatal")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        got: list[tuple[int, int]] = []
        client.register("log", lambda event, *line: got.append(line))
        client.activate("work", 1, True, ttl=LONG_S)  # in hand at the death, comes again
        client.activate("work", 2, False, ttl=1e-6)
        client.activate("work", 3, False, ttl=LONG_S)
        until("the others are done", lambda: client.poll(0.05) * 0 or len(got) == 2)
        assert got == [(1, 2), (3, 1)]
        until("it is given up", lambda: reasons(tmp_path))
        assert reasons(tmp_path) == [TOO_OLD]
        totals = statistics(bus_name)["totals"]
        assert adds_up(totals)
        assert totals["expired"] == 1


def test_a_job_that_is_forwarded_keeps_its_ttl(bus: str, tmp_path: Path) -> None:
    """What goes to a sibling since its member went can grow too old there."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as stays:
        got: list[int] = []
        with aembus.connect(bus) as leaves:
            leaves.register("p", lambda event, n: None, group="g")
            sender.activate("p", 1, ttl=SHORT_S)
            sender.activate("p", 2, ttl=LONG_S)
            stays.register("p", lambda event, n: got.append(n), group="g")
        grow_old()
        until("both came", lambda: stays.poll(0.05) * 0 or got)
        assert got == [2]
        until("the other is a letter", lambda: reasons(tmp_path))
        assert reasons(tmp_path) == [TOO_OLD]
