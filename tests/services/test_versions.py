"""Loading, unloading and upgrading services on a running bus."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import aembus
from aembus.control import ControlClient
from aembus.hosting.calls import KEPT_BYTES_MAX
from tests.support.running import until
from tests.support.tally import Tallies, tallies

RUNNING = "running"
DRAINING = "draining"


@pytest.fixture
def bus(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tallies]:
    """A bus with version 1 of the service `tally`."""
    with tallies(bus_name, tmp_path, monkeypatch) as running:
        yield running


def test_who_is_bound_keeps_his_version_and_who_comes_gets_the_newest(bus: Tallies) -> None:
    """Each version has its own calls and state; the old one goes when its last user lets go."""
    with aembus.connect(bus.bus_name) as old, aembus.connect(bus.bus_name) as new:
        bound = old.service("tally")
        assert bound.add(1) == ["1", 1]
        bus.write("2")
        change = bus.box.upgrade("tally")
        assert (change.old.users, change.handed_over) == ((old.member_name,), False)
        assert new.service("tally").add(5) == ["2", 5]
        assert bound.add(1) == ["1", 2]
        assert old.service("tally") is bound
        assert bus.versions() == [("1", DRAINING), ("2", RUNNING)]
        old.release(bound)
        bus.await_versions(("2", RUNNING))
        assert old.service("tally").add(5) == ["2", 10]
        with pytest.raises(aembus.CallFailed, match=r"not loaded any more; release it"):
            bound.add(1)


def test_versions_loaded_side_by_side_are_chosen_by_name(bus: Tallies) -> None:
    """Both can be asked for until one of them is unloaded; which one must be said."""
    bus.write("2")
    bus.box.load("tally:Tally")
    with aembus.connect(bus.bus_name) as member:
        assert member.service("tally", "1").add(1) == ["1", 1]
        assert member.service("tally", "2").add(1) == ["2", 1]
        assert member.service("tally") is member.service("tally", "2")
        with pytest.raises(aembus.ServiceError, match=r"say which one.*\['1', '2'\]"):
            bus.box.unload("tally")
        assert bus.box.unload("tally", "2").users == (member.member_name,)
        assert bus.versions() == [("1", RUNNING), ("2", DRAINING)]
        with (
            aembus.connect(bus.bus_name) as other,
            pytest.raises(aembus.ServiceNotFound, match=r"version='2', hosted=\['tally 1'\]"),
        ):
            other.service("tally", "2")
    bus.await_versions(("1", RUNNING))


def test_a_member_that_is_killed_lets_go(bus: Tallies) -> None:
    """Its death is as good as its word."""
    script = (
        "import aembus, sys, time; bus = aembus.connect(sys.argv[1]); "
        "print(bus.service('tally').add(1), flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, bus.bus_name], stdout=subprocess.PIPE, text=True
    ) as member:
        assert member.stdout is not None
        assert member.stdout.readline() == "['1', 1]\n"
        bus.box.unload("tally")
        assert bus.versions() == [("1", DRAINING)]
        os.kill(member.pid, signal.SIGKILL)
    bus.await_versions()


def test_a_version_goes_when_it_is_not_in_use_and_has_answered(bus: Tallies) -> None:
    """Also where nobody is bound any more; it is stopped, and its run() is cancelled."""
    answers: list[str] = []
    with aembus.connect(bus.bus_name) as member, aembus.connect(bus.bus_name) as other:
        waiting = member.service("tally")
        caller = threading.Thread(target=lambda: answers.append(waiting.wait(timeout=20.0)))
        caller.start()
        until("it waits", lambda: bus.box.list()[0].answering == 1)
        other.service("tally").keep(True)
        bus.box.unload("tally")
        opener = other.service("tally")
        opener.open()
        caller.join()
        member.release(waiting)
        assert answers == ["1"]
        opener.keep(False)
        other.release(opener)
        bus.await_versions()


@pytest.mark.parametrize(
    ("version", "more", "says"),
    [
        ("1", "", r"this version is loaded already.*version='1', state=running"),
        ("2", "async def start(self): raise RuntimeError('no disk')", r"RuntimeError\('no disk'\)"),
        ("2", "def __init__(self, host): raise OSError('no')", r"failed to start.*OSError\('no'\)"),
        ("2", "def start(self): pass", r"start\(\) is an async def"),
        ("2", "import lost", r"cannot be imported.*No module named 'lost'"),
        ("2", "name = ''", r"a service's name is 1 to 40 letters"),
    ],
)
def test_a_load_that_fails_changes_nothing_and_says_why(
    bus: Tallies, version: str, more: str, says: str
) -> None:
    """Neither the loaded versions nor who gets what, and it can be loaded once it is right."""
    bus.write(version, more)
    with pytest.raises(aembus.ServiceLoadError, match=says):
        bus.box.load("tally:Tally")
    assert bus.versions() == [("1", RUNNING)]
    with aembus.connect(bus.bus_name) as member:
        assert member.service("tally").add(1) == ["1", 1]
    bus.write("2")
    assert bus.box.load("tally:Tally").version == "2"


def test_a_hand_over_passes_state_calls_and_users_on(bus: Tallies) -> None:
    """Who was bound to the old version goes on with the same object, on the new one."""
    with aembus.connect(bus.bus_name) as member:
        tally = member.service("tally")
        tally.add(3)
        bus.write("2")
        change = bus.box.upgrade("tally", hand_over=True)
        assert (change.handed_over, change.at_switch["total"]) == (True, 3)
        assert change.new.users == (member.member_name,)
        assert tally.add(1) == ["2", 4]
        bus.await_versions(("2", RUNNING))
        assert bus.box.list()[0].figures == {"total": 4, "is_running": 1}
        bus.write("3")
        bus.box.upgrade("tally", hand_over=True)
        assert tally.add(1) == ["3", 5]
        bus.box.unload("tally")
        assert bus.versions()[-1] == ("3", DRAINING)
        member.release(tally)
        bus.await_versions()


def test_a_call_that_has_begun_is_answered_by_the_version_that_took_it(bus: Tallies) -> None:
    """The old version stays until then."""
    answers: list[str] = []
    with aembus.connect(bus.bus_name) as member:
        tally = member.service("tally")
        caller = threading.Thread(target=lambda: answers.append(tally.wait(timeout=20.0)))
        caller.start()
        until("it waits", lambda: bus.box.list()[0].answering == 1)
        more = """@call
    def open_old(self, caller):
        self.host.ask_before("open", caller)
