from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import aembus
from aembus.cli import buses
from tests.cli.support import AEMBUS, environment, run_program, running
from tests.support.running import until

APPLICATION = """
import sys

def main(bus):
    jobs = bus.counter("jobs")
    if sys.argv[1:]:
        print("arguments:", sys.argv[1:], flush=True)

    @bus.on("work", group="workers")
    def work(event, number):
        jobs.add()
        if number < 0:
            raise ValueError("negative")
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with an application in it, not installed anywhere."""
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "server.py").write_text(APPLICATION)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_from_start_to_end(directory: Path, bus_name: str, number: signal.Signals) -> None:
    """Ready in one line, then jobs, then a signal: a summary of what there was, exit code 0."""
    with running(
        directory,
        "shop.server:main",
        "--bus",
        bus_name,
        "--workers",
        "2",
        "--service",
        "timer",
        "--log-level",
        "ERROR",
    ) as run:
        assert run.ready_line == (
            f"bus {bus_name!r} runs, 2 workers, services: timer; "
            f"look at it: aembus stats --bus {bus_name}; stop it: Ctrl-C"
        )
        found = buses.find(bus_name)
        assert (found.state, found.pid) == (buses.RUNNING, run.pid)
        with aembus.connect(bus_name) as bus:
            for job in (1, 2, 3, -1):
                assert bus.activate("work", job) == 1
        before = time.monotonic()
        ended = run.end(number)
        assert time.monotonic() - before < 3
    assert ended.code == 0
    summary, counters, dead_letters, way = ended.out.splitlines()
    pattern = (
        rf"bus '{bus_name}' ran for \d+\.\d s: 3 jobs delivered, 1 failed, 1 dead-lettered, "
        "0 restarts"
    )
    assert re.fullmatch(pattern, summary)
    assert counters == "jobs 4"
    kept_in = directory / "state" / "aembus" / bus_name
    assert dead_letters == f"dead letters are kept in {kept_in}"
    assert way == f"look at them: aembus dead list --bus {bus_name}"
    assert kept_in.is_dir()
    assert buses.left_in_shared_memory(bus_name) == []


def test_names_messages_and_arguments_can_be_given(directory: Path, bus_name: str) -> None:
    """What follows -- is the workers' sys.argv[1:]; nothing is printed but what was asked for."""
    with running(
        directory, "shop.server:main", "--bus", bus_name, "--ready-message", "call me",
        "--state-directory", "letters", "--", "--port", "5080",
    ) as run:  # fmt: skip
        assert run.ready_line == "arguments: ['--port', '5080']"
        assert run.read_line() == "call me"
        [worker] = [m for m in buses.statistics(bus_name)["members"] if m["kind"] == "worker"]
        assert worker["name"] == "server-1"
        with aembus.connect(bus_name) as bus:
            bus.activate("work", -1)
        ended = run.end()
    assert ended.code == 0
    assert ended.out.splitlines()[-2] == "dead letters are kept in letters"
    assert ended.out.splitlines()[-1].endswith(" --state-directory letters")
    assert (directory / "letters" / "dead-letters").is_file()


