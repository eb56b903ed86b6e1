"""The timer service and its client, on a real bus."""

from __future__ import annotations

import datetime as dt
import functools
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.services.timer_client import IDS_AT_ONCE, Timer
from aembus.services.wheel import GENERATION_BITS
from aembus.shm import lanes
from tests.support.running import program, statistics, until

LANE_BYTES = 4096
ROOM = LANE_BYTES // 64  # the records that a lane has room for, at most


@pytest.fixture(params=["c", "python"])
def bus(
    bus_name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A bus without workers and with small lanes, its supervisor on either lane; its name."""
    if request.param == "c" and lanes.Publisher is None:
        pytest.skip("the lane in C is not in use")
    monkeypatch.setenv(lanes.VARIABLE, request.param)
    with aembus.Supervisor(
        bus_name, services=["timer"], state_directory=tmp_path, lane_bytes=LANE_BYTES
    ):
        yield bus_name


def timer_statistics(bus: str) -> dict[str, Any]:
    """Return what the timer service counts."""
    (service,) = (s for s in statistics(bus)["services"] if s["name"] == "timer")
    return dict(service)


def test_many_timers_fire_once_each_and_not_early(bus: str) -> None:
    """More timers than the lanes have room for, some cancelled: each of the others fires once."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        fired: list[int] = []
        early: list[int] = []

        def handler(event: aembus.Event, number: int, due: float) -> None:
            fired.append(number)
            if time.monotonic() < due:
                early.append(number)

        timers = []
        for number in range(2000):
            delay = 0.05 + number % 7 * 0.01
            timers.append(timer.after(delay, handler, number, time.monotonic() + delay))
        kept = [*range(0, 2000, 3)]
        for number, started in enumerate(timers):
            if number % 3:
                started.cancel()
        until("all have fired", lambda: member.poll(0.1) * 0 or len(fired) >= len(kept))
        assert sorted(fired) == kept
        assert early == []
        until("none is left", lambda: timer_statistics(bus)["running"] == 0)


def test_starts_that_nobody_posts_for_are_taken(bus: str) -> None:
    """While the service lets starts gather nobody posts for them, and it takes them all."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        started: list[Timer] = []
        while len(started) < 60:
            # The first one wakes the service, which then takes the others later.
            started.extend(timer.after(3600.0, lambda event: None) for _ in range(3))
            until("they run", lambda: timer_statistics(bus)["running"] == len(started))
        assert all(other["rescued_wakeups"] == 0 for other in statistics(bus)["members"])


def test_cancelling_what_has_fired_does_not_touch_its_successor(bus: str) -> None:
    """An id is used again, with another generation: an old handle cancels nothing."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        fired: list[str] = []
        first = timer.after(0.0, lambda event: fired.append("first"))
        until("it fired", lambda: member.poll(0.1) * 0 or fired)
        started = [first]
        while started[-1] is first or _index(started[-1]) != _index(first):
            assert len(started) < 2 * IDS_AT_ONCE, "its id is not used again"
            started.append(timer.after(0.0, lambda event: fired.append("later")))
        assert started[-1].id != first.id
        first.cancel()
        first.cancel()
        until("all others fired", lambda: member.poll(0.1) * 0 or len(fired) == len(started))


def test_starting_and_cancelling_for_ever_keeps_nothing(bus: str) -> None:
    """The places of timers that ended are used again, in whatever order they end."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        chance = random.Random(1)
        running = [timer.after(3600.0, print) for _ in range(5000)]
        for _ in range(30_000):
            place = chance.randrange(len(running))
            running[place].cancel()
            running[place] = timer.after(3600.0, print)
        assert max(_index(started) for started in running) < 2 * len(running)


def _index(timer: Timer) -> int:
    return timer.id >> GENERATION_BITS


def test_a_handler_gets_the_data_of_its_timer(bus: str) -> None:
    """Whatever the data is, and however many there are, a handler gets them as they were."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        got: list[tuple[Any, ...]] = []
        datas: list[tuple[Any, ...]] = [(), (1,), ((),), ((1, 2),), ([3],), (None,), (4, 5)]
        for data in datas:
            timer.after(0.0, lambda event, *data: got.append(data), *data)
        timer.every(0.001, lambda event, *data: got.append(data), (6,), 7)
        until("all have fired", lambda: member.poll(0.1) * 0 or len(got) >= 9)
        assert [data for data in got if data != ((6,), 7)] == datas


def test_a_handler_cancels_what_is_due_with_it(bus: str) -> None:
    """A timer whose expiry is on its way is not called any more once it was cancelled."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        fired: list[int] = []

        def handler(event: aembus.Event, number: int) -> None:
            fired.append(number)
            for other in timers:
                other.cancel()

        timers = [timer.after(0.02, handler, number) for number in range(5)]
        last: list[int] = []
        timer.after(0.1, lambda event: last.append(1))
        until("all is over", lambda: member.poll(0.1) * 0 or last)
        assert fired == [0]


def test_a_named_timer_by_point_is_one_until_it_has_fired(bus: str) -> None:
    """Of two that start it one does; once it has fired the name is free; anybody may cancel it."""
    with aembus.connect(bus) as a, aembus.connect(bus) as b:
        seen: list[str] = []
        a.register("rung", lambda event, who: seen.append(who))
        a.service("timer").after(0.0, "rung", "a", name="ring")
        until("it rang", lambda: a.poll(0.1) * 0 or seen == ["a"])
        a.service("timer").after(3600, "rung", "again", name="ring")
        until("it runs again", lambda: timer_statistics(bus)["running"] == 1)
        other = b.service("timer").after(0.0, "rung", "b", name="ring")
        b.service("timer").after(0.05, "rung", "fence")
        until("more has rung", lambda: a.poll(0.1) * 0 or len(seen) > 1)
        assert seen == ["a", "fence"]
        other.cancel()
        until("it is cancelled", lambda: timer_statistics(bus)["running"] == 0)


def test_at_takes_datetimes_and_seconds_by_handler_and_by_point(bus: str) -> None:
    """What is past fires at once, what is to come when the wall clock shows it."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        seen: dict[str, float] = {}

        def handler(event: aembus.Event, what: str) -> None:
            seen[what] = time.time()

        member.register("struck", handler)
        due = time.time() + 0.1
        timer.at(due, handler, "seconds")
        timer.at(dt.datetime.fromtimestamp(due), "struck", "naive")
        timer.at(dt.datetime.fromtimestamp(due, dt.UTC), handler, "aware")
        timer.at(due, handler, "cancelled").cancel()
        timer.at(0, "struck", "past")
        until("all struck", lambda: member.poll(0.1) * 0 or len(seen) == 4)
        past = seen.pop("past")
        assert "cancelled" not in seen
        assert past < min(seen.values())
        assert min(seen.values()) >= due


def test_a_periodic_handler_does_not_drift_and_ends(bus: str) -> None:
    """`every` fires at whole periods from its start, until it is cancelled."""
    with aembus.connect(bus) as member:
        began = time.monotonic()
        beats: list[float] = []
        timer = member.service("timer").every(
            0.03, lambda event: beats.append(time.monotonic() - began)
        )
        until("it beats", lambda: member.poll(0.1) * 0 or len(beats) >= 4)
        timer.cancel()
        assert all(beat >= 0.03 * number for number, beat in enumerate(beats, 1))
        until("it has ended", lambda: timer_statistics(bus)["running"] == 0)


NO_TIMERS: list[tuple[Callable[[Any], object], str]] = [
    (lambda t: t.after(-0.1, print), "delay=-0.1$"),
    (lambda t: t.after(float("nan"), print), "delay=nan$"),
    (lambda t: t.after(float("inf"), "point"), "delay=inf$"),
    (lambda t: t.every(0.0, print), r"period=0\.0$"),
    (lambda t: t.at(-1, print), "when=-1$"),
    (lambda t: t.after(1, print, name="n"), "name='n', key=None$"),
    (lambda t: t.every(1, print, key="k"), "name=None, key='k'$"),
]


async def never_awaited(event: aembus.Event) -> None:
    """A handler that nobody would await."""


class NeverAwaited:
    """Another one."""

    async def __call__(self, event: aembus.Event) -> None: ...


def test_what_is_no_timer_is_refused(bus: str) -> None:
    """The error names the value; nothing is started."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        for start, problem in NO_TIMERS:
            with pytest.raises(ValueError, match=problem):
                start(timer)
        for handler in (never_awaited, functools.partial(never_awaited), NeverAwaited()):
            with pytest.raises(TypeError, match="plain function; register the `async def` at a"):
                timer.after(1, handler)
            with pytest.raises(TypeError, match=f"handler={re.escape(repr(handler))}$"):
                timer.every(1, handler)
        timer.after(3600, print)
        until("only this one runs", lambda: timer_statistics(bus)["running"] == 1)


STARTER = """
import sys, time, aembus
bus = aembus.connect(sys.argv[1])
timer = bus.service("timer")
for number in range(500):
    timer.after(3600, print, number)
timer.every(3600, print)
timer.at(time.time() + 3600, print)
timer.after(3600, "point", name="kept")
print("started", flush=True)
time.sleep(3600)
"""


def test_timers_of_a_dead_process_are_dropped_at_once(bus: str) -> None:
    """After kill -9 of their process only the timer with a point is left, long before it is due."""
    with program([sys.executable, "-c", STARTER, bus]) as starter:
        starter.read_until("started")
        until("all run", lambda: timer_statistics(bus)["running"] == 503)
        starter.end(signal.SIGKILL)
    until("only one is left", lambda: timer_statistics(bus)["running"] == 1)
    assert timer_statistics(bus)["dropped"] == 502


def test_threads_start_and_cancel_at_once(bus: str) -> None:
    """Four threads on one client: no id is given twice, and nothing is left over."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        ids: list[list[int]] = [[] for _ in range(4)]

        def work(mine: list[int]) -> None:
            kept = [timer.after(3600, print, number) for number in range(300)]
            mine += [started.id for started in kept]
            for started in kept:
                started.cancel()

        threads = [threading.Thread(target=work, args=(mine,)) for mine in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        flat = [each for mine in ids for each in mine]
        assert len(set(flat)) == len(flat) == 1200
        until("none is left", lambda: timer_statistics(bus)["running"] == 0)


def test_an_owner_without_room_gets_all_its_expiries_later(bus: str) -> None:
    """While a process takes nothing, its expired timers wait in the service; none is lost."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        fired: list[int] = []
        for number in range(300):  # its lane has room for ROOM
            timer.after(0.0, lambda event, n: fired.append(n), number)
        until("the rest is owed", lambda: timer_statistics(bus)["owed"] > 0)
        until("all have fired", lambda: member.poll(0.1) * 0 or len(fired) == 300)
        assert fired == [*range(300)]


def test_periods_that_find_no_room_are_not_made_up_for(bus: str) -> None:
    """Of a periodic timer one expiry waits for a process that takes none, however long that is.

    Others at the same point get theirs meanwhile.
    """
    with aembus.connect(bus) as busy, aembus.connect(bus) as other:
        timer = busy.service("timer")
        by_handler: list[int] = []
        by_point: list[str] = []
        beats: list[str] = []
        busy.register("tick", lambda event, text: by_point.append(text))
        other.register("tick", lambda event, text: beats.append(text))
        periodic = [
            timer.every(0.001, lambda event: by_handler.append(1)),
            timer.every(0.001, "tick", "tick"),
        ]
        until("its lane is full", lambda: other.poll(0.1) * 0 or timer_statistics(bus)["owed"] > 0)
        enough = len(beats) + 500
        until("many more are due", lambda: other.poll(0.1) * 0 or len(beats) >= enough)
        assert timer_statistics(bus)["owed"] == 1
        for started in periodic:
            started.cancel()
        timer.after(0.0, "tick", "end")
        until("all have come", lambda: busy.poll(0.1) * 0 or "end" in by_point)
        assert by_handler == []  # they were cancelled
        assert 0 < len(by_point) <= ROOM + 2
