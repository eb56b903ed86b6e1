"""What the spawn storm runs in children: each attempt leaves a line where it begins and ends.

The lines are appended by one write each, so a kill leaves a whole line or none.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import aembus


def _note(folder: str, line: str) -> None:
    descriptor = os.open(Path(folder, "log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def lives(pid: int) -> bool:
    """Say whether a process runs user code still: it is there, and neither dead nor dying."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    exiting = 0x4  # PF_EXITING, linux/sched.h
    return fields[0] not in "ZX" and not int(fields[6]) & exiting


def work(event: aembus.Event, folder: str, number: int, pause_s: float, misdeed: str) -> int:
    """Begin, take a while, misbehave in the first attempt if told to, end."""
    job = event.job
    assert job is not None
    earlier = [] if job.attempt == 1 else Path(folder, "log").read_text().splitlines()
    for line in earlier:
        what, of, _, pid = line.split()
        if what == "begun" and int(of) == number and lives(int(pid)):
            _note(folder, f"overlap {number} {job.attempt} {pid}")
    _note(folder, f"begun {number} {job.attempt} {os.getpid()}")
    time.sleep(pause_s)
    if job.attempt == 1 and misdeed == "raise":
        raise ValueError(number)
    if job.attempt == 1 and misdeed == "exit":
        os._exit(3)
    _note(folder, f"ended {number} {job.attempt} {os.getpid()}")
    return number
