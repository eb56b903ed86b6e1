from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.cli.main import main
from aembus.control import ControlClient
from tests.support.running import adds_up, statistics, until, workers

pytestmark = pytest.mark.e2e

KEYS = 16
STEP_S = 15.0
AHEAD_MAX = 100

# The code of a worker: what its entry point does first is in a file, read at each start.
CODE = """
import os, pathlib, signal, sys, time

here = pathlib.Path(__file__).parent
exec((here / "at import").read_text())

def main(bus):
    answers = bus.point("answers")
    held = []

    @bus.on("work", group="g", name="work")
    def work(event, number):
        answers.activate(bus.member_name, os.getpid(), number, event.job.attempt)

    @bus.on("hold", group="g", name="hold")
    def hold(event, number):
        event.job.hold()
        held.append(event.job)
        answers.activate(bus.member_name, os.getpid(), number, event.job.attempt)

    @bus.on("wait", group="g", name="wait")
    def wait(event, path):
        answers.activate(bus.member_name, os.getpid(), -1, event.job.attempt)
        while not pathlib.Path(path).exists():
            time.sleep(0.005)
        answers.activate(bus.member_name, os.getpid(), -2, event.job.attempt)

    def complete():
        while True:
            time.sleep(0.005)
            while held and (here / "complete").exists():
                held.pop(0).done()

    import threading
    threading.Thread(target=complete, daemon=True).start()
    exec((here / "at start").read_text(), {"bus": bus, **globals()})
"""


class Fleet:
    """A bus with workers whose code changes, and a client that they answer."""

    def __init__(self, bus: str, directory: Path, client: aembus.Bus) -> None:
        self.bus = bus
        self.directory = directory
        self.client = client
        self.got: list[tuple[str, int, int, int]] = []
        self.control = ControlClient(bus)
        client.register("answers", lambda event, *answer: self.got.append(answer))
        client.run_in_thread()

    def code(self, at_import: str = "", at_start: str = "") -> None:
        """Change what the next process does."""
        (self.directory / "at import").write_text(at_import)
        (self.directory / "at start").write_text(at_start)

    def roll(self, name: str = "w-1", step_s: float = STEP_S) -> dict[str, Any]:
        return self.control.request("roll", name=name, step_s=step_s, timeout_s=60.0)

    def scale(self, count: int, kind: str = "w") -> dict[str, Any]:
        return self.control.request("scale", kind=kind, count=count, step_s=STEP_S, timeout_s=60.0)

    def wait_for(self, count: int) -> list[tuple[str, int, int, int]]:
        until(f"{count} answers", lambda: len(self.got) >= count)
        return self.got


@contextmanager
def fleet(
    bus: str, directory: Path, monkeypatch: pytest.MonkeyPatch, count: int = 1
) -> Iterator[Fleet]:
    """Run a bus with workers of CODE, and a client that listens to them."""
    module = f"code_{bus.replace('-', '_')}"
    (directory / f"{module}.py").write_text(CODE)
    for name in ("at import", "at start"):
        (directory / name).write_text("")
    monkeypatch.syspath_prepend(directory)
    spec = aembus.WorkerSpec("w", f"{module}:main", count=count)
    with aembus.Supervisor(
        bus, workers=[spec], state_directory=directory / "state", log_level="CRITICAL"
    ):
        with aembus.connect(bus) as client:
            running = Fleet(bus, directory, client)
            try:
                yield running
            finally:
                running.control.close()


@contextmanager
def flood(fleet: Fleet) -> Iterator[list[int]]:
    """Send numbered jobs by key until the end of the block; yields the number of those sent."""
    over = threading.Event()
    sent = [0]

    def send() -> None:
        point = fleet.client.point("work")
        while not over.is_set():
            point.activate(sent[0], key=sent[0] % KEYS, timeout=20.0)
            sent[0] += 1
            while sent[0] - len(fleet.got) > AHEAD_MAX and not over.is_set():
                over.wait(0.001)  # else most of the time goes to millions of jobs

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()


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
