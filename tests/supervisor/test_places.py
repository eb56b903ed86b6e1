from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.control import ControlClient
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.running import Program, adds_up, program, statistics, until

LANE_BYTES = 4096


@pytest.fixture
def bus(bus_name: str, tmp_path: Path) -> Iterator[str]:
    """A bus without workers; its name."""
    with aembus.Supervisor(
        bus_name, services=["timer"], state_directory=tmp_path, lane_bytes=LANE_BYTES
    ):
        yield bus_name


@contextlib.contextmanager
def process_of(bus: str, name: str, *options: str, runs: bool = True) -> Iterator[Program]:
    """Run a process that is the member of this name; what is left of it is killed."""
    with program([sys.executable, "-m", "tests.support.member", bus, name, *options]) as member:
        member.read_until("runs" if runs else "registers")
        try:
            yield member
        finally:
            if member.process.poll() is None:
                member.end(signal.SIGKILL)


class Seen:
    """A client that collects what the members tell."""

    def __init__(self, bus: aembus.Bus) -> None:
        self.bus = bus
        self.got: list[tuple[str, str, int, int]] = []
        bus.register("seen", lambda event, *told: self.got.append(told))

    def wait_for(self, count: int) -> list[tuple[str, str, int, int]]:
        until(f"{count} told", lambda: self.bus.poll(0.05) * 0 or len(self.got) >= count)
        return self.got

    def words(self, count: int) -> list[tuple[str, str, int]]:
        return [told[:3] for told in self.wait_for(count)]


@pytest.fixture
def seen(bus: str) -> Iterator[Seen]:
    """Who activates, and hears of it."""
    with aembus.connect(bus) as client:
        yield Seen(client)


def member(bus: str, name: str) -> dict[str, Any] | None:
    """Return what the supervisor knows of the member of a name."""
    return next((m for m in statistics(bus)["members"] if m["name"] == name), None)


def queued(bus: str, name: str) -> int:
    """Return how many jobs wait for the member of a name."""
    found = member(bus, name)
    assert found is not None
    return int(found["queued"])


def wait_for_state(bus: str, name: str, state: str) -> dict[str, Any]:
    """Return what is known of a member once it is in a state."""

    def look() -> dict[str, Any] | None:
        found = member(bus, name)
        return found if found is not None and found["state"] == state else None

    found: dict[str, Any] = until(f"{name} is {state}", look)
    return found


def test_the_next_process_of_a_name_gets_what_waited(bus: str, seen: Seen) -> None:
    """Jobs queued before a kill -9 and activated after it are all handled by the successor."""
    with process_of(bus, "api-1") as first:
        before = member(bus, "api-1")
        assert before is not None
        first.process.send_signal(signal.SIGSTOP)
        for number in range(3):
            seen.bus.activate("first", f"before {number}")
        first.end(signal.SIGKILL)
    wait_for_state(bus, "api-1", "awaited")
    assert seen.bus.activate("first", "after") == 1
    assert seen.bus.activate("second", "after") == 1
    with process_of(bus, "api-1"):
        told = seen.words(5)
        assert sorted(told) == [
            ("first", "after", 1),
            ("first", "before 0", 1),
            ("first", "before 1", 1),
            ("first", "before 2", 1),
            ("second", "after", 1),
        ]
        now = member(bus, "api-1")
        assert now is not None
        assert (now["slot"], now["state"], now["restarts"]) == (before["slot"], "running", 1)
        assert now["incarnation"] != before["incarnation"]
        assert adds_up(now["received"])
        assert now["dead_lettered"] == 0


def test_the_job_in_hand_at_a_crash_comes_again(bus: str, seen: Seen, tmp_path: Path) -> None:
    """With its attempt counted; or it is a dead letter, for an event that declines that."""
    with process_of(bus, "api-1") as first:
        seen.bus.activate("first", "die once")
        first.process.wait()
    with process_of(bus, "api-1") as second:
        assert seen.words(1) == [("first", "die once", 2)]
        seen.bus.activate("fragile", "die")
        second.process.wait()
    with process_of(bus, "api-1"):
        seen.bus.activate("first", "next")
        assert seen.words(2)[1:] == [("first", "next", 1)]
        (letter,) = DeadLetters(tmp_path).read()
        assert (letter["member"], letter["event"]) == ("api-1", "fragile")


