"""Service hosts are killed while members call what they host."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest

import aembus
from tests.support.running import adds_up, statistics, until

pytestmark = pytest.mark.e2e

KILLS = 12
CALLERS = 3
BETWEEN_S_MAX = 0.2
LIMIT_S = 30.0
TALLY = "tests.supervisor.test_service_hosts:Tally"  # it has its sum kept before it answers


class CallingThread(threading.Thread):
    """Calls until it is told to stop, and counts what became of it."""

    def __init__(self, bus: str, stop: threading.Event) -> None:
        super().__init__()
        self._bus = bus
        self._stop_calling = stop
        self.answered = self.failed = 0
        self.last = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        """See the class."""
        with aembus.connect(self._bus) as bus:
            service = bus.service("tally")
            while not self._stop_calling.is_set():
                try:
                    answer = service.add(1, timeout=LIMIT_S)
                except aembus.CallFailed:
                    self.failed += 1
                except aembus.AembusError as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")
                    return
                else:
                    if answer <= self.last:
                        self.wrong.append(f"{answer} after {self.last}")
                    self.answered, self.last = self.answered + 1, answer


def test_a_host_that_is_killed_under_load_forgets_no_answer(
    bus_name: str, tmp_path: Path, seed: int
) -> None:
    """What was answered is kept, each kill fails one call at most, and nobody waits in vain."""
    chance = random.Random(seed)
    stop = threading.Event()
    callers = [CallingThread(bus_name, stop) for _ in range(CALLERS)]

    spec = aembus.ServiceSpec(TALLY, hosts=1)
    with (
        aembus.Supervisor(bus_name, services=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as bus,
    ):
        for caller in callers:
            caller.start()
        try:
            pid = 0
            for _ in range(KILLS):
                pid = await_another_host(bus_name, pid)
                await_answers(callers)
                stop.wait(chance.uniform(0, BETWEEN_S_MAX))
                os.kill(pid, signal.SIGKILL)
            await_answers(callers)
        finally:
            stop.set()
            for caller in callers:
                caller.join(LIMIT_S)
        answered, failed = sum(c.answered for c in callers), sum(c.failed for c in callers)
        print(f"{seed=}: {answered} answered, {failed} failed")
        assert [c.wrong for c in callers] == [[]] * CALLERS
        assert answered <= bus.service("tally").add(0) <= answered + failed
        now = statistics(bus_name)
        assert adds_up(now["totals"])
        # A host that is killed between the answer and DONE leaves a dead letter all the same.
        assert failed <= now["supervisor"]["dead_letters"] <= KILLS


def await_another_host(bus: str, before: int) -> int:
    """Return the PID of the host once it is up, and not the one before."""

    def pid() -> int:
        (host,) = [m for m in statistics(bus)["members"] if m["kind"] == "host"]
        is_up = host["state"] == "running" and host["pid"] != before
        return int(host["pid"]) if is_up else 0

    found: int = until("there is another host", pid)
    return found


def await_answers(callers: list[CallingThread]) -> None:
    """Wait until each caller got another answer, or gave up."""
    before = [c.answered for c in callers]
    until(
        "calls are answered",
        lambda: all(c.answered > b or c.wrong for c, b in zip(callers, before, strict=True)),
    )
