from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aembus
from aembus.supervisor.ownership import BusLock, sweep
from tests.support.running import program, statistics, until


@pytest.fixture(autouse=True)
def swept(bus_name: str) -> Iterator[None]:
    """What a killed supervisor leaves is removed, as the next start does it."""
    yield
    lock = BusLock(bus_name)
    sweep(bus_name)
    lock.release()


@contextmanager
def running(bus_name: str, directory: Path) -> Iterator[aembus.Supervisor]:
    """Run a supervisor of the bus; with small lanes."""
    with aembus.Supervisor(
        bus_name, services=["timer"], state_directory=directory, lane_bytes=4096
    ) as supervisor:
        yield supervisor


def kill(supervisor: aembus.Supervisor) -> None:
    """Kill a supervisor with -9."""
    os.kill(supervisor.pid, signal.SIGKILL)


class Running:
    """A bus object whose run loop runs in a thread, and how it ended."""

    def __init__(self, bus: aembus.Bus) -> None:
        self.ended_by: list[BaseException | None] = []
        self._bus = bus
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._bus.run()
        except aembus.AembusError as error:
            self.ended_by.append(error)
        else:
            self.ended_by.append(None)


@pytest.mark.parametrize("name", ["", "api-1"])
def test_a_member_joins_the_next_supervisor(bus_name: str, tmp_path: Path, name: str) -> None:
    """After kill -9 and a new start, run() goes on, and points, events and counters work."""
    got: list[int] = []
    with running(bus_name, tmp_path) as first:
        member = aembus.connect(bus_name, name=name, reconnect=True)
        event = member.register("p", lambda event, n: got.append(n), group="g")
        point, counter = member.point("p"), member.counter("handled")
        counter.add(7)
        running_member = Running(member)
        until("it is registered", lambda: point.activate(1))
        until("it is handled", lambda: got == [1])
        kill(first)
        until("it is broken", lambda: raises_broken(member))
    with running(bus_name, tmp_path):
        until("it is registered again", lambda: works(point, 2))
        until("it is handled", lambda: got == [1, 2])
        with aembus.connect(bus_name) as other:
            assert other.activate("p", 3) == 1
        until("it is handled", lambda: got == [1, 2, 3])
        counter.add(1)
        (found,) = [m for m in statistics(bus_name)["members"] if m["slot"] == member.slot]
        assert found["counters"] == {"handled": 1}
        assert found["name"] == (name or member.member_name)
        assert member.events == [event]
        member.stop()
        running_member.thread.join()
        assert running_member.ended_by == [None]
        member.close()


def raises_broken(bus: aembus.Bus) -> bool:
    """Say whether an activation raises BusBroken."""
    try:
        bus.activate("nobody is here")
    except aembus.BusBroken:
        return True
    return False


def works(point: aembus.ActivationPoint, *data: object) -> bool:
    """Say whether an activation reaches somebody."""
    try:
        return bool(point.activate(*data))
    except aembus.BusBroken:
        return False


def test_it_goes_on_over_many_supervisors(bus_name: str, tmp_path: Path) -> None:
    """Each of them killed, some before the member has joined; nothing is left over."""
    got: list[int] = []
    member = None
    for number in range(6):
        with running(bus_name, tmp_path) as supervisor:
            if member is None:
                member = aembus.connect(bus_name, reconnect=True)
                member.register("p", lambda event, n: got.append(n))
                running_member = Running(member)
            if number % 3 != 1:
                until("it is there", lambda: works(member.point("p"), number))  # noqa: B023
                until("it is handled", lambda: got[-1:] == [number])  # noqa: B023
            kill(supervisor)
    assert member is not None
    assert got == [0, 2, 3, 5]
    member.close()
    running_member.thread.join()
    assert running_member.ended_by == [None]


def test_services_work_again_after_the_callback(bus_name: str, tmp_path: Path) -> None:
    """Timers went with the supervisor: on_reconnect starts them again."""
    fired: list[str] = []
    with running(bus_name, tmp_path) as first:
        member = aembus.connect(bus_name, reconnect=True)
        timer = member.service("timer")
        timer.after(3600.0, lambda event: fired.append("never"))
        member.on_reconnect(lambda: timer.after(0.0, lambda event: fired.append("again")))
        running_member = Running(member)
        kill(first)
    with running(bus_name, tmp_path):
        until("it fired", lambda: fired)
        assert fired == ["again"]
        member.close()
        running_member.thread.join()


@pytest.mark.parametrize("name", ["", "api-1"])
def test_a_callback_that_fails_is_tried_again(bus_name: str, tmp_path: Path, name: str) -> None:
    """The member leaves in between, and is there once in the end."""
    calls: list[int] = []

    def callback() -> None:
        calls.append(len(statistics(bus_name)["members"]))
        if len(calls) < 3:
            raise RuntimeError("as the test wants it")

    with running(bus_name, tmp_path) as first:
        member = aembus.connect(bus_name, name=name, reconnect=True)
        member.register("p", lambda event: None)
        member.on_reconnect(callback)
        running_member = Running(member)
        kill(first)
    with running(bus_name, tmp_path):
        until("it was tried often enough", lambda: len(calls) == 3)
        until("it is there", lambda: works(member.point("p")))
        assert calls == [2, 2, 2]
        assert len(statistics(bus_name)["members"]) == 2
        member.close()
        running_member.thread.join()


