from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.cli.look import statistics_text
from tests.spawning import handlers
from tests.support.running import adds_up, statistics, until

BUS = f"t{os.getpid()}-spawned"
LANE_BYTES = 8192


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bus for all tests here, whose spawn host has come up; its name."""
    folder = tmp_path_factory.mktemp("dead")
    with aembus.Supervisor(BUS, state_directory=folder, lane_bytes=LANE_BYTES):
        with aembus.connect(BUS) as first:
            first.register("first", handlers.whoami, spawn=True)
        yield BUS


@pytest.fixture
def me(bus: str) -> Iterator[aembus.Bus]:
    """A client of it."""
    with aembus.connect(bus) as joined:
        yield joined


def dead(bus: str, point: str) -> list[str]:
    """Return why the dead letters of a point are some."""
    with aembus.DeadLetterBox(bus) as box:
        return [letter["reason"] for letter in box.list(point=point)]


def finished(bus: str) -> Callable[[], bool]:
    """Return what says that nothing is queued any more."""
    return lambda: not statistics(bus)["totals"]["queued"]


def begun(folder: Path, number: int, attempt: int = 1) -> int:
    """Wait until a child has begun with a job; return its PID."""
    file = folder / f"begun-{number}-{attempt}"
    return int(until(f"job {number} begins", lambda: file.exists() and file.read_text()))


def test_the_handler_runs_in_a_child(me: aembus.Bus) -> None:
    """Of the nursery, one for each job, with what was sent and the job's own facts."""
    me.register("who", handlers.whoami, spawn=True)
    me.register("job", handlers.job_of, spawn=True)
    first = me.point("who").call(1, {"two": [3]})
    second = me.point("who").call()
    assert first[2:] == [1, "whoami", 1, {"two": [3]}]
    assert first[1] == second[1]
    assert len({first[0], second[0], first[1], os.getpid()}) == 4
    origin, attempt, key, identity, context = me.point("job").call(key="alice")
    assert origin == [me.slot, me.incarnation]
    assert (attempt, key != 0, context) == (1, True, None)
    assert identity[2:] == [me.slot, 3]


def test_a_caller_gets_what_failed(me: aembus.Bus) -> None:
    """Exception, refusal, what cannot be sent, exit code, signal: as text."""
    for name in ("fail", "refuse", "unanswerable", "leave", "kill_self", "execute"):
        me.register(f"failing {name}", getattr(handlers, name), spawn=True)

    def failure(name: str, *data: Any) -> tuple[str, str, str]:
        with pytest.raises(aembus.CallFailed) as raised:
            me.point(f"failing {name}").call(*data)
        error = raised.value
        assert error.event == name
        return error.error_type, error.text, error.traceback_text

    kind, text, trace = failure("fail", "no good")
    assert (kind, text) == ("ValueError", "no good")
    assert "in fail" in trace
    assert failure("refuse", "not mine")[:2] == ("Refused", "not mine")
    assert failure("unanswerable")[0] == "TypeError"
    assert failure("leave", 3)[:2] == ("ChildEnded", "ended with exit code 3")
    assert failure("kill_self")[:2] == ("ChildEnded", "ended by signal 9")
    assert failure("execute", "/bin/false")[:2] == ("ChildEnded", "ended with exit code 1")
    assert me.point("failing leave").call(None) is None
    assert me.point("failing execute").call("/bin/true") is None


def test_a_job_whose_child_dies_comes_again(me: aembus.Bus) -> None:
    """As one whose worker dies: three deaths are too many, and one without redeliver."""
    me.register("dying", handlers.die_first, spawn=True)
    me.register("fragile", handlers.die_first, spawn=True, redeliver=False)
    before = statistics(me.name)["totals"]
    me.activate("dying", 2)
    me.activate("dying", 3)
    me.activate("fragile", 1)
    until("all are finished", finished(me.name))
    assert dead(me.name, "dying") == ["in hand at 3 deaths"]
    assert dead(me.name, "fragile") == ["in hand when its child ended by signal 9"]
    after = statistics(me.name)["totals"]
    assert adds_up(after)
    assert after["delivered"] - before["delivered"] == 1
    assert me.point("dying").call(2, redeliver=True) == 3


