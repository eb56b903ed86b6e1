from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.shm.lane import CorruptLane
from tests.support.running import adds_up, statistics, until


@pytest.fixture
def bus_options() -> dict[str, Any]:
    """See tests/conftest.py."""
    return {"services": ["timer"]}


def dead_letters(directory: Path) -> list[dict[str, object]]:
    """Return the dead letters of a bus."""
    from aembus.supervisor.dead_letters import DeadLetters

    return list(DeadLetters(directory).read())


def poll_all(bus: aembus.Bus) -> int:
    """Deliver until nothing is left."""
    handled = 0
    while more := bus.poll():
        handled += more
    return handled


def test_data_arrives_as_arguments(bus: str) -> None:
    """A handler gets the event and the data of the activation, and sees the job's origin."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        seen = []

        def handler(event: aembus.Event, *data: object) -> None:
            assert event.job is not None
            seen.append((event.point, data, event.job.origin, event.job.attempt, event.context))

        event = receiver.register("p", handler, context="mine")
        assert sender.activate("p", 1, "two", b"three", [4.5, None], {"k": True}) == 1
        assert receiver.poll(1.0) == 1
        origin = (sender.slot, sender.incarnation)
        assert seen == [("p", (1, "two", b"three", [4.5, None], {"k": True}), origin, 1, "mine")]
        assert event.job is None
        assert event.statistics() == aembus.EventStatistics(delivered=1, failed=0)


def test_without_registrations_nothing_is_made(bus: str) -> None:
    """An activation that concerns nobody makes no job and is no error."""
    with aembus.connect(bus) as sender:
        assert sender.activate("nobody", 1) == 0
        assert sender.point("nobody").try_activate(1)


def test_everybody_without_a_group_and_one_of_each_group(bus: str) -> None:
    """Each event without a group gets every activation, of each group one event does."""
    with aembus.connect(bus) as a, aembus.connect(bus) as b, aembus.connect(bus) as sender:
        seen: list[str] = []
        a.register("p", lambda event: seen.append("a"))
        b.register("p", lambda event: seen.append("b"))
        for member, name in ((a, "a"), (b, "b")):
            member.register("p", lambda event, n=name: seen.append("g" + n), group="g", name="g")
            member.register("p", lambda event, n=name: seen.append("h" + n), group="h", name="h")
        assert sender.activate("p") == 4
        poll_all(a)
        poll_all(b)
        assert sorted(s[0] for s in seen) == ["a", "b", "g", "h"]


def test_a_group_takes_turns(bus: str) -> None:
    """Without a key the members of a group get one activation each, in turn."""
    with aembus.connect(bus) as a, aembus.connect(bus) as b, aembus.connect(bus) as sender:
        seen: list[str] = []
        a.register("p", lambda event: seen.append("a"), group="g")
        b.register("p", lambda event: seen.append("b"), group="g")
        for _ in range(10):
            sender.activate("p")
        poll_all(a)
        poll_all(b)
        assert (seen.count("a"), seen.count("b")) == (5, 5)


def test_a_key_stays_with_its_member(bus: str) -> None:
    """Activations with one key reach one member, in order, whoever sends them."""
    with (
        aembus.connect(bus) as a,
        aembus.connect(bus) as b,
        aembus.connect(bus) as s,
        aembus.connect(bus) as t,
    ):
        seen: list[tuple[str, str, int]] = []
        a.register("p", lambda event, k, n: seen.append(("a", k, n)), group="g")
        b.register("p", lambda event, k, n: seen.append(("b", k, n)), group="g")
        for number in range(20):
            for key in ("x", "y", "z", "w"):
                (s if number % 2 else t).activate("p", key, number, key=key)
                poll_all(a)
                poll_all(b)
        for key in ("x", "y", "z", "w"):
            assert len({who for who, k, _ in seen if k == key}) == 1
            assert [n for _, k, n in seen if k == key] == list(range(20))
        assert {who for who, _, _ in seen} == {"a", "b"}


def test_full_inbox_refuses_in_time_and_sends_to_nobody(bus: str) -> None:
    """Fan-out is all or nothing: one full inbox, and no other gets the job."""
    with aembus.connect(bus) as full, aembus.connect(bus) as free, aembus.connect(bus) as sender:
        got: list[int] = []
        full.register("p", lambda event, n: None)
        point = sender.point("p")
        sent = 0
        while point.try_activate(sent):
            sent += 1
        free.register("p", lambda event, n: got.append(n))
        with pytest.raises(aembus.InboxFull, match=r"'p'.*timeout_s=0.05"):
            point.activate(99, timeout=0.05)
        assert not point.try_activate(98)
        assert poll_all(free) == 0
        assert poll_all(full) == sent
        assert point.try_activate(97)
        poll_all(free)
        assert got == [97]


def test_waiting_for_room_ends_when_there_is_room(bus: str) -> None:
    """A producer that waits for room goes on as soon as the consumer has made some."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        seen: list[int] = []
        receiver.register("p", lambda event, n: seen.append(n))
        receiver.run_in_thread()
        for number in range(3000):
            sender.activate("p", number, timeout=20)
        until("all delivered", lambda: len(seen) == 3000)
        assert seen == list(range(3000))
        assert all(m["rescued_wakeups"] == 0 for m in statistics(bus)["members"])


