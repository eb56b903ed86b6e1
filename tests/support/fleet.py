"""A bus with workers whose code changes, for the tests of rolling and scaling."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.control import ControlClient
from tests.support.running import until

KEYS = 16
STEP_S = 15.0
AHEAD_MAX = 100

# The code of a worker: what its entry point does first is in a file, read at each start.
CODE = """
import os, pathlib, signal, sys, time

here = pathlib.Path(__file__).parent
exec((here / "at import").read_text())

def main(bus):
    answers = bus.point("answers")
    held = []

    @bus.on("work", group="g", name="work")
    def work(event, number):
        answers.activate(bus.member_name, os.getpid(), number, event.job.attempt)

    @bus.on("hold", group="g", name="hold")
    def hold(event, number):
        event.job.hold()
        held.append(event.job)
        answers.activate(bus.member_name, os.getpid(), number, event.job.attempt)

    @bus.on("wait", group="g", name="wait")
    def wait(event, path):
        answers.activate(bus.member_name, os.getpid(), -1, event.job.attempt)
        while not pathlib.Path(path).exists():
            time.sleep(0.005)
        answers.activate(bus.member_name, os.getpid(), -2, event.job.attempt)

    def complete():
        while True:
            time.sleep(0.005)
            while held and (here / "complete").exists():
                held.pop(0).done()

    import threading
    threading.Thread(target=complete, daemon=True).start()
    exec((here / "at start").read_text(), {"bus": bus, **globals()})
"""


class Fleet:
    """A bus with workers whose code changes, and a client that they answer."""

    def __init__(self, bus: str, directory: Path, client: aembus.Bus) -> None:
        self.bus = bus
        self.directory = directory
        self.client = client
        self.got: list[tuple[str, int, int, int]] = []
        self.control = ControlClient(bus)
        client.register("answers", lambda event, *answer: self.got.append(answer))
        client.run_in_thread()

    def code(self, at_import: str = "", at_start: str = "") -> None:
        """Change what the next process does."""
        (self.directory / "at import").write_text(at_import)
        (self.directory / "at start").write_text(at_start)

    def roll(self, name: str = "w-1", step_s: float = STEP_S) -> dict[str, Any]:
        return self.control.request("roll", name=name, step_s=step_s, timeout_s=60.0)

    def scale(self, count: int, kind: str = "w") -> dict[str, Any]:
        return self.control.request("scale", kind=kind, count=count, step_s=STEP_S, timeout_s=60.0)

    def wait_for(self, count: int) -> list[tuple[str, int, int, int]]:
        until(f"{count} answers", lambda: len(self.got) >= count)
        return self.got


@contextmanager
def fleet(
    bus: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int = 1,
    services: Sequence[str] = (),
) -> Iterator[Fleet]:
    """Run a bus with workers of CODE, and a client that listens to them."""
    module = f"code_{bus.replace('-', '_')}"
    (directory / f"{module}.py").write_text(CODE)
    for name in ("at import", "at start"):
        (directory / name).write_text("")
    monkeypatch.syspath_prepend(directory)
    spec = aembus.WorkerSpec("w", f"{module}:main", count=count)
    with aembus.Supervisor(
        bus,
        services=services,
        workers=[spec],
        state_directory=directory / "state",
        log_level="CRITICAL",
    ):
        with aembus.connect(bus) as client:
            running = Fleet(bus, directory, client)
            try:
                yield running
            finally:
                running.control.close()


@contextmanager
def flood(fleet: Fleet) -> Iterator[list[int]]:
    """Send numbered jobs by key until the end of the block; yields the number of those sent."""
    over = threading.Event()
    sent = [0]

    def send() -> None:
        point = fleet.client.point("work")
        while not over.is_set():
            point.activate(sent[0], key=sent[0] % KEYS, timeout=20.0)
            sent[0] += 1
            while sent[0] - len(fleet.got) > AHEAD_MAX and not over.is_set():
                over.wait(0.001)  # else most of the time goes to millions of jobs

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()
