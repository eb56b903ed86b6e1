"""Members killed, stopped and interrupted at every point of a job's way: see points/cases.py.

`points/` forks victims from a warm helper process, kills them with SIGKILL, and lets the others go
on.  Here every point whose neighbour leaves other shared memory is tried, and a share of the rest,
which leave the same; ``-m slow`` tries each.  A failure names the command that repeats it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.crash.points.sources import ROOT, SOURCES, copy_with_points, environment

STATES: Final = (("empty", "middle", "wrap"), ("one", "wrap-1", "full"))  # one half a processor
PRODUCERS: Final = ("put", "open", "fan-out", "open both", "half full")
CONSUMERS: Final = ("deliver", "boot")
SECONDS_MAX: Final = 3600


def sweep(bus_name: str, options: Sequence[str], lane: str, sources: Path = SOURCES) -> int:
    """Run a sweep on two processors; return how many cases there were."""
    began = time.monotonic()
    running = []
    for number, states in enumerate(STATES):
        command = ["sweep", "--bus", f"{bus_name}-{number}", "--states", *states, *options]
        running.append(start(command, lane, sources))
    said = [process.communicate(timeout=SECONDS_MAX)[0] for process in running]
    print(*said, f"took_s={time.monotonic() - began:.1f}", sep="\n")
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text
    return sum(int(cases) for cases in re.findall(r"cases=(\d+)", "".join(said)))


def start(options: list[str], lane: str, sources: Path = SOURCES) -> subprocess.Popen[str]:
    """Start a helper process under the copy of aembus that is to be tried."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.crash.points", *options],
        cwd=ROOT,
        env={**environment(sources), "AEMBUS_LANE": lane},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def points_in_c(tmp_path: Path) -> Path:
    """The sources with a lane in C that has its named points."""
    return copy_with_points(tmp_path)


def test_producers_of_the_plain_python_lane(bus_name: str) -> None:
    """Killed, stopped or interrupted at each bytecode that changes something, and at others."""
    options = ["--every", "400", "--faults", "kill", "stop", "interrupt", "--scenarios", *PRODUCERS]
    assert sweep(bus_name, options, "python") > 500


def test_consumers_of_the_plain_python_lane(bus_name: str) -> None:
    """Killed or stopped while they deliver, and while they take over from a dead one."""
    options = ["--every", "1000", "--faults", "kill", "stop", "--scenarios", *CONSUMERS]
    assert sweep(bus_name, options, "python") > 300


def test_replacements_are_killed_too(bus_name: str) -> None:
    """The second consumer dies as well, wherever the first has died."""
    options = ["--every", "100000", "--double", "5", "--scenarios", "deliver"]
    assert sweep(bus_name, options, "python") > 200


@pytest.mark.required_in_ci
def test_the_lane_in_c_at_its_named_points(bus_name: str, points_in_c: Path) -> None:
    """Producers, consumers and replacements are killed or stopped at all of them."""
    options = ["--layer", "named", "--faults", "kill", "stop", "--double", "4"]
    assert sweep(bus_name, options, "c", points_in_c) > 1000


@pytest.mark.required_in_ci
def test_the_python_code_around_the_lane_in_c(bus_name: str, points_in_c: Path) -> None:
    """The same as with the lane in plain Python, at fewer points."""
    options = ["--every", "2000", "--faults", "kill"]
    assert sweep(bus_name, options, "c", points_in_c) > 300


def test_the_registry_is_read_whole(bus_name: str) -> None:
    """A reader is stopped at each bytecode while others publish, a writer killed at each."""
    running = start(["registry", "--bus", bus_name], "python")
    said, _ = running.communicate(timeout=SECONDS_MAX)
    assert running.returncode == 0, said
    assert [int(cases) > 80 for cases in re.findall(r"cases=(\d+)", said)] == [True, True], said


def test_the_fence_is_one() -> None:
    """Of two processes that store and then load at once, one sees what the other has stored."""
    rounds = "600000"  # without a fence about 20 of these fail; on one processor none does
    command = [sys.executable, "-m", "tests.crash.points.fence", rounds]
    run = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["0"], f"both missed the other in {run.stdout} rounds"


@pytest.mark.slow
def test_every_bytecode_of_the_plain_python_lane(bus_name: str) -> None:
    """A real SIGKILL at each of them, and replacements at each that changes something."""
    sweep(bus_name, ["--double", "1000"], "python")


@pytest.mark.slow
def test_every_bytecode_around_the_lane_in_c(bus_name: str, points_in_c: Path) -> None:
    """The same with the lane in C, stopped and interrupted as well."""
    options = ["--double", "1000", "--all", "--faults", "kill", "stop", "interrupt"]
    sweep(bus_name, options, "c", points_in_c)