def test_a_job_that_fails_is_tried_again(me: aembus.Bus) -> None:
    """After an exception, and after an exit code, as often as retries say."""
    options = {"spawn": True, "retries": 2, "backoff": 0.01}
    me.register("failing", handlers.fail_first, **options)  # type: ignore[arg-type]
    me.register("leaving", handlers.leave, **options)  # type: ignore[arg-type]
    assert me.point("failing").call(2) == 3
    me.activate("failing", 3)
    me.activate("leaving", 7)
    until("all are finished", finished(me.name))
    assert dead(me.name, "failing") == ["its handler raised"]
    assert dead(me.name, "leaving") == ["its child ended with exit code 7"]
    assert adds_up(statistics(me.name)["totals"])


def test_beyond_children_max_jobs_wait(me: aembus.Bus, tmp_path: Path) -> None:
    """Not started, in their lane, until that is full; jobs of other events pass them."""
    event = me.register("limited", handlers.wait_for_file, spawn=True, children_max=2)
    me.register("passing", handlers.whoami, spawn=True)
    folder = str(tmp_path)
    assert me.activate("limited", folder, 0) == me.activate("limited", folder, 1) == 1
    pids = {begun(tmp_path, 0), begun(tmp_path, 1)}
    sent = 2
    while me.point("limited").try_activate(folder, sent):
        sent += 1
        if sent == 4:
            assert me.point("passing").call(timeout=10.0)
    with pytest.raises(aembus.InboxFull):
        me.activate("limited", folder, sent, timeout=0.0)
    children = event.children
    assert {child.pid for child in children} == pids
    assert all(child.begun_ns > 0 for child in children)
    found = statistics(me.name)
    (shown,) = [p["events"][0] for p in found["points"] if p["name"] == "limited"]
    assert {pid for pid, _ in shown["children"]} == pids
    host = next(m for m in found["members"] if m["kind"] == "spawn")
    assert (host["held"], host["queued"], shown["slot"]) == (2, sent + 1, host["slot"])
    assert all(f"{pid}" in statistics_text(found) for pid in pids)
    for number in range(sent):
        (tmp_path / f"go-{number}").touch()
    until("all are finished", finished(me.name))
    assert len(list(tmp_path.glob("begun-*-1"))) == sent
    until("their children have ended", lambda: event.children == ())


def test_a_group_shares_its_limit(bus: str, me: aembus.Bus, tmp_path: Path) -> None:
    """However many members register for it."""
    with aembus.connect(bus) as other:
        for member in (me, other):
            options = {"spawn": True, "group": "pair", "children_max": 1}
            member.register("shared", handlers.wait_for_file, **options)  # type: ignore[arg-type]
        for number in range(3):
            me.activate("shared", str(tmp_path), number)
        first = until("one begins", lambda: list(tmp_path.glob("begun-*")))
        assert len(first) == 1
        assert me.point("first").try_activate() is True  # nobody is there: it concerns no event
        assert len(list(tmp_path.glob("begun-*"))) == 1
        for number in range(3):
            (tmp_path / f"go-{number}").touch()
        until("all are finished", finished(bus))


def test_a_closed_event_leaves_its_jobs_as_any_does(
    bus: str, me: aembus.Bus, tmp_path: Path
) -> None:
    """What has a child is finished; what waits goes to its group, or to the dead letters."""
    with aembus.connect(bus) as other:
        lonely = other.register("lonely", handlers.wait_for_file, spawn=True, children_max=1)
        grouped = other.register(
            "grouped", handlers.wait_for_file, spawn=True, children_max=1, group="g"
        )
        for number in range(2):
            me.activate("lonely", str(tmp_path), number)
            me.activate("grouped", str(tmp_path), number + 10)
        begun(tmp_path, 0)
        begun(tmp_path, 10)
        taken: list[int] = []
        me.register("grouped", lambda event, folder, number: taken.append(number), group="g")
        lonely.close()
        grouped.close()
        until("the sibling gets it", lambda: me.poll(0.02) and taken)
        until("the other is a letter", lambda: dead(bus, "lonely"))
    assert taken == [11]
    assert dead(bus, "lonely") == ["its event was closed"]
    for number in (0, 10):
        (tmp_path / f"go-{number}").touch()
    until("all are finished", finished(bus))
    assert not dead(bus, "grouped")