@pytest.mark.parametrize("wrong", ["soon", "-1", "nan", "inf"])
def test_a_wrong_time_to_spin_ends_the_start(
    wrong: str, directory: Path, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line with the variable, and with no worker that is started again and again."""
    monkeypatch.setenv("AEMBUS_SPIN_US", wrong)
    ended = run_program(directory, [*AEMBUS, "run", "shop.server:main", "--bus", bus_name])
    assert ended.code == 1
    assert f"AEMBUS_SPIN_US={wrong!r}" in ended.error_line


def test_the_bus_is_named_after_the_module(tmp_path: Path, bus_name: str) -> None:
    """Its last part, made valid."""
    module = bus_name.replace("-", "_")
    (tmp_path / f"{module}.py").write_text("def main(bus): pass")
    with running(tmp_path, f"{module}:main") as run:
        assert run.ready_line.startswith(f"bus {module!r} runs, 1 worker, services: none; ")
        ended = run.end()
    assert ended.code == 0
    [summary] = ended.out.splitlines()
    assert summary.endswith(": 0 jobs delivered, 0 failed, 0 dead-lettered, 0 restarts")
    assert ended.err == ""


def test_who_has_left_is_counted(directory: Path, bus_name: str) -> None:
    """What a worker that is taken away, and a client, did stays in the figures."""
    with running(directory, "shop.server:main", "--bus", bus_name, "--workers", "2") as run:
        with aembus.connect(bus_name) as bus:
            for number in (*range(10), -1, -1):
                bus.activate("work", number)
            bus.register("nothing fits", lambda event: None)
            bus.activate("nothing fits", 1)
            bus.poll()
        until("all are done", lambda: buses.statistics(bus_name)["totals"]["delivered"] == 10)
        until("all have failed", lambda: buses.statistics(bus_name)["totals"]["failed"] == 3)
        scaled = run_program(directory, [*AEMBUS, "scale", "workers=1", "--bus", bus_name])
        assert scaled.code == 0
        assert buses.statistics(bus_name)["counters"] == {"jobs": 12}
        ended = run.end()
    summary, counters, *_ = ended.out.splitlines()
    assert summary.endswith(": 10 jobs delivered, 3 failed, 3 dead-lettered, 0 restarts")
    assert counters == "jobs 12"


def test_a_worker_that_is_killed_is_replaced_and_counted(directory: Path, bus_name: str) -> None:
    """The summary tells of it."""
    with running(directory, "shop.server:main", "--bus", bus_name) as run:
        [worker] = [m for m in buses.statistics(bus_name)["members"] if m["kind"] == "worker"]
        os.kill(worker["pid"], signal.SIGKILL)
        with aembus.connect(bus_name) as bus:
            deadline = time.monotonic() + 10
            bus.activate("work", 1)  # waits in the worker's inbox for the replacement
            while not (totals := buses.statistics(bus_name)["totals"])["delivered"]:
                assert time.monotonic() < deadline, totals
                time.sleep(0.01)  # between two looks at another process
        ended = run.end()
    assert ended.out.splitlines()[0].endswith(
        ": 1 job delivered, 0 failed, 0 dead-lettered, 1 restart"
    )
    assert "Traceback" not in ended.err


WAITING = """
import pathlib, time

def main(bus):
    while not pathlib.Path("go on").exists():
        time.sleep(0.005)
"""


def test_an_entry_point_that_does_not_return_is_named(tmp_path: Path, bus_name: str) -> None:
    """Who waits for a start is told which worker that waits for; when it comes up, all is well."""
    (tmp_path / "waiting.py").write_text(WAITING)
    code = (
        "import sys; from aembus.cli.main import main; from aembus.supervisor import workers;"
        f"workers.COME_UP_S = 0.1; sys.exit(main(['run', 'waiting:main', '--bus', {bus_name!r}]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stdout is not None
        said = process.stderr.readline()
        assert re.search(r"worker waiting-1 \(pid \d+\) has not come up .* waiting:main must", said)
        (tmp_path / "go on").touch()
        assert "1 worker" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_job_that_kills_is_told_at_its_end(tmp_path: Path, bus_name: str) -> None:
    """Who reads the log of its third death finds the point that the job was for."""
    (tmp_path / "deadly.py").write_text(
        "import os\n\ndef main(bus):\n"
        "    bus.register('boom', lambda event: os.kill(os.getpid(), 9))\n"
    )
    with running(tmp_path, "deadly:main", "--bus", bus_name) as run:
        with aembus.connect(bus_name) as bus:
            assert bus.activate("boom") == 1
        until(
            "it is a dead letter",
            lambda: buses.statistics(bus_name)["totals"]["dead_lettered"] == 1,
        )
        ended = run.end()
    assert "dead letter now: in hand at 3 deaths, worker=deadly-1, point='boom'" in ended.err
