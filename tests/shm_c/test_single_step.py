"""A producer may be killed at every single machine instruction of what writes a job in C."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from aembus.shm import lane as reference
from tests.support import c_producer
from tests.support.c_lane import ROOT, compile_c, lane_in_c

lane_c = lane_in_c()

pytestmark = pytest.mark.required_in_ci

KILLS: Final = 40
NOT_PERMITTED: Final = 77
STEPS_MIN: Final = 100  # fewer instructions cannot be a job


@pytest.fixture(scope="module")
def stepper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that runs another one step by step."""
    if platform.machine() != "x86_64":
        pytest.skip(f"single_step.c is for x86-64, machine={platform.machine()}")
    source = Path(__file__).parent / "single_step.c"
    return compile_c(tmp_path_factory.mktemp("stepper") / "single_step", [source], "-O2")


class Call(NamedTuple):
    """One call: of which function, in how many steps, and full fences behind its last store."""

    function: int
    steps: int
    fences: int


class Run:
    """A producer run step by step, with its memory's states kept, or killed in the middle.

    Args:
        kill: after how many instructions of which call; both from 1.
    """

    def __init__(self, stepper: Path, directory: Path, kill: tuple[int, int] | None = None) -> None:
        self.file = directory / "lanes"
        self.file.write_bytes(bytes(c_producer.SIZE))
        self._snapshots = directory / "snapshots"
        how = [str(self._snapshots)] if kill is None else [str(number) for number in kill]
        program = [sys.executable, "-m", "tests.support.c_producer", str(self.file)]
        done = subprocess.run(
            [str(stepper), str(self.file), *how, *program],
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode == NOT_PERMITTED:
            pytest.skip("a process may not trace another one here (ptrace)")
        assert done.returncode == 0, done.stderr
        self.calls = [Call._make(map(int, line.split())) for line in done.stdout.splitlines()]

    def states(self) -> Iterator[tuple[tuple[int, int], bytes]]:
        """Yield each state that the memory was in, with the call and the step that led to it."""
        data = self._snapshots.read_bytes()
        size = 16 + c_producer.SIZE
        assert len(data) % size == 0
        for at in range(0, len(data), size):
            call, step = struct.unpack_from("=QQ", data, at)
            yield (call, step), data[at + 16 : at + size]


@pytest.fixture(scope="module")
def run(stepper: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run, step by step."""
    return Run(stepper, tmp_path_factory.mktemp("run"))


def test_after_each_instruction_every_job_is_whole_or_not_there(run: Run) -> None:
    """Both lanes are followed by either reader, and by a new producer, in each state of memory.

    Shared memory is all that a killed process leaves: what is there after an instruction is what
    a kill at that instruction leaves.
    """
    assert sum(call.steps for call in run.calls) > STEPS_MIN * len(c_producer.ACTS)
    seen: Counter[tuple[bool, ...]] = Counter()
    for place, state in run.states():
        for module in (reference, lane_c):
            memory = memoryview(bytearray(state))
            try:
                happened = c_producer.check(memory, module)
            except Exception as error:
                raise AssertionError(f"killed at {place} (call, instruction)") from error
        seen[happened] += 1
    # In every act there are states before it, between its two lanes, and after it.
    assert set(seen) == {(False, False), (True, False), (True, True)}
    assert all(count >= len(c_producer.ACTS) for count in seen.values()), seen
    assert sum(seen.values()) > 10 * len(c_producer.ACTS)


def test_a_fence_stands_behind_what_is_published(run: Run) -> None:
    """Else the look whether somebody sleeps might come before the store of `tail`, in effect."""
    published = [call for call in run.calls if call.function == c_producer.PUBLISH]
    assert len(published) == c_producer.ACTS.count("publish")
    assert all(call.fences for call in published), published


def test_killed_producers_leave_whole_jobs(stepper: Path, run: Run, tmp_path: Path) -> None:
    """SIGKILL at instructions from the first one to the last, and a look at the very memory."""
    steps = [call.steps for call in run.calls]
    total = sum(steps)

    def kill(number: int) -> None:
        call, step = 1, 1 + number * (total - 1) // (KILLS - 1)
        while step > steps[call - 1]:
            step -= steps[call - 1]
            call += 1
        directory = tmp_path / str(number)
        directory.mkdir()
        killed = Run(stepper, directory, (call, step))
        memory = memoryview(bytearray(killed.file.read_bytes()))
        c_producer.check(memory, (reference, lane_c)[number % 2])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kill, range(KILLS)))
