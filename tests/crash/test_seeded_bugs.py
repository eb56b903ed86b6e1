"""The harness finds what it is there for: each seeded bug is noticed, and an unbroken copy passes.

The bugs are in seeded.py.  Each is put into a copy of the project; the same commands are given that
copy and an unbroken one, side by side.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash.points.sources import ROOT, build_points, copy_sources, environment
from tests.crash.seeded import BUGS
from tests.crash.seeding import Bug, BugDoesNotFit, Edit, Question

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

SECONDS_MAX = 60.0
NOT_A_VIOLATION = re.compile(r"\b(ImportError|ModuleNotFoundError|SyntaxError|NameError)\b")
QUESTIONS = [
    pytest.param(bug, question, id=f"{bug.name}-{number}")
    for bug in BUGS
    for number, question in enumerate(bug.asked, 1)
]


class Answer(NamedTuple):
    """What a command came to."""

    code: int
    text: str
    seconds: float


@contextmanager
def running(
    question: Question, sources: Path, bus_name: str, directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of the harness on a copy of the sources; end all of it that still runs."""
    directory.mkdir()
    with (directory / "said").open("wb") as said:
        process = subprocess.Popen(
            question.command(bus_name, directory / "temporary"),
            cwd=ROOT,
            env={**environment(sources), "AEMBUS_LANE": question.lane},
            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(
    question: Question, copies: dict[str, Path], bus_name: str, tmp_path: Path
) -> dict[str, Answer]:
    """Ask each copy of the sources, both at the same time."""
    began = time.monotonic()
    (first, sources), (second, others) = copies.items()
    with (
        running(question, sources, f"{bus_name}-{first}", tmp_path / f"ask-{first}") as one,
        running(question, others, f"{bus_name}-{second}", tmp_path / f"ask-{second}") as other,
    ):
        found = {}
        for name, process in ((first, one), (second, other)):
            code = process.wait(max(0.0, began + SECONDS_MAX - time.monotonic()))
            text = (tmp_path / f"ask-{name}" / "said").read_text(errors="replace")
            found[name] = Answer(code, text, time.monotonic() - began)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken copy of the sources, for all tests."""
    return copy_sources(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_in_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken copy with the lane in C."""
    copy = copy_sources(tmp_path_factory.mktemp("whole-in-c"))
    build_points(copy)
    return copy


@pytest.mark.parametrize(("bug", "question"), QUESTIONS)
def test_a_seeded_bug_is_found(
    bug: Bug, question: Question, bus_name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Who is asked names the promise that is broken; without the bug it is content."""
    seeded = copy_sources(tmp_path / "seeded")
    bug.seed(seeded)
    if question.lane == "c":
        build_points(seeded)
    unbroken = request.getfixturevalue("whole_in_c" if question.lane == "c" else "whole")
    found = answers(question, {"broken": seeded, "whole": unbroken}, bus_name, tmp_path)
    broken, control = found["broken"], found["whole"]
    print(f"{bug.name}: broken {broken.seconds:.1f} s, control {control.seconds:.1f} s")
    assert control.code == 0, f"the control fails:\n{control.text}"
    if "skipped" in control.text:
        pytest.skip(f"the control was skipped:\n{control.text}")
    assert broken.code not in (0, -signal.SIGKILL), f"not found: {bug.breaks}\n{broken.text}"
    assert not NOT_A_VIOLATION.search(broken.text), broken.text
    assert question.violation in broken.text, broken.text


def test_a_bug_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """When the sources change a bug must be written anew: it is never silently left out."""
    (tmp_path / "file").write_text("here, and here")
    for old in ("there", "here"):
        bug = Bug("a bug", "nothing", (Edit("file", old, "new"),), ())
        with pytest.raises(BugDoesNotFit, match="does not fit the sources any more"):
            bug.seed(tmp_path)
    assert (tmp_path / "file").read_text() == "here, and here"
