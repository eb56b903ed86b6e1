from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import aembus
from aembus.shm.lanes import VARIABLE
from tests.support.running import ROOT

# Makes every Python process with this folder in its path one where the lane in C was not built.
NO_C_LANE = 'import sys; sys.modules["aembus.shm._lane"] = None'


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without the lane in C that asks for it."""
    (tmp_path / "sitecustomize.py").write_text(NO_C_LANE)
    return {**os.environ, VARIABLE: "c", "PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize(
    "words", [["run", "tests.cli.application:main"], ["stats", "--bus", "x"], ["doctor"]]
)
def test_a_lane_that_is_not_there_is_one_clear_line(
    environment: dict[str, str], words: list[str], bus_name: str
) -> None:
    """From every command that needs it, without a traceback."""
    if words[0] == "run":
        words = [*words, "--bus", bus_name]
    run = subprocess.run(
        [sys.executable, "-m", "aembus", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert run.returncode == 1
    said = run.stdout + run.stderr
    assert "Traceback" not in said
    if words[0] != "stats":  # which needs none, and says that there is no such bus
        assert "the lane in C was not built" in said


def test_the_supervisors_child_hands_the_line_on(
    bus_name: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """`with Supervisor(...)` raises it, and nothing is written to the terminal."""
    for name in (VARIABLE, "PYTHONPATH"):
        monkeypatch.setenv(name, environment[name])
    with pytest.raises(aembus.OpenError, match="was not built"), aembus.Supervisor(bus_name):
        pass
    assert "Traceback" not in capfd.readouterr().err


def test_joining_says_it_too(environment: dict[str, str]) -> None:
    """A program that imports aembus gets the error where it connects."""
    run = subprocess.run(
        [sys.executable, "-c", "import aembus; aembus.connect('x')"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert "OpenError: the lane in C was not built" in run.stderr
