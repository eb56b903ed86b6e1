from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

import aembus
from aembus.cli.main import main
from aembus.control import ControlClient
from tests.support.fleet import KEYS, STEP_S, Fleet, fleet, flood
from tests.support.running import adds_up, statistics, until, workers

pytestmark = pytest.mark.e2e


def test_rolled_under_load(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New processes get every job once, in the order of its key, and each key's worker stays."""
    with fleet(bus_name, tmp_path, monkeypatch, count=2) as it:
        with flood(it) as sent:
            rolls = [it.roll(name) for name in ("w-1", "w-2", "w-1")]
            after = it.wait_for(sent[0] + 100)
        got = it.wait_for(sent[0])
        assert len(got) == sent[0]
        assert {attempt for *_, attempt in after} == {1}
        for key in range(KEYS):
            of_key = [(name, number) for name, _, number, _ in got if number % KEYS == key]
            assert [number for _, number in of_key] == list(range(key, sent[0], KEYS))
            assert len({name for name, _ in of_key}) == 1
        assert {roll["pid_before"] for roll in rolls} < {pid for _, pid, *_ in got}
        assert {w["pid"] for w in workers(bus_name)} == {rolls[1]["pid"], rolls[2]["pid"]}
        assert adds_up(statistics(bus_name)["totals"])


def test_another_policy_is_rolled_in(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New processes change their group's policy one by one; who joins it has to agree with them."""
    join = "bus.register('p', lambda event: None, name='e', group='g', policy={!r})"
    before: aembus.Policy = "least_loaded"
    policies: list[aembus.Policy] = ["round_robin", "least_loaded", "round_robin"]
    with fleet(bus_name, tmp_path, monkeypatch, count=2) as it:
        for policy in policies:
            it.code(at_start=join.format(policy))
            for name in ("w-1", "w-2"):
                it.roll(name)
                assert it.client.activate("p") == 1
            with pytest.raises(aembus.RegistrationError, match="one policy"):
                it.client.register("p", print, group="g", policy=before)
            before = policy
        until("all are done", lambda: not statistics(bus_name)["totals"]["queued"])
        assert adds_up(statistics(bus_name)["totals"])


@pytest.mark.parametrize(
    ("at_import", "at_start", "says"),
    [
        ("import nothing_of_this_name", "", "nothing_of_this_name"),
        ("os._exit(7)", "", "exit code 7"),
        ("", "raise ValueError('not today')", "not today"),
        ("", "os._exit(7)", "exit code 7"),
        ("", "bus.activate('answers', 'w-1', 0, -3, 1); os._exit(7)", "exit code 7"),
    ],
)
def test_new_code_that_fails_leaves_the_old_process_in_place(
    bus_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_import: str,
    at_start: str,
    says: str,
) -> None:
    """Wherever it fails: the old one goes on, loses nothing, and can be rolled later."""
    with fleet(bus_name, tmp_path, monkeypatch) as it:
        with flood(it) as sent:
            it.wait_for(1)
            (before,) = workers(bus_name)
            it.code(at_import, at_start)
            with pytest.raises(aembus.ControlError, match=says):
                it.roll()
            it.wait_for(sent[0] + 100)
            assert {pid for *_, pid, number, _ in it.got if number >= 0} == {before["pid"]}
            it.code()
            assert it.roll()["pid_before"] == before["pid"]
        until("all", lambda: len([n for *_, n, _ in it.got if n >= 0]) == sent[0])
        assert [n for *_, n, _ in it.got if n >= 0] == list(range(sent[0]))
        assert workers(bus_name)[0]["restarts"] == before["restarts"] == 0


def test_the_job_in_hand_is_finished_first(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes too long keeps the old process in place; else the new one goes on behind."""
    with fleet(bus_name, tmp_path, monkeypatch) as it:
        (before,) = workers(bus_name)
        it.client.activate("wait", str(tmp_path / "go"))
        it.client.activate("work", 1)
        it.wait_for(1)
        with pytest.raises(aembus.ControlError, match="in a handler"):
            it.roll(step_s=2.0)
        rolling = threading.Thread(target=it.roll)
        rolling.start()
        (tmp_path / "go").touch()
        rolling.join()
        got = it.wait_for(3)
        assert [(number, attempt) for *_, number, attempt in got] == [(-1, 1), (-2, 1), (1, 1)]
        assert got[0][1] == got[1][1] == before["pid"]


def test_held_jobs_are_waited_for(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that the old process holds is completed there, and comes to nobody again."""
    with fleet(bus_name, tmp_path, monkeypatch) as it:
        it.client.activate("hold", 1)
        it.wait_for(1)
        with pytest.raises(aembus.ControlError, match="holds jobs"):
            it.roll(step_s=2.0)
        (tmp_path / "complete").touch()
        it.roll()
        it.client.activate("work", 2)
        assert [(number, attempt) for *_, number, attempt in it.wait_for(2)] == [(1, 1), (2, 1)]
        assert statistics(bus_name)["totals"]["dead_lettered"] == 0


@pytest.mark.parametrize("then", ["", "raise ValueError('not today')"])
def test_the_old_process_dies_while_it_stands_still(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """The new one goes on in its place, or, if that fails, a replacement does."""
    with fleet(bus_name, tmp_path, monkeypatch) as it:
        (before,) = workers(bus_name)
        it.code("", f"os.kill({before['pid']}, signal.SIGKILL)\n{then}")
        if then:
            with pytest.raises(aembus.ControlError, match="not today"):
                it.roll()
        else:
            it.roll()
        it.code()
        it.client.activate("work", 1)
        (answer,) = it.wait_for(1)
        assert answer[2:] == (1, 1)
        assert answer[1] != before["pid"]


def test_a_bus_that_stops_in_the_middle_of_a_roll(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends both processes and leaves nothing."""
    with fleet(bus_name, tmp_path, monkeypatch) as it:
        it.code("", f"(here / 'there').touch(); time.sleep({STEP_S})")
        failed: list[aembus.AembusError] = []

        def roll() -> None:
            try:
                it.roll()
            except aembus.AembusError as error:
                failed.append(error)

        rolling = threading.Thread(target=roll)
        rolling.start()
        until("the new one starts", (tmp_path / "there").exists)
        it.control.request("stop")
        rolling.join()
        assert failed


def test_scaled_under_load(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers come and go; every job is handled once, and the sums agree."""
    with fleet(bus_name, tmp_path, monkeypatch) as it:
        with flood(it) as sent:
            assert it.scale(3)["workers"] == ["w-1", "w-2", "w-3"]
            until("all three are at work", lambda: len({name for name, *_ in it.got}) == 3)
            assert it.scale(1, "workers")["before"] == 3
            assert it.scale(2)["workers"] == ["w-1", "w-2"]
        it.wait_for(sent[0])
        assert sorted(number for *_, number, _ in it.got) == list(range(sent[0]))
        assert {attempt for *_, attempt in it.got} == {1}
        found = statistics(bus_name)
        assert [w["name"] for w in workers(bus_name)] == ["w-1", "w-2"]
        assert adds_up(found["totals"])
        assert not found["totals"]["dead_lettered"]


def test_a_worker_that_cannot_come_up_is_taken_away_again(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bus goes on with those that it had."""
    with fleet(bus_name, tmp_path, monkeypatch) as it:
        it.code("", "if bus.member_name == 'w-3': raise ValueError('three is too many')")
        with pytest.raises(aembus.ControlError, match=r"three is too many.*wanted=4, now=2"):
            it.scale(4)
        assert [w["name"] for w in workers(bus_name)] == ["w-1", "w-2"]


def test_more_workers_than_free_slots_are_not_begun(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count that cannot be reached is refused before the first worker is started."""
    with fleet(bus_name, tmp_path, monkeypatch) as it:
        with pytest.raises(aembus.ControlError, match=r"wanted=500, more=499, free slots=125"):
            it.scale(500)
        assert [w["name"] for w in workers(bus_name)] == ["w-1"]


def test_scaling_ends_with_who_has_asked(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hangs up, as by Ctrl-C, gets no more workers than were begun; they stay."""
    with fleet(bus_name, tmp_path, monkeypatch) as it:
        asker = ControlClient(bus_name)

        def ask() -> None:
            with contextlib.suppress(aembus.AembusError):
                asker.request("scale", kind="w", count=60, step_s=STEP_S, timeout_s=60.0)

        thread = threading.Thread(target=ask)
        thread.start()
        until("one has come", lambda: len(workers(bus_name)) > 1)
        asker.close()
        thread.join()
        assert it.scale(1)["before"] < 60  # which waits for the end of the other


def test_the_commands(
    bus_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`aembus upgrade` and `aembus scale` say what they did, or why they did not."""
    with fleet(bus_name, tmp_path, monkeypatch, count=2) as it:
        before = {w["name"]: w["pid"] for w in workers(bus_name)}
        assert main(["upgrade", "workers", "--bus", bus_name]) == 0
        out = capsys.readouterr().out.splitlines()
        assert [line.split()[:3] for line in out] == [
            [f"{name}:", "pid", str(pid)] for name, pid in before.items()
        ]
        it.code("import nothing_of_this_name")
        assert main(["upgrade", "workers", "w-2", "--bus", bus_name]) == 1
        said = capsys.readouterr()
        assert "goes on as it was" in said.out
        assert "nothing_of_this_name" in said.err
        assert main(["upgrade", "workers", "w-9", "--bus", bus_name]) == 1
        assert "workers=['w-1', 'w-2']" in capsys.readouterr().err
        it.code()
        assert main(["scale", "workers=1", "--bus", bus_name]) == 0
        assert "w: 1 worker, before: 2" in capsys.readouterr().out
        assert main(["scale", "v=1", "--bus", bus_name]) == 1
        assert "kinds=['w']" in capsys.readouterr().err


def test_a_worker_in_back_off_is_taken_away(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaling down does not wait for one that has no process."""
    with fleet(bus_name, tmp_path, monkeypatch, count=2) as it:
        it.code("", "os.kill(os.getpid(), signal.SIGKILL)")
        os.kill(next(w["pid"] for w in workers(bus_name) if w["name"] == "w-2"), signal.SIGKILL)
        until(
            "it is in back-off",
            lambda: [w["state"] for w in workers(bus_name) if w["name"] == "w-2"] == ["degraded"],
        )
        with pytest.raises(aembus.ControlError, match="not up"):
            it.roll("w-2")
        until("taken away", lambda: _taken_away(it))
        assert [w["name"] for w in workers(bus_name)] == ["w-1"]


def _taken_away(it: Fleet) -> bool:
    try:
        it.scale(1)
    except aembus.ControlError:  # it had just been started again
        return False
    return True