"""
        bus.write("2", more)
        bus.box.upgrade("tally", hand_over=True)
        assert bus.versions() == [("1", DRAINING), ("2", RUNNING)]
        with aembus.connect(bus.bus_name) as other:
            other.service("tally").open_old()
        caller.join()
        assert answers == ["1"]
        bus.await_versions(("2", RUNNING))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("add = None", r"lacks calls that members of the old one make.*missing=\['add'\]"),
        (
            "async def take_over(self, handed): raise ValueError('unknown format')",
            r"does not take the state over; the old one goes on.*ValueError\('unknown format'\)",
        ),
    ],
)
def test_a_hand_over_that_fails_leaves_the_old_version_with_its_state(
    bus: Tallies, more: str, says: str
) -> None:
    """As if nothing had been."""
    with aembus.connect(bus.bus_name) as member:
        tally = member.service("tally")
        tally.add(3)
        bus.write("2", more)
        with pytest.raises(aembus.ServiceLoadError, match=says):
            bus.box.upgrade("tally", hand_over=True)
        assert tally.add(1) == ["1", 4]
        assert bus.versions() == [("1", RUNNING)]
        assert bus.box.list()[0].figures == {"total": 4, "is_running": 1}


def test_a_service_without_hand_over_says_so(bus: Tallies, tmp_path: Path) -> None:
    """And can be upgraded without."""
    (tmp_path / "plain.py").write_text(
        "from aembus.services import Service, call\n"
        "class Plain(Service):\n    name = 'plain'\n    version = '1'\n"
    )
    bus.box.load("plain:Plain")
    with pytest.raises(aembus.ServiceLoadError, match="cannot hand over its state"):
        bus.box.upgrade("plain", hand_over=True)
    assert bus.box.upgrade("plain").new.version == "1+2"
    bus.await_versions(("1", RUNNING), ("1+2", RUNNING))


def slow_take_over(gate: Path, entered: Path, succeeds: bool) -> str:
    """Return the source of a take_over that makes `entered`, and awaits `gate`."""
    return f"""async def take_over(self, handed):
        self.total = handed.data["total"]
        open({str(entered)!r}, "w").close()
        import os.path
        while not os.path.exists({str(gate)!r}):
            await asyncio.sleep(0.01)
        if not {succeeds}:
            raise ValueError("in the end")
    """


@pytest.mark.parametrize("succeeds", [True, False])
def test_calls_wait_in_order_while_the_state_is_on_its_way(
    bus: Tallies, tmp_path: Path, succeeds: bool
) -> None:
    """Whoever has the state in the end answers them: the new version, or else the old one."""
    gate, entered = tmp_path / "gate", tmp_path / "entered"
    more = slow_take_over(gate, entered, succeeds)
    bus.write("2", more)
    answers: list[list[object]] = []
    with aembus.connect(bus.bus_name) as member:
        tally = member.service("tally")

        def upgrade() -> None:
            with contextlib.suppress(aembus.ServiceLoadError):
                bus.box.upgrade("tally", hand_over=True)

        upgrading = threading.Thread(target=upgrade)
        upgrading.start()
        until("the state is on its way", entered.exists)
        calling = threading.Thread(target=lambda: answers.append(tally.add(1, timeout=20.0)))
        calling.start()
        with aembus.ServiceBox(bus.bus_name) as other:
            until("the call has come", lambda: other.list()[0].calls == 1)
        assert answers == []
        gate.touch()
        upgrading.join()
        calling.join()
        assert answers == [["2" if succeeds else "1", 1]]


def test_a_rollback_is_an_upgrade_to_the_code_as_it_was(bus: Tallies) -> None:
    """With hand-over too, and a rollback of the rollback leads back."""
    with aembus.connect(bus.bus_name) as member:
        tally = member.service("tally")
        with pytest.raises(aembus.ServiceLoadError, match="this one has replaced none"):
            bus.box.rollback("tally")
        bus.write("2")
        bus.box.upgrade("tally", hand_over=True)
        bus.file.write_text("broken(")
        assert tally.add(2) == ["2", 2]
        assert bus.box.rollback("tally", hand_over=True).new.version == "1+2"
        assert tally.add(2) == ["1", 4]
        assert bus.box.rollback("tally", hand_over=True).new.version == "2+2"
        assert tally.add(2) == ["2", 6]


def test_a_service_that_raises_in_its_work_stops_nobody(bus: Tallies) -> None:
    """It is counted, and its calls go on."""
    more = (
        "def do_work(self, now_ns): raise RuntimeError('work')\n"
        "    def next_due_ns(self): return self.host.now_ns()\n"
        "    async def run(self): raise RuntimeError('run')"
    )
    bus.write("2", more)
    bus.box.upgrade("tally")
    until("its failures are counted", lambda: bus.box.list()[-1].failures >= 2)
    with aembus.connect(bus.bus_name) as member:
        assert member.service("tally").add(1) == ["2", 1]


def test_a_service_that_wants_to_work_at_no_time_at_all_stops_nobody(bus: Tallies) -> None:
    """Infinity is never, and the timers of another service in the same host go on."""
    bus.write("2", "def next_due_ns(self): return float('inf')")
    bus.box.upgrade("tally")
    bus.box.load("timer")
    with aembus.connect(bus.bus_name) as member:
        fired: list[str] = []
        member.service("timer").after(0.05, lambda event: fired.append("fired"))
        until("the timer fires", lambda: member.poll(0.1) and fired, timeout_s=10.0)


def test_a_one_way_call_that_raises_stops_nobody(bus: Tallies) -> None:
    """It is counted as a call and as a failure; those around it are made, in order."""
    with (
        aembus.connect(bus.bus_name) as member,
        contextlib.closing(ControlClient(bus.bus_name)) as control,
    ):
        tally = member.service("tally")
        for data in (b"", b"wrong", b"wrong", b""):
            tally.count(data)
        assert tally.add(0) == ["1", 2]
        (found,) = bus.box.list()
        assert found.calls == 5
        supervisor = control.request("statistics")["supervisor"]
        assert (supervisor["calls"], supervisor["call_failures"]) == (5, 2)


def test_a_call_that_raises_is_logged_by_its_name(
    bus_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Who reads the supervisor's log finds the call, the service and its version."""
    with tallies(bus_name, tmp_path, monkeypatch), aembus.connect(bus_name) as member:
        tally = member.service("tally")
        tally.count(b"wrong")
        assert tally.add(0) == ["1", 0]
    assert "one-way service call 'count' of 'tally' 1 failed" in capfd.readouterr().err


