"""What a process keeps for names of points that come and go without an end."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

import aembus
from aembus.kept import Recent, WeakList
from aembus.points import ActivationPoint
from aembus.routes import CallWay, Route
from tests.support.running import program, statistics, until

NAMES_MAX = 16
NAMES = 5 * NAMES_MAX
LIMIT_S = 30.0


@pytest.fixture(autouse=True)
def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more names are kept than a test can use."""
    monkeypatch.setattr("aembus.kept.NAMES_MAX", NAMES_MAX)


class Thing:
    """Something to be kept."""


def test_the_first_of_a_name_is_kept_and_so_many_names() -> None:
    """Two threads that make one thing agree on it; nothing grows for ever."""
    recent: Recent[Thing] = Recent()
    first = Thing()
    assert recent.keep("a", first) is first
    assert recent.keep("a", Thing()) is first
    for number in range(NAMES):
        thing = Thing()
        assert recent.keep(str(number), thing) is thing
        assert len(recent) <= NAMES_MAX


def test_what_nobody_has_any_more_is_not_visited() -> None:
    """What others have is, until it is removed."""
    weak: WeakList[Thing] = WeakList()
    things = [Thing() for _ in range(5)]
    for thing in things:
        weak.add(thing)
    assert list(weak) == things
    weak.remove(things[0])
    weak.remove(things[0])
    del things[2:], thing
    assert list(weak) == things[1:]
    assert len(weak) == 1
    for _ in range(100):  # ids are used again at once
        weak.add(Thing())
    assert list(weak) == things[1:]


def alive(kind: type) -> int:
    """Return how many objects of a type there are."""
    gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())


def test_a_point_for_each_call_costs_no_memory_for_ever(bus: str) -> None:
    """Neither activations nor calls keep more than the names that were used lately."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.run_in_thread()
        before = {kind: alive(kind) for kind in (ActivationPoint, Route, CallWay)}
        queues = len(caller._sender.routing._queues)
        for number in range(NAMES):
            caller.activate(f"nobody.{number}")
        assert len(caller._sender.routing._queues) == queues
        for number in range(NAMES):
            event = callee.register(f"double.{number}", lambda event, n: 2 * n, name="double")
            point = caller.point(f"double.{number}")
            assert [point.call(n, timeout=LIMIT_S) for n in range(3)] == [0, 2, 4]
            assert caller.activate(f"double.{number}", 1) == 1
            event.close()
        del point
        grown = {kind: alive(kind) - number for kind, number in before.items()}
        assert grown[ActivationPoint] <= NAMES_MAX
        assert grown[CallWay] <= NAMES_MAX
        assert grown[Route] <= 2 * NAMES_MAX


def test_a_point_that_the_program_has_goes_on(bus: str) -> None:
    """It hears of who registers and closes, also when its name is not kept any more."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        point = sender.point("p")
        seen: list[int] = []
        for round_number in range(3):
            seen.clear()
            event = receiver.register("p", lambda event, number: seen.append(number), name="p")
            for number in range(10):
                assert point.activate(number) == 1
            for number in range(NAMES):
                sender.activate(f"{round_number}.{number}")
            assert sender.point("p") is not point
            receiver.poll(LIMIT_S)
            assert seen == list(range(10))
            event.close()
            assert point.activate(0) == 0


RUN = """
import sys, aembus
aembus.Supervisor(sys.argv[1], state_directory=sys.argv[2]).run(lambda: print("ready", flush=True))
"""


def test_a_point_that_the_program_has_goes_on_by_the_next_supervisor(
    bus_name: str, tmp_path: Path
) -> None:
    """Joining again finds every point that somebody has."""
    command = [sys.executable, "-c", RUN, bus_name, str(tmp_path)]
    with program(command) as first:
        first.read_until("ready")
        with aembus.connect(bus_name, name="m", reconnect=True) as bus:
            point = bus.point("p")
            for number in range(NAMES):
                bus.point(str(number))
            bus.register("p", lambda event: None)
            bus.run_in_thread()
            first.end()
            with program(command) as second:
                second.read_until("ready")
                until("it has joined again", lambda: len(statistics(bus_name)["members"]) == 2)
                until("its event is there", lambda: point.activate() == 1)
