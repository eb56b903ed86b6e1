from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.scene import SOURCES, Scene
from tests.crash.scene_base import TICK_S, Violation
from tests.crash.scene_view import names_by_kind
from tests.crash.storm import CAST, EXIT_INTERRUPTED, Storm, run, table

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

KILLS = 300
KILLS_BY_HAND = 10_000
HOUR_S = 3600.0


def test_random_kills(make_scene: Callable[..., Scene], seed: int) -> None:
    """Whoever is killed at whatever moment under load: nothing is lost, and all go on."""
    print(table(run(make_scene(**CAST), seed, KILLS)))


@pytest.mark.slow
def test_many_random_kills(make_scene: Callable[..., Scene], seed: int) -> None:
    """The same, often enough for what is rare."""
    print(table(run(make_scene(**CAST), seed, KILLS_BY_HAND, progress=True)))


@pytest.mark.slow
def test_an_hour_with_a_fault_a_second(make_scene: Callable[..., Scene], seed: int) -> None:
    """Faults for an hour: nothing adds up that should not."""
    storm = Storm(make_scene(**CAST), seed, pause_s=1.0)
    deadline = time.monotonic() + HOUR_S
    with storm.scene:
        storm.scene.settle()
        while time.monotonic() < deadline:
            storm.round(kills_max=60)
        print(table(storm.finish()))


@pytest.mark.parametrize("line", [0, 1], ids=["as it starts", "behind a round"])
def test_an_interrupted_storm_leaves_nothing(line: int) -> None:
    """Ctrl-C, at the start or later, removes the storm's processes and the names of its bus."""
    storm = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.storm", "--seconds", "60", "--seed", "1"],
        cwd=SOURCES, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with storm:
        assert storm.stderr is not None
        bus = f"storm-{storm.pid}"
        while not names_by_kind(bus):
            assert storm.poll() is None
            time.sleep(TICK_S)
        for _ in range(line):
            assert "kills" in storm.stderr.readline()
        storm.send_signal(signal.SIGINT)
        said = storm.stderr.read().splitlines()
    assert storm.returncode == EXIT_INTERRUPTED
    assert said[-1] == f"interrupted: bus {bus!r} and its processes are removed"
    assert names_by_kind(bus) == {}


def test_a_broken_promise_leaves_what_was_written(tmp_path: Path) -> None:
    """A storm that fails, here because nothing was sent, keeps logs and memory and says where."""
    storm = subprocess.run(
        [sys.executable, "-m", "tests.crash.storm", "--seconds", "0", "--seed", "1"],
        check=False, cwd=SOURCES, env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert storm.returncode == 1
    said = storm.stderr.splitlines()
    assert "too little was done" in said[0]
    [kept] = tmp_path.glob("aembus-storm-*")
    assert said[-1] == f"kept: {kept}"
    assert (kept / "stderr").exists()


def test_a_broken_promise_leaves_a_copy_of_the_memory(make_scene: Callable[..., Scene]) -> None:
    """What the members shared at that moment can be looked at afterwards."""
    with make_scene() as scene:
        with pytest.raises(Violation):
            scene.fail("for the test")
        copies = {path.name for path in (scene.directory / "segments").iterdir()}
        names = Path("/dev/shm").glob(f"aembus.{scene.bus}.*")
        assert copies == {path.name for path in names if path.is_file()}
