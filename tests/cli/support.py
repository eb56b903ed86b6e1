"""The command line as a program: run to its end, or running in the background of a test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TIMEOUT_S: Final = 30.0
AEMBUS: Final = (sys.executable, "-m", "aembus")


@dataclass(frozen=True)
class Ended:
    """What a program that has ended gave out."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The last line on standard error."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


def environment(directory: Path) -> dict[str, str]:
    """Return the environment for a program that keeps its state below `directory`."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(directory / "state"),
        "COLUMNS": "100",
    }


def run_program(directory: Path, command: Sequence[str]) -> Ended:
    """Run a program in `directory` until it ends by itself."""
    done = subprocess.run(
        command, cwd=directory, env=environment(directory), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def aembus(directory: Path, *arguments: str) -> Ended:
    """Run ``aembus`` in `directory` until it ends by itself."""
    return run_program(directory, [*AEMBUS, *arguments])


class Running:
    """An ``aembus run`` in the background."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.ready_line = process.stdout.readline().rstrip("\n")

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self._process.pid

    def read_line(self) -> str:
        """Return the next line of standard output."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def end(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Send a signal and return what came of it."""
        self._process.send_signal(number)
        out, err = self._process.communicate(timeout=TIMEOUT_S)
        return Ended(self._process.returncode, out, err)


@contextlib.contextmanager
def running(directory: Path, *arguments: str) -> Iterator[Running]:
    """Have ``aembus run`` with these arguments in the background, from its ready line on."""
    process = subprocess.Popen(
        [*AEMBUS, "run", *arguments], cwd=directory, env=environment(directory),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # A start that hangs would hang the test in `readline`.
    watchdog = threading.Timer(TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        with process:
            try:
                yield Running(process)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.communicate()
    finally:
        watchdog.cancel()
        watchdog.join()
