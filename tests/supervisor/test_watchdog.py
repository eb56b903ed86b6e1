from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import aembus
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.running import program, until, workers

SLOW_S = 0.5


def slow(bus: aembus.Bus) -> None:
    """Entry point: handlers that hang, or are slow, or last longer together than one may."""
    answers = bus.point("answers")

    @bus.on("hang", group="g")
    def hang(event: aembus.Event, until_attempt: int) -> None:
        assert event.job is not None
        if event.job.attempt < until_attempt:
            hang_here()
        answers.activate("hang", event.job.attempt)

    @bus.on("deaf", group="g")
    def deaf(event: aembus.Event) -> None:
        assert event.job is not None
        if event.job.attempt == 1:
            signal.signal(signal.SIGABRT, signal.SIG_IGN)
            hang_here()
        answers.activate("deaf", event.job.attempt)

    @bus.on("nap", group="g")
    def nap(event: aembus.Event) -> None:
        assert event.job is not None
        time.sleep(SLOW_S / 5)
        answers.activate("nap", event.job.attempt)


def hang_here() -> None:
    """Never return."""
    while True:
        time.sleep(60)


def spec(timeout_s: float | None) -> aembus.WorkerSpec:
    """A worker whose handlers may take so long."""
    return aembus.WorkerSpec(
        "w", "tests.supervisor.test_watchdog:slow", handler_timeout_s=timeout_s
    )


class Answers:
    """A client that collects what the worker sends back."""

    def __init__(self, bus: aembus.Bus) -> None:
        self._bus = bus
        self.got: list[tuple[str, int]] = []
        bus.register("answers", lambda event, *answer: self.got.append(answer))

    def wait_for(self, count: int) -> list[tuple[str, int]]:
        until(f"{count} answers", lambda: self._bus.poll(0.05) * 0 or len(self.got) >= count)
        return self.got


def test_a_hanging_handler_is_ended_with_its_stack_dumped(
    bus_name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGABRT, a dump, a replacement; the job counts a death, the next ones are handled."""
    with (
        aembus.Supervisor(bus_name, workers=[spec(SLOW_S)], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        answers = Answers(client)
        client.activate("hang", 2)
        client.activate("nap")
        assert answers.wait_for(2) == [("hang", 2), ("nap", 1)]
        client.activate("hang", 99)
        client.activate("nap")
        assert answers.wait_for(3)[2] == ("nap", 1)
        (letter,) = DeadLetters(tmp_path).read()
        assert (letter["point"], letter["attempts"]) == ("hang", 3)
        (worker,) = workers(bus_name)
        assert worker["restarts"] == 4
    said = capfd.readouterr().err
    assert "hang_here" in said  # the stack
    assert "point='hang'" in said


def test_who_does_not_end_by_sigabrt_is_killed(bus_name: str, tmp_path: Path) -> None:
    """Two seconds later, with SIGKILL."""
    with (
        aembus.Supervisor(bus_name, workers=[spec(SLOW_S)], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        answers = Answers(client)
        client.activate("deaf")
        assert answers.wait_for(1) == [("deaf", 2)]


def test_many_short_jobs_are_no_long_one(bus_name: str, tmp_path: Path) -> None:
    """Each handler has the whole time, however many queue; and an idle worker is left alone."""
    with (
        aembus.Supervisor(
            bus_name, workers=[spec(None)], state_directory=tmp_path, handler_timeout_s=SLOW_S
        ),
        aembus.connect(bus_name) as client,
    ):
        answers = Answers(client)
        for _ in range(12):
            client.activate("nap")
        assert answers.wait_for(12) == [("nap", 1)] * 12
        (worker,) = workers(bus_name)
        assert worker["restarts"] == 0


def test_without_a_timeout_a_stopped_worker_is_not_dead(bus_name: str, tmp_path: Path) -> None:
    """A worker that was stopped, in the middle of a job too, goes on where it was."""
    with (
        aembus.Supervisor(bus_name, workers=[spec(None)], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        answers = Answers(client)
        (before,) = workers(bus_name)
        client.activate("nap")
        os.kill(before["pid"], signal.SIGSTOP)
        until("it stopped", lambda: psutil.Process(before["pid"]).status() == "stopped")
        client.activate("nap")
        assert not client.poll(3 * SLOW_S)
        os.kill(before["pid"], signal.SIGCONT)
        assert answers.wait_for(2) == [("nap", 1)] * 2
        (now,) = workers(bus_name)
        assert (now["pid"], now["restarts"]) == (before["pid"], 0)


def test_the_command_line_has_the_option(bus_name: str, tmp_path: Path) -> None:
    """`aembus run --handler-timeout` is handed on."""
    command = [sys.executable, "-m", "aembus", "run", "tests.supervisor.test_watchdog:slow"]
    command += ["--bus", bus_name, "--handler-timeout", str(SLOW_S)]
    command += ["--state-directory", str(tmp_path), "--ready-message", "it is ready"]
    with program(command) as run:
        run.read_until("it is ready")
        with aembus.connect(bus_name) as client:
            answers = Answers(client)
            client.activate("hang", 2)
            assert answers.wait_for(1) == [("hang", 2)]
        assert run.end() == 0
    assert "hang_here" in run.output


@pytest.mark.parametrize("value", [0.0, -1.0, 0.05, float("nan")])
def test_a_time_that_makes_no_sense_is_refused(value: float) -> None:
    """With the value, and the way to have none."""
    with pytest.raises(aembus.SupervisorError, match="None for no limit"):
        aembus.Supervisor("x", handler_timeout_s=value)
    with pytest.raises(aembus.SupervisorError, match="None for no limit"):
        spec(value)


def test_help_names_it() -> None:
    """With what it does."""
    run = subprocess.run(
        [sys.executable, "-m", "aembus", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--handler-timeout" in run.stdout