def test_a_job_that_kills_three_processes_is_put_aside(
    bus: str, seen: Seen, tmp_path: Path
) -> None:
    """However they were started."""
    seen.bus.activate("first", "nobody")
    with process_of(bus, "api-1") as first:
        seen.bus.activate("first", "die")
        seen.bus.activate("first", "next")
        first.process.wait()
    for _ in range(2):
        with program([sys.executable, "-m", "tests.support.member", bus, "api-1"]) as next_one:
            next_one.process.wait(20)
    with process_of(bus, "api-1"):
        assert seen.words(1) == [("first", "next", 1)]
        (letter,) = DeadLetters(tmp_path).read()
        assert (letter["attempts"], letter["point"]) == (3, "first")


def test_nothing_is_handled_before_the_successor_runs(bus: str, seen: Seen, tmp_path: Path) -> None:
    """A job of an event that is registered late waits, and is no dead letter."""
    with process_of(bus, "api-1") as first:
        first.end(signal.SIGKILL)
    wait_for_state(bus, "api-1", "awaited")
    seen.bus.activate("second", "waits")
    gate = tmp_path / "gate"
    with process_of(bus, "api-1", "--gate", str(gate), runs=False) as second:
        assert wait_for_state(bus, "api-1", "starting")["queued"] == 1
        seen.bus.activate("second", "waits too")
        gate.touch()
        second.read_until("runs")
        assert seen.words(2) == [("second", "waits", 1), ("second", "waits too", 1)]
    assert not list(DeadLetters(tmp_path).read())


def test_what_the_successor_does_not_register_goes_to_the_dead_letters(
    bus: str, seen: Seen, tmp_path: Path
) -> None:
    """When it begins to run, its registrations are complete."""
    with process_of(bus, "api-1") as first:
        first.end(signal.SIGKILL)
    seen.bus.activate("second", "lost")
    with aembus.connect(bus, name="api-1") as successor:
        successor.register("first", lambda event, word: None, name="first")
        assert seen.bus.activate("second", "lost too") == 1
        letters = DeadLetters(tmp_path)
        until("both", lambda: successor.poll(0.05) * 0 or len(list(letters.read())) == 2)
        assert seen.bus.activate("second") == 0
    assert [letter["point"] for letter in letters.read()] == ["second", "second"]


def test_an_inbox_that_nobody_reads_pushes_back(bus: str, seen: Seen) -> None:
    """While nobody is there jobs are taken until the inbox is full, and none is lost then."""
    with process_of(bus, "api-1") as first:
        first.end(signal.SIGKILL)
    point = seen.bus.point("first")
    sent = 0
    while point.try_activate("again"):
        sent += 1
    with pytest.raises(aembus.InboxFull):
        point.activate("again", timeout=0.05)
    with process_of(bus, "api-1"):
        assert len(seen.words(sent)) == sent


def test_a_living_process_keeps_its_name(bus: str) -> None:
    """The second of a name is told who the first is; a worker's name is refused, too."""
    with process_of(bus, "api-1") as first:
        with pytest.raises(aembus.NameInUse, match=f"pid={first.process.pid}"):
            aembus.connect(bus, name="api-1")
        first.process.send_signal(signal.SIGSTOP)  # slow is not dead
        with pytest.raises(aembus.NameInUse):
            aembus.connect(bus, name="api-1")
    with aembus.connect(bus, name="api-1"):
        pass


@pytest.mark.parametrize("name", ["client-7", "supervisor", "a b", "x" * 41])
def test_names_that_will_not_do(bus: str, name: str) -> None:
    """Made-up names cannot be asked for, nor what no name can hold."""
    with pytest.raises(aembus.OpenError, match=name):
        aembus.connect(bus, name=name)


def test_an_orderly_close_gives_the_name_up(bus: str, seen: Seen, tmp_path: Path) -> None:
    """What was queued goes to the group or to the dead letters, and the slot is free."""
    with process_of(bus, "api-1") as first:
        seen.bus.activate("first", "close")
        seen.bus.activate("second", "behind it")
        first.read_until("ended")
        assert member(bus, "api-1") is None
    assert seen.bus.activate("first", "nobody") == 0
    assert {letter["point"] for letter in DeadLetters(tmp_path).read()} <= {"second"}


def test_close_may_keep_the_place(bus: str, seen: Seen, tmp_path: Path) -> None:
    """For a restart that somebody asked for: nothing is lost, and nothing comes twice."""
    with process_of(bus, "api-1") as first:
        seen.bus.activate("first", "close, keep")
        first.read_until("ended")
    wait_for_state(bus, "api-1", "awaited")
    assert seen.bus.activate("first", "next") == 1
    with process_of(bus, "api-1"):
        assert seen.words(1) == [("first", "next", 1)]
    assert not list(DeadLetters(tmp_path).read())