def test_events_go_with_the_member_that_registered_them(bus: str, me: aembus.Bus) -> None:
    """When it closes its bus, nobody is concerned any more; registered anew, it works anew."""
    for _ in range(2):
        with aembus.connect(bus) as other:
            other.register("visiting", handlers.whoami, spawn=True)
            assert me.point("visiting").call()
        assert me.activate("visiting") == 0


def test_once_has_one_child(me: aembus.Bus) -> None:
    """And is on no wait queue after that."""
    me.register("once", handlers.die_first, spawn=True, once=True)
    assert me.activate("once", 1) == 1
    points = {"once"}
    while "once" in points:  # not by activating: what comes too early becomes a dead letter
        points = {point["name"] for point in statistics(me.name)["points"]}
    assert me.activate("once", 0) == 0
    until("all are finished", finished(me.name))
    assert not dead(me.name, "once")


def test_a_stopped_event_is_off_its_wait_queue(me: aembus.Bus) -> None:
    """As any other, and may be started again."""
    event = me.register("halting", handlers.whoami, spawn=True)
    event.stop()
    assert me.activate("halting") == 0
    event.start()
    assert me.point("halting").call()


def test_stages_typed_points_and_coroutines(me: aembus.Bus) -> None:
    """All of an event runs in the child."""
    stages = {"constructor": handlers.double, "destructor": handlers.shown}
    me.register("staged", handlers.plus_one, spawn=True, **stages)  # type: ignore[arg-type]
    assert me.point("staged").call(5) == "11 None"
    me.register("awaiting", handlers.awaits, spawn=True)
    assert me.point("awaiting").call(1) == 2
    orders = me.point("orders", handlers.Order)
    me.register(orders, handlers.order, spawn=True)
    assert me.point("orders").call({"item": "bolt", "pieces": 3}) == ["Order", "bolt", 3]
    with pytest.raises(aembus.CallFailed, match="pieces"):
        me.point("orders").call({"item": "bolt", "pieces": "three"})


def test_a_child_may_join_the_bus(bus: str, me: aembus.Bus) -> None:
    """By itself, as any process."""
    heard: list[int] = []
    me.register("heard", lambda event, pid: heard.append(pid))
    me.register("joining", handlers.connects, spawn=True)
    me.activate("joining", bus)
    until("the child speaks", lambda: me.poll(0.02) and heard)


@pytest.mark.parametrize(
    ("handler", "options", "text"),
    [
        (lambda event: None, {}, "at the top of a module"),
        (handlers.Kept().bound, {}, "at the top of a module"),
        (handlers.whoami, {"constructor": lambda event: ()}, "constructor"),
        (handlers.whoami, {"context": 1}, "context"),
        (handlers.whoami, {"children_max": 0}, "children_max=0"),
    ],
)
def test_what_cannot_be_is_refused(
    me: aembus.Bus, handler: Any, options: dict[str, Any], text: str
) -> None:
    """When it is registered, and what was registered before works on."""
    with pytest.raises(aembus.RegistrationError, match=text):
        me.register("impossible", handler, spawn=True, **options)
    assert me.activate("impossible") == 0


def test_a_child_has_default_signals(me: aembus.Bus) -> None:
    """SIGTERM ends it, though the spawn host ignores it."""
    me.register("signalled", handlers.kill_self, spawn=True)
    with pytest.raises(aembus.CallFailed, match="ended by signal 15"):
        me.point("signalled").call(signal.SIGTERM)


def test_what_a_child_forks_keeps_its_own_descriptors(me: aembus.Bus) -> None:
    """A daemon that is forked twice has all files that it has opened in between."""
    me.register("daemon", handlers.opens_in_a_fork, spawn=True)
    assert me.point("daemon").call(timeout=20.0) == 0