def test_room_is_announced_by_a_post(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for room ends by a post, also if the consumer never heard of the producer before.

    Sleeps are made so long that their bound cannot come to the rescue.
    """
    monkeypatch.setattr("aembus.shm.sleeper.SLEEP_S_MAX", 60.0)
    with aembus.connect(bus) as receiver:
        seen: list[int] = []
        receiver.register("p", lambda event, n: seen.append(n))
        with aembus.connect(bus) as sender:
            point = sender.point("p")
            while point.try_activate(len(seen)):
                pass
            thread = receiver.run_in_thread()
            point.activate(-1, timeout=50)
            until("all delivered", lambda: seen[-1:] == [-1])
            receiver.stop()
            thread.join()


def test_a_handler_may_close_its_bus(bus: str) -> None:
    """A bus that a handler closes is left when the handler has returned, its job being done."""
    with aembus.connect(bus) as sender:
        receiver = aembus.connect(bus)
        seen: list[int] = []

        def handler(event: aembus.Event, number: int) -> None:
            seen.append(number)
            receiver.close()

        receiver.register("p", handler)
        sender.activate("p", 1)
        receiver.run()
        assert seen == [1]
        with pytest.raises(aembus.BusClosed):
            receiver.poll()
        until("its slot is free", lambda: len(statistics(bus)["members"]) == 2)
        assert statistics(bus)["totals"]["dead_lettered"] == 0


def test_an_oversized_job_names_the_sizes(bus: str) -> None:
    """A job of more than half a lane is refused, with size and limit, and nothing is sent."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        receiver.register("p", lambda event, data: None)
        with pytest.raises(aembus.JobTooLarge, match=r"size=\d+, max=4032"):
            sender.activate("p", b"x" * 5000)
        assert sender.activate("p", b"x" * 4000) == 1
        assert poll_all(receiver) == 1


def test_once_means_once(bus: str, tmp_path: Path) -> None:
    """An event registered with once= runs for one job; what came behind is a dead letter."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        seen: list[int] = []
        receiver.register("p", lambda event, n: seen.append(n), once=True)
        sender.activate("p", 1)
        sender.activate("p", 2)
        poll_all(receiver)
        assert sender.activate("p", 3) == 0
        assert seen == [1]
        assert [letter["reason"] for letter in dead_letters(tmp_path)] == ["its event was closed"]
    assert adds_up(statistics(bus)["totals"])


def test_a_closed_events_jobs_go_to_its_group(bus: str) -> None:
    """What was queued for an event that closes goes to a sibling of its group."""
    with aembus.connect(bus) as a, aembus.connect(bus) as b, aembus.connect(bus) as sender:
        seen: list[int] = []
        closing = a.register("p", lambda event, n: seen.append(-1), group="g")
        b.register("p", lambda event, n: seen.append(n), group="g")
        for number in range(10):
            sender.activate("p", number)
        closing.close()
        poll_all(a)
        until("all at the sibling", lambda: poll_all(b) or len(seen) == 10)
        poll_all(b)
        assert sorted(seen) == list(range(10))
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert totals["dead_lettered"] == 0


def test_what_is_queued_for_a_leaver_goes_to_its_group(bus: str) -> None:
    """A member that leaves loses nothing: its queued jobs go to its siblings."""
    with aembus.connect(bus) as stays, aembus.connect(bus) as sender:
        seen: list[int] = []
        leaves = aembus.connect(bus)
        leaves.register("p", lambda event, n: seen.append(-1), group="g")
        stays.register("p", lambda event, n: seen.append(n), group="g")
        for number in range(10):
            sender.activate("p", number)
        leaves.close()
        until("all at the sibling", lambda: (poll_all(stays), len(seen) == 10)[1])
        assert sorted(seen) == list(range(10))
        until("its slot is free", lambda: len(statistics(bus)["members"]) == 3)
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert (totals["dead_lettered"], totals["queued"]) == (0, 0)


def test_a_clients_death_frees_its_slot(bus: str, tmp_path: Path) -> None:
    """A client that dies is taken off the bus; its ungrouped jobs become dead letters."""
    code = (
        "import aembus, os, sys\n"
        f"bus = aembus.connect({bus!r})\n"
        "bus.register('p', lambda event, n: None)\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout, aembus.connect(bus) as sender:
        assert child.stdout.readline() == "ready\n"
        for number in range(5):
            assert sender.activate("p", number) == 1
        child.kill()
        child.wait()
        until("its slot is free", lambda: len(statistics(bus)["members"]) == 2)
        assert sender.activate("p", 6) == 0
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert totals["dead_lettered"] == len(dead_letters(tmp_path)) == 5


def test_exceptions_are_contained_and_counted(
    bus: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that raises is logged and counted, its job kept, and the next job delivered."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        seen: list[int] = []

        def handler(event: aembus.Event, number: int) -> None:
            seen.append(1 // number)

        event = receiver.register("p", handler)
        sender.activate("p", 0)
        sender.activate("p", 1)
        assert receiver.poll(1.0) == 2
        assert seen == [1]
        assert event.statistics() == aembus.EventStatistics(delivered=1, failed=1)
        assert "ZeroDivisionError" in caplog.text
        (letter,) = dead_letters(tmp_path)
        assert letter["reason"] == "its handler raised"
        assert "ZeroDivisionError" in str(letter["detail"])
        me = next(m for m in statistics(bus)["members"] if m["slot"] == receiver.slot)
        assert (me["failed"], me["dead_lettered"], me["delivered"]) == (1, 1, 1)


def test_a_handler_that_raises_what_a_lane_raises_fails_alone(bus: str, tmp_path: Path) -> None:
    """CorruptLane from a handler is its own failure: the jobs behind it are delivered."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        seen: list[int] = []

        def handler(event: aembus.Event, number: int) -> None:
            if number == 0:
                raise CorruptLane("of another bus, say")
            seen.append(number)

        receiver.register("p", handler)
        for number in range(3):
            sender.activate("p", number)
        assert poll_all(receiver) == 3
        assert seen == [1, 2]
        assert [letter["reason"] for letter in dead_letters(tmp_path)] == ["its handler raised"]
        me = next(m for m in statistics(bus)["members"] if m["slot"] == receiver.slot)
        assert (me["failed"], me["corrupted"], me["delivered"]) == (1, 0, 2)


def test_handlers_never_nest(bus: str) -> None:
    """A handler that asks for more jobs is refused, and fails as any other."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        texts: list[str] = []

        def handler(event: aembus.Event) -> None:
            try:
                receiver.event_struct.deliver()
            except aembus.AembusError as error:
                texts.append(str(error))

        receiver.register("p", handler)
        sender.activate("p")
        assert receiver.poll(1.0) == 1
        assert "never nest" in texts[0]


def test_a_handler_may_activate_its_own_member(bus: str) -> None:
    """An activation from a handler that concerns its own process is delivered after it."""
    with aembus.connect(bus) as member:
        seen: list[int] = []

        def handler(event: aembus.Event, number: int) -> None:
            seen.append(number)
            if number:
                member.activate("p", number - 1)

        member.register("p", handler)
        member.activate("p", 3)
        while len(seen) < 4:
            member.poll(1.0)
        assert seen == [3, 2, 1, 0]


def test_duplicates_are_refused(bus: str) -> None:
    """The same event twice in one member is an error that says how to tell them apart."""
    with aembus.connect(bus) as member:
        member.register("p", poll_all)
        with pytest.raises(aembus.RegistrationError, match="name="):
            member.register("p", poll_all)
        member.register("p", poll_all, name="other")


def test_closed_bus_says_so(bus: str) -> None:
    """A closed bus object raises BusClosed, and closing it twice is nothing."""
    member = aembus.connect(bus)
    point = member.point("p")
    member.close()
    member.close()
    for use in (lambda: point.activate(1), lambda: member.register("q", poll_all), member.poll):
        with pytest.raises(aembus.BusClosed):
            use()


def test_members_learn_of_the_supervisors_death_within_a_second(
    bus_name: str, tmp_path: Path
) -> None:
    """After kill -9 of the supervisor, activations and runs raise BusBroken within 1 s."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path) as supervisor:
        member = aembus.connect(bus_name)
        member.register("p", poll_all)
        ended = threading.Event()

        def run() -> None:
            try:
                member.run()
            except aembus.BusBroken:
                ended.set()

        thread = threading.Thread(target=run)
        thread.start()
        os.kill(supervisor.pid, signal.SIGKILL)
        assert ended.wait(1.0)
        with pytest.raises(aembus.BusBroken):
            member.activate("p", 1)
        thread.join()
        member.close()
    from aembus.supervisor.ownership import BusLock, sweep

    lock = BusLock(bus_name)  # as the next start does
    assert sweep(bus_name)
    lock.release()


def test_a_second_supervisor_is_refused(bus: str) -> None:
    """A second supervisor of the same bus is refused and told who the first is."""
    with pytest.raises(aembus.BusAlreadyRunning, match=r"pid=\d+"), aembus.Supervisor(bus):
        pass
    with aembus.connect(bus) as still_there:
        assert still_there.activate("p") == 0


def test_a_forked_child_cannot_use_the_parents_bus(bus: str) -> None:
    """In a forked child the bus object raises ForkedBusError; the parent's goes on."""
    with aembus.connect(bus) as member:
        seen: list[int] = []
        member.register("p", lambda event, n: seen.append(n))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                member.activate("p", 1)
            except aembus.ForkedBusError:
                os.write(write, b"refused")
            finally:
                os._exit(0)
        os.close(write)
        assert os.read(read, 100) == b"refused"
        os.close(read)
        os.waitpid(child, 0)
        member.activate("p", 2)
        assert member.poll(1.0) == 1
        assert seen == [2]


def test_counters_are_shown(bus: str) -> None:
    """An application's counters are in the statistics."""
    with aembus.connect(bus) as member:
        calls = member.counter("calls")
        calls.add()
        calls.add(4)
        assert calls.value == 5
        me = next(m for m in statistics(bus)["members"] if m["slot"] == member.slot)
        assert me["counters"] == {"calls": 5}


def test_timers_fire_by_handler_and_by_point(bus: str) -> None:
    """A timer calls a handler or activates a point, not before its time, and not if cancelled."""
    with aembus.connect(bus) as member:
        timer = member.service("timer")
        seen: list[tuple[str, float]] = []

        def handler(event: aembus.Event, what: str) -> None:
            seen.append((what, time.monotonic()))

        member.register("tick", handler)
        began = time.monotonic()
        timer.after(0.05, handler, "handler")
        cancelled = timer.after(0.02, handler, "never")
        cancelled.cancel()
        timer.after(0.1, "tick", "point")
        while len(seen) < 2:
            member.poll(1.0)
        assert [what for what, _ in seen] == ["handler", "point"]
        due = dict(seen)
        assert due["handler"] - began >= 0.05
        assert due["point"] - began >= 0.1


def test_a_named_periodic_timer_exists_once(bus: str) -> None:
    """Two members that start the same named timer get one; it fires again and again."""
    with aembus.connect(bus) as a, aembus.connect(bus) as b:
        seen: list[int] = []
        a.register("tick", lambda event: seen.append(1))
        a.service("timer").every(0.02, "tick", name="tick")
        timer = b.service("timer").every(0.02, "tick", name="tick")
        began = time.monotonic()
        while len(seen) < 5:
            a.poll(1.0)
        assert time.monotonic() - began >= 0.08
        assert {s["name"]: s for s in statistics(bus)["services"]}["timer"]["running"] == 1
        timer.cancel()
        until(
            "it is gone",
            lambda: {s["name"]: s for s in statistics(bus)["services"]}["timer"]["running"] == 0,
        )


def test_unknown_service_names_what_is_hosted(bus: str) -> None:
    """Asking for a service that is not there says which ones are."""
    with aembus.connect(bus) as member, pytest.raises(aembus.ServiceNotFound, match="timer 1"):
        member.service("tcp")
