from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import aembus
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.running import adds_up, statistics, until, workers


def echo(bus: aembus.Bus) -> None:
    """Entry point: sends back what it gets, and dies when told to."""
    answers = bus.point("answers")

    @bus.on("work", group="g")
    def work(event: aembus.Event, number: int) -> None:
        assert event.job is not None
        answers.activate(bus.member_name, number, event.job.attempt)

    @bus.on("die", group="g")
    def die(event: aembus.Event, until_attempt: int) -> None:
        assert event.job is not None
        if event.job.attempt < until_attempt:
            os.kill(os.getpid(), signal.SIGKILL)
        answers.activate(bus.member_name, -1, event.job.attempt)

    @bus.on("die fast", group="g", redeliver=False)
    def die_fast(event: aembus.Event) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def hang(bus: aembus.Bus) -> None:
    """Entry point: a handler that never returns."""

    @bus.on("hang")
    def handler(event: aembus.Event) -> None:
        bus.activate("hanging")
        while True:
            time.sleep(60)


def die_at_boot(bus: aembus.Bus) -> None:
    """Entry point: ends its process before it returns."""
    os._exit(7)


def register_two_kinds(bus: aembus.Bus) -> None:
    """Entry point: the first event cannot be reached before the second exists."""
    bus.register("first", lambda event: None, name="first")
    with aembus.connect(bus.name) as other:
        assert other.activate("first") == 0
    bus.register("second", lambda event: None, name="second")


@contextmanager
def running(
    bus_name: str, directory: Path, function: str, count: int = 1
) -> Iterator[aembus.Supervisor]:
    """Run a bus with workers of one of the entry points above."""
    spec = aembus.WorkerSpec("w", f"tests.supervisor.test_workers:{function}", count=count)
    with aembus.Supervisor(bus_name, workers=[spec], state_directory=directory) as supervisor:
        yield supervisor


class Answers:
    """A client that collects what the workers send back."""

    def __init__(self, bus: aembus.Bus) -> None:
        self._bus = bus
        self.got: list[tuple[str, int, int]] = []
        bus.register("answers", lambda event, *answer: self.got.append(answer))

    def wait_for(self, count: int) -> list[tuple[str, int, int]]:
        until(f"{count} answers", lambda: self._bus.poll(0.05) * 0 or len(self.got) >= count)
        return self.got


def test_a_job_in_hand_comes_again(bus_name: str, tmp_path: Path) -> None:
    """The job that a dead worker had in hand is redelivered, with its attempt counted."""
    with running(bus_name, tmp_path, "echo"), aembus.connect(bus_name) as client:
        answers = Answers(client)
        client.activate("work", 1)
        client.activate("die", 3)
        client.activate("work", 2)
        assert answers.wait_for(3) == [("w-1", 1, 1), ("w-1", -1, 3), ("w-1", 2, 1)]
        (worker,) = workers(bus_name)
        assert worker["restarts"] == 2
        assert adds_up(worker["received"])
        assert worker["dead_lettered"] == 0


def test_a_job_that_kills_is_put_aside(bus_name: str, tmp_path: Path) -> None:
    """After three deaths a job becomes a dead letter, and the jobs behind it are delivered."""
    with running(bus_name, tmp_path, "echo"), aembus.connect(bus_name) as client:
        answers = Answers(client)
        client.activate("work", 1)
        client.activate("die", 99)
        client.activate("work", 2)
        assert answers.wait_for(2) == [("w-1", 1, 1), ("w-1", 2, 1)]
        (letter,) = DeadLetters(tmp_path).read()
        assert (letter["point"], letter["attempts"]) == ("die", 3)
        (worker,) = workers(bus_name)
        assert (worker["restarts"], worker["dead_lettered"]) == (3, 1)
        assert adds_up(worker["received"])


def test_redelivery_can_be_declined(bus_name: str, tmp_path: Path) -> None:
    """With redeliver=False one death is enough for the dead letters."""
    with running(bus_name, tmp_path, "echo"), aembus.connect(bus_name) as client:
        answers = Answers(client)
        client.activate("die fast")
        client.activate("work", 1)
        answers.wait_for(1)
        (letter,) = DeadLetters(tmp_path).read()
        assert letter["reason"] == "in hand when its worker died"