@pytest.fixture
def silent(bus: str) -> Iterator[ControlClient]:
    """A member that passes no generation, as one that is stopped does not."""
    with contextlib.closing(ControlClient(bus)) as control:
        control.request("join", kind="client", name="silent", keep_s=60.0)
        yield control


def leaving(bus: str, name: str) -> None:
    """Have a member of this name, kill it, and return while it leaves, held up by another one."""
    with process_of(bus, name, "--keep", "0") as process:
        process.end(signal.SIGKILL)
    wait_for_state(bus, name, "leaving")


def test_who_leaves_its_place_holds_up_no_departure(bus: str, silent: ControlClient) -> None:
    """Nothing is waited for of a process that has gone, although its place is kept."""
    leaving(bus, "gone")
    silent.leave(keep=True)
    until("it is gone", lambda: member(bus, "gone") is None)


def test_who_hangs_up_while_it_waits_for_a_name_does_not_get_it(
    bus: str, silent: ControlClient
) -> None:
    """Nobody would have the place, and the name would be taken for as long as the bus runs."""
    leaving(bus, "switch")
    interrupted = ControlClient(bus)
    interrupted.tell("join", kind="client", name="switch", keep_s=0.0)
    interrupted.request("dead_file")  # answered after it has been asked to join
    interrupted.close()
    silent.leave(keep=False)
    until("the last one is gone", lambda: "leaving" not in str(statistics(bus)["members"]))
    with process_of(bus, "switch"):
        pass


def test_leaving_by_an_exception_keeps_the_place(bus: str) -> None:
    """A `with` block that ends by an exception is a crash."""
    with pytest.raises(ZeroDivisionError), aembus.connect(bus, name="api-1"):
        raise ZeroDivisionError
    wait_for_state(bus, "api-1", "awaited")
    with aembus.connect(bus, name="api-1"):
        pass
    assert member(bus, "api-1") is None


def test_a_program_may_replace_itself(bus: str, seen: Seen) -> None:
    """After an exec the process of the same pid gets its name back, and the job in hand."""
    with process_of(bus, "api-1") as first:
        seen.bus.activate("first", "exec")
        first.read_until("runs")
        found = member(bus, "api-1")
        assert found is not None
        assert (found["pid"], found["restarts"]) == (first.process.pid, 1)
        first.end(signal.SIGKILL)


def test_a_place_is_given_up_after_its_time(bus: str, seen: Seen, tmp_path: Path) -> None:
    """Its jobs go to its group's others, or to the dead letters."""
    with process_of(bus, "api-1", "--keep", "0.3", "--group", "g") as first:
        first.process.send_signal(signal.SIGSTOP)
        seen.bus.activate("first", "for the group")
        seen.bus.activate("second", "for nobody")
        with process_of(bus, "api-2", "--group", "g"):
            first.end(signal.SIGKILL)
            assert seen.words(1) == [("first", "for the group", 1)]
            until("it departed", lambda: member(bus, "api-1") is None)
    (letter,) = DeadLetters(tmp_path).read()
    assert (letter["point"], letter["member"]) == ("second", "api-1")


def test_a_timer_of_a_dead_process_is_none_of_its_successors(
    bus: str, seen: Seen, tmp_path: Path
) -> None:
    """Expiries that were under way are dropped, also where the successor uses no timers."""
    with aembus.connect(bus, name="api-1") as first:
        first.register("first", lambda event: None, name="first")
        timer = first.service("timer")
        first.poll()
        timer.after(0.0, lambda event: None)
        until("it is queued", lambda: queued(bus, "api-1"))
        first.close(keep=True)
    with aembus.connect(bus, name="api-1") as second:
        until("it is gone", lambda: second.poll(0.05) or not queued(bus, "api-1"))
        assert second.statistics().event_struct.dead_lettered == 0
    assert not list(DeadLetters(tmp_path).read())


def test_a_death_before_it_was_noticed_frees_the_name(bus: str) -> None:
    """The successor need not wait for the supervisor to have heard: the kernel knows."""
    supervisor = statistics(bus)["supervisor"]["pid"]
    with process_of(bus, "api-1") as first:
        os.kill(supervisor, signal.SIGSTOP)
        try:
            first.end(signal.SIGKILL)
            command = [sys.executable, "-m", "tests.support.member", bus, "api-1"]
            with program(command) as second:
                time.sleep(0.3)  # it is to connect meanwhile; if it has not, nothing is wrong
                os.kill(supervisor, signal.SIGCONT)
                second.read_until("runs")
                second.end(signal.SIGKILL)
        finally:
            os.kill(supervisor, signal.SIGCONT)
