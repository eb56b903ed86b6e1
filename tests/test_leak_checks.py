"""The checks in conftest.py find what they are there to find."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import settled

ROOT = Path(__file__).parent.parent

# Each test leaves one thing; `kept` holds it until the end of that run, which ends it.
LEAKS = """
import atexit, multiprocessing, os, pathlib, subprocess, threading
import pytest

kept = []


def test_nothing(bus_name, free_port, capfd):
    subprocess.run(["true"], check=True)
    with open("/dev/zero"):
        multiprocessing.get_context("spawn").Lock()  # starts the resource tracker, which is allowed


def test_process():
    kept.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))


def test_orphan():
    read_end, write_end = os.pipe()
    subprocess.run(["sh", "-c", "exec 3<&0; cat <&3 &"], stdin=read_end, check=True)
    os.close(read_end)
    kept.append(write_end)


def test_thread():
    threading.Thread(target=threading.Event().wait, name="kept-thread", daemon=True).start()


def test_descriptor():
    kept.append(open("/dev/zero"))


def test_name(bus_name):
    path = pathlib.Path(f"/dev/shm/sem.aembus.{bus_name}.0.kept")
    path.touch()
    atexit.register(path.unlink)


@pytest.mark.required_in_ci
def test_required():
    pytest.skip("no such program")


def test_not_required():
    pytest.skip("no such program")
"""
PROMISED = [
    r"^PASSED .*::test_nothing$",
    r"::test_process left behind:\n  descriptor \d+: pipe:\S+\n  process \d+: cat\n",
    r"::test_orphan left behind:\n  descriptor \d+: pipe:\S+\n  process \d+: cat\n",
    r"::test_thread left behind:\n  thread \d+: kept-thread, daemon=True\n",
    r"::test_descriptor left behind:\n  descriptor \d+: /dev/zero\n",
    r"::test_name left behind:\n  name /dev/shm/sem\.aembus\.t\d+-2\.0\.kept\n",
    r"^FAILED .*::test_required - skipped, but required in CI: Skipped: no such program$",
    r"^SKIPPED \[1\] .*: no such program$",
    r" 1 failed, 6 passed, 1 skipped, 5 errors in ",
]


def test_whatever_a_test_leaves_behind_is_an_error_that_names_it(tmp_path: Path) -> None:
    """So for each kind of thing; and a required test that is skipped in CI is a failure there."""
    file = tmp_path / "test_leaks.py"
    file.write_text(LEAKS)
    command = [
        *(sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider"),
        *("-p", "tests.conftest", "-o", "leak_grace_s=0.1"),
        *("-c", str(ROOT / "pyproject.toml"), str(file)),
    ]
    environment = os.environ | {"AEMBUS_CI": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    print(run.stdout, run.stderr)
    assert [p for p in PROMISED if not re.search(p, run.stdout, re.MULTILINE)] == []


def test_what_is_just_ending_is_given_time() -> None:
    """Only what is still there at the end of the grace is reported."""
    answers = iter([["a", "b"], ["b"], []])
    assert settled(lambda: next(answers), grace_s=60) == []
    assert settled(lambda: ["c"], grace_s=0) == ["c"]