def test_queued_jobs_wait_for_the_replacement_and_keep_their_key(
    bus_name: str, tmp_path: Path
) -> None:
    """Slot, inbox and event ids stay: what was queued is delivered by the worker of that name."""
    with running(bus_name, tmp_path, "echo", count=3), aembus.connect(bus_name) as client:
        answers = Answers(client)
        keys = [f"k{n}" for n in range(30)]
        for number, key in enumerate(keys):
            client.activate("work", number, key=key)
        before = {number: name for name, number, _ in answers.wait_for(30)}
        slots = {w["name"]: w["slot"] for w in workers(bus_name)}
        victim = workers(bus_name)[1]["pid"]
        os.kill(victim, signal.SIGKILL)
        for number, key in enumerate(keys):
            client.activate("work", number, key=key)
        after = {number: name for name, number, _ in answers.wait_for(60)[30:]}
        assert after == before
        assert {w["name"]: w["slot"] for w in workers(bus_name)} == slots
        assert len(set(before.values())) == 3


def test_registrations_are_published_together(bus_name: str, tmp_path: Path) -> None:
    """Nobody reaches a worker's events before its entry point has returned."""
    with (
        running(bus_name, tmp_path, "register_two_kinds"),
        aembus.connect(bus_name) as client,
    ):
        assert client.activate("first") == client.activate("second") == 1


def test_a_worker_that_never_comes_up_ends_the_supervisor(bus_name: str, tmp_path: Path) -> None:
    """The start fails, names worker, entry point and reason, and leaves nothing."""
    with (
        pytest.raises(aembus.SupervisorError, match=r"w-1 could not start.*exit code 7.*die_at"),
        running(bus_name, tmp_path, "die_at_boot"),
    ):
        pass
    with (
        pytest.raises(aembus.SupervisorError, match=r"no such function.*nosuch"),
        running(bus_name, tmp_path, "nosuch"),
    ):
        pass


def test_a_hanging_worker_is_aborted(
    bus_name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A handler that does not return cannot hold up the end: SIGABRT dumps its stack."""
    with running(bus_name, tmp_path, "hang"), aembus.connect(bus_name) as client:
        seen: list[int] = []
        client.register("hanging", lambda event: seen.append(1))
        client.activate("hang")
        until("it hangs", lambda: client.poll(0.05) * 0 or seen)
        (process,) = [psutil.Process(w["pid"]) for w in workers(bus_name)]
        began = time.monotonic()
    assert time.monotonic() - began < 3.0
    assert not process.is_running()
    captured = capfd.readouterr().err
    assert "Fatal Python error: Aborted" in captured
    assert "in handler" in captured
    (letter,) = DeadLetters(tmp_path).read()
    assert letter["reason"] == "the bus was stopped"


LATE: str = """
import pathlib, time
here = pathlib.Path(__file__).parent
while (here / "wait").exists() and not (here / "go").exists():
    time.sleep(0.01)

def main(bus):
    bus.register("nothing", print)
"""


def test_a_worker_that_comes_up_while_the_bus_stops_is_told(
    bus_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A replacement that joins after the others were told to stop is not aborted."""
    (tmp_path / "late_worker.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)
    spec = aembus.WorkerSpec("w", "late_worker:main")
    with aembus.Supervisor(
        bus_name, workers=[spec], state_directory=tmp_path, stop_timeout_s=8.0
    ) as supervisor:
        (tmp_path / "wait").touch()
        os.kill(workers(bus_name)[0]["pid"], signal.SIGKILL)
        until("its replacement starts", lambda: workers(bus_name)[0]["restarts"] == 1)
        os.kill(supervisor.pid, signal.SIGTERM)
        (tmp_path / "go").touch()
    assert "Aborted" not in capfd.readouterr().err


def test_progress_keeps_back_off_away(bus_name: str, tmp_path: Path) -> None:
    """A worker that is killed again and again under load is replaced at once each time."""
    with running(bus_name, tmp_path, "echo"), aembus.connect(bus_name) as client:
        answers = Answers(client)
        for number in range(6):
            client.activate("work", number)
            answers.wait_for(number + 1)
            (worker,) = workers(bus_name)
            os.kill(worker["pid"], signal.SIGKILL)
            until("replacement", lambda: workers(bus_name)[0]["pid"] != worker["pid"], 2.0)  # noqa: B023
            until("it runs", lambda: workers(bus_name)[0]["state"] == "running", 2.0)
            assert workers(bus_name)[0]["restarts"] == number + 1
        assert statistics(bus_name)["totals"]["dead_lettered"] == 0