def test_timers_end_with_their_binding_and_the_next_version_begins_anew(
    bus_name: str, tmp_path: Path
) -> None:
    """A process has timers at one version only; no handler is called for another one's expiry."""
    with (
        aembus.Supervisor(bus_name, services=["timer"], state_directory=tmp_path),
        aembus.connect(bus_name) as member,
        aembus.ServiceBox(bus_name) as box,
    ):
        fired: list[str] = []
        old = member.service("timer")
        old.after(0.02, lambda event: fired.append("old"))
        box.upgrade("timer")
        with pytest.raises(aembus.ServiceError, match=r"bound='1', wanted='1\+2'"):
            member.service("timer", "1+2")
        member.release(old)
        until("the old version is gone", lambda: [s.version for s in box.list()] == ["1+2"])
        assert box.list()[0].users == ()
        new = member.service("timer")
        new.after(0.05, lambda event: fired.append("new"))
        while not fired:
            member.poll(1.0)
        assert fired == ["new"]


@pytest.mark.parametrize("hand_over", [False, True])
def test_a_timer_at_a_point_is_kept_by_the_old_version_or_passed_on(
    bus_name: str, tmp_path: Path, hand_over: bool
) -> None:
    """Nobody is bound to the old version; it goes when its last timer has expired, or at once."""
    with (
        aembus.Supervisor(bus_name, services=["timer"], state_directory=tmp_path),
        aembus.connect(bus_name) as member,
        aembus.ServiceBox(bus_name) as box,
    ):
        fired: list[str] = []
        member.register("due", lambda event, what: fired.append(what))
        timer = member.service("timer")
        timer.after(0.5, "due", "once")
        member.release(timer)
        box.upgrade("timer", hand_over=hand_over)
        while not fired:
            member.poll(1.0)
        assert fired == ["once"]
        until("the old version is gone", lambda: [s.version for s in box.list()] == ["1+2"])