def test_who_waits_for_room_is_told_within_a_second(bus_name: str, tmp_path: Path) -> None:
    """Also an activation that is blocked at a full inbox ends when the supervisor dies."""
    with running(bus_name, tmp_path) as supervisor:
        with aembus.connect(bus_name) as full, aembus.connect(bus_name) as sender:
            full.register("p", lambda event: None)
            point = sender.point("p")
            while point.try_activate():
                pass
            ended = threading.Event()

            def wait_for_room() -> None:
                with pytest.raises(aembus.BusBroken):
                    point.activate(timeout=30.0)
                ended.set()

            thread = threading.Thread(target=wait_for_room)
            thread.start()
            until("it waits", sender._inbox.is_waited_on)
            kill(supervisor)
            assert ended.wait(1.0)
            thread.join()


def test_polling_waits_for_the_next_supervisor(bus_name: str, tmp_path: Path) -> None:
    """Meanwhile poll returns 0, and stop ends a run that waits."""
    got: list[int] = []
    with running(bus_name, tmp_path) as first:
        member = aembus.connect(bus_name, name="api-1", reconnect=True)
        member.register("p", lambda event, n: got.append(n))
        member.poll()
        kill(first)
        until("it is broken", lambda: raises_broken(member))
    assert member.poll(0.01) == 0
    with running(bus_name, tmp_path), aembus.connect(bus_name) as other:
        until("it is there", lambda: other.activate("p", 1))
        until("it is handled", lambda: member.poll(0.1) * 0 or got)
    running_member = Running(member)
    member.stop()
    running_member.thread.join()
    member.close()


def test_a_job_in_hand_is_finished_before_it_joins_again(bus_name: str, tmp_path: Path) -> None:
    """The handler sees BusBroken, returns, and the member goes on."""
    seen: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def handler(event: aembus.Event, word: str) -> None:
        if word == "long":
            begun.set()
            assert go_on.wait(20)
            with pytest.raises(aembus.BusBroken):
                member.activate("p", "lost")
        seen.append(word)

    with running(bus_name, tmp_path) as first:
        member = aembus.connect(bus_name, reconnect=True)
        member.register("p", handler)
        running_member = Running(member)
        member.activate("p", "long")
        assert begun.wait(20)
        kill(first)
        until("it is broken", lambda: raises_broken(member))
    with running(bus_name, tmp_path):
        go_on.set()
        until("it is there", lambda: works(member.point("p"), "short"))
        until("it is handled", lambda: seen == ["long", "short"])
        member.close()
        running_member.thread.join()


def test_a_named_process_survives_its_supervisor(bus_name: str, tmp_path: Path) -> None:
    """A process of its own joins again, and a kill -9 of it then is as before."""
    command = [sys.executable, "-m", "tests.support.member", bus_name, "api-1", "--reconnect"]
    with running(bus_name, tmp_path) as first, program(command) as member:
        member.read_until("runs")
        kill(first)
        with running(bus_name, tmp_path), aembus.connect(bus_name) as client:
            until("it is there", lambda: client.activate("second", "x"))
            member.end(signal.SIGKILL)
            until("it is awaited", lambda: "awaited" in states(bus_name))
            assert client.activate("first", "waits") == 1
            told: list[tuple[object, ...]] = []
            client.register("seen", lambda event, *what: told.append(what))
            with program(command) as successor:
                until("it is told", lambda: client.poll(0.05) * 0 or "waits" in str(told))
                successor.end(signal.SIGKILL)


def states(bus_name: str) -> list[str]:
    """Return the states of the bus's members."""
    return [m["state"] for m in statistics(bus_name)["members"]]


def test_closing_ends_the_search(bus_name: str, tmp_path: Path) -> None:
    """A bus object that waits for a supervisor can be closed."""
    with running(bus_name, tmp_path) as supervisor:
        member = aembus.connect(bus_name, reconnect=True)
        running_member = Running(member)
        kill(supervisor)
        until("it is broken", lambda: raises_broken(member))
    began = time.monotonic()
    member.close()
    running_member.thread.join()
    assert time.monotonic() - began < 5
    with pytest.raises(aembus.BusClosed):
        member.register("p", print)


def test_an_event_for_one_job_had_it_though_its_supervisor_died(
    bus_name: str, tmp_path: Path
) -> None:
    """It cannot be closed at the supervisor any more: run() goes on without it."""
    seen: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def once(event: aembus.Event) -> None:
        seen.append("once")
        begun.set()
        assert go_on.wait(20)

    with running(bus_name, tmp_path) as first:
        member = aembus.connect(bus_name, reconnect=True)
        member.register("once", once, once=True)
        member.register("p", lambda event: seen.append("p"))
        running_member = Running(member)
        member.activate("once")
        assert begun.wait(20)
        kill(first)
        until("it is broken", lambda: raises_broken(member))
        go_on.set()
    with running(bus_name, tmp_path):
        until("it is there", lambda: works(member.point("p")))
        assert member.activate("once") == 0
        until("it is handled", lambda: seen[1:])
        assert seen == ["once", "p"]
        assert [event.point for event in member.events] == ["p"]
        member.close()
        running_member.thread.join()
        assert running_member.ended_by == [None]
