"""Servers that some transports need: started for the bench alone, and ended by it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

START_S_MAX: Final = 20.0
STOP_S_MAX: Final = 5.0


def version_of(program: str) -> str:
    """Return what ``program --version`` says."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return said.stdout.strip()


@contextmanager
def server(command: Sequence[str], log: Path, is_up: Callable[[], bool]) -> Iterator[None]:
    """Run a server for the length of the block.

    Args:
        command: what to run; it must stay in the foreground.
        log: a file for what it prints.
        is_up: says whether it answers.

    Raises: RuntimeError if it ends, or does not answer in time.
    """
    guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with log.open("wb") as out:
        # In a session of its own, where the terminal's Ctrl-C does not reach it.
        process = subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S_MAX
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().rpartition("\n")[2]
                raise RuntimeError(f"{command[0]} did not come up: {said}")
            time.sleep(0.02)  # another program's start: nothing else to wait for
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