def test_calls_that_are_too_many_to_be_kept_stay_in_their_lane(
    bus: Tallies, tmp_path: Path
) -> None:
    """So the host's memory is bounded while a state is on its way, and none of them is lost."""
    gate, entered = tmp_path / "gate", tmp_path / "entered"
    bus.write("2", slow_take_over(gate, entered, True))
    with aembus.connect(bus.bus_name) as member, aembus.ServiceBox(bus.bus_name) as other:
        tally = member.service("tally")
        upgrading = threading.Thread(target=lambda: bus.box.upgrade("tally", hand_over=True))
        upgrading.start()
        until("the state is on its way", entered.exists)
        data = bytes(member.job_bytes_max - 64)
        sent = 0

        def no_more_is_taken() -> bool:
            nonlocal sent
            taken = other.list()[0].calls
            with contextlib.suppress(aembus.InboxFull):
                while sent * len(data) < 2 * KEPT_BYTES_MAX:
                    tally.count(data)
                    sent += 1
            much = taken * len(data) > 0.9 * KEPT_BYTES_MAX
            return much and taken < sent and other.list()[0].calls == taken

        until("the lane is full", no_more_is_taken)
        kept = other.list()[0].calls * len(data)
        gate.touch()
        upgrading.join()
        until("all have come", lambda: other.list()[-1].figures["total"] == sent)
        assert kept < 1.1 * KEPT_BYTES_MAX


def test_a_call_that_waits_for_what_is_cancelled_is_answered(bus: Tallies) -> None:
    """As one that raises: nobody has cancelled the call itself."""
    bus.write(
        "2",
        "@call\n"
        "    async def wait_in_vain(self, caller):\n"
        "        never = asyncio.get_running_loop().create_future()\n"
        "        never.cancel('no more of it')\n"
        "        await never\n"
        "    @call\n"
        "    def look_in_vain(self, caller):\n"
        "        never = asyncio.get_running_loop().create_future()\n"
        "        never.cancel('no more of it')\n"
        "        return never.result()\n",
    )
    bus.box.upgrade("tally")
    with aembus.connect(bus.bus_name) as member:
        with pytest.raises(aembus.CallFailed, match=r"CancelledError.*no more of it"):
            member.service("tally").wait_in_vain()
        with pytest.raises(aembus.CallFailed, match=r"CancelledError.*no more of it"):
            member.service("tally").look_in_vain()
        assert bus.box.list()[0].answering == 0


def test_an_upgrade_is_told_whatever_the_old_version_says_of_itself(bus: Tallies) -> None:
    """Statistics that are no plain data are left out of the answer, too."""
    bus.write("2", "def statistics(self): return {'total': {1, 2}}")
    bus.box.upgrade("tally", hand_over=True)
    bus.write("3")
    change = bus.box.upgrade("tally", hand_over=True)
    assert (change.new.version, change.handed_over) == ("3", True)
    bus.await_versions(("3", RUNNING))


def test_a_version_that_starts_keeps_its_modules_while_another_one_goes(
    bus: Tallies, tmp_path: Path
) -> None:
    """What the one that goes leaves behind is not all that nobody uses yet."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    with aembus.connect(bus.bus_name) as old, aembus.connect(bus.bus_name) as new:
        bound = old.service("tally")
        bus.write("2")
        bus.box.upgrade("tally")
        bus.write(
            "3",
            "async def start(self):\n"
            "        from pathlib import Path\n"
            f"        Path({str(begun)!r}).touch()\n"
            f"        while not Path({str(go)!r}).exists():\n"
            "            await asyncio.sleep(0.01)\n"
            "    @call\n"
            "    def has_module(self, caller):\n"
            "        import sys\n"
            "        return type(self).__module__ in sys.modules\n",
        )
        upgrading = threading.Thread(target=bus.box.upgrade, args=("tally",))
        upgrading.start()
        until("version 3 starts", begun.exists)
        old.release(bound)
        bus.await_versions(("2", RUNNING))
        go.touch()
        upgrading.join()
        assert new.service("tally").has_module()
