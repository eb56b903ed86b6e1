"""Members of a bus whose lanes are chosen process by process: workers, and clients that ask them.

``python -m tests.support.c_members BUS CLIENT JOBS FATAL`` sends jobs and prints, as JSON, what
came back: each answer's key, number, the lane in use at the worker, and the attempt.  A worker that
gets job number FATAL (from 0; -1: none does) for the first time kills itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

import aembus
from aembus.shm.lanes import IMPLEMENTATION, VARIABLE

KEYS: Final = 16
TIMERS: Final = 100
SECONDS_MAX: Final = 40.0

# For every Python process that has the directory of this file in its path: a worker takes the lane
# that the next file in its folder `lanes` is called after, and the file with it.
SITECUSTOMIZE: Final = f"""
import os, pathlib, sys
if "aembus.worker" in sys.orig_argv:
    for file in sorted((pathlib.Path(__file__).parent / "lanes").iterdir()):
        try:
            file.unlink()
        except FileNotFoundError:
            continue
        os.environ[{VARIABLE!r}] = file.suffix[1:]
        break
    else:
        raise RuntimeError("one worker too many")
"""


def choose_lanes(directory: Path, *lanes: str) -> None:
    """Make the next workers use these lanes; `directory` must be in their PYTHONPATH."""
    folder = directory / "lanes"
    folder.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(SITECUSTOMIZE)
    for number, lane in enumerate(lanes):
        (folder / f"{time.monotonic_ns()}-{number}.{lane}").touch()


def worker(bus: aembus.Bus) -> None:
    """Entry point of a worker: answers every job, unless it is a fatal one."""

    @bus.on("work", group="workers")
    def work(event: aembus.Event, client: str, key: int, number: int, fatal: bool) -> None:
        assert event.job is not None
        attempt = event.job.attempt
        if fatal and attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        bus.activate(f"answers.{client}", key, number, IMPLEMENTATION, attempt, timeout=SECONDS_MAX)


def ask(bus_name: str, client: str, jobs: int, fatal: int) -> dict[str, object]:
    """Send jobs, and return what came back."""
    answers: list[tuple[object, ...]] = []
    timers: list[int] = []
    with aembus.connect(bus_name) as bus:
        bus.register(f"answers.{client}", lambda event, *answer: answers.append(answer))
        timer = bus.service("timer")
        for number in range(TIMERS):
            timer.after(0.01, lambda event, number: timers.append(number), number)
        point = bus.point("work")
        deadline = time.monotonic() + SECONDS_MAX
        for number in range(jobs):
            key = number % KEYS
            data = (client, key, number, number == fatal)
            while not point.try_activate(*data, key=f"{client} {key}"):
                bus.poll(0.01)
                assert time.monotonic() < deadline, f"no room for job {number}"
            if number % 100 == 0:
                bus.poll(0)
        while len(answers) < jobs or len(timers) < TIMERS:
            bus.poll(0.01)
            assert time.monotonic() < deadline, (len(answers), len(timers))
    return {"lane": IMPLEMENTATION, "answers": answers, "timers": sorted(timers)}


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
