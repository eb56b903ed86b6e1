"""However a member is run, its handlers find the same: each promise in every way."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import aembus
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.running import Program, adds_up, statistics, until
from tests.support.ways import NAME

LIMIT_S: Final = 30.0
WAYS: Final = ("run", "poll", "thread", "serve", "serve_uvloop", "interrupt")


class Setting:
    """A bus, a client that collects what the member logs, and the member's process."""

    def __init__(self, bus: str, way: str, client: aembus.Bus, state: Path) -> None:
        self.bus, self.client, self.state = bus, client, state
        self._command = [sys.executable, "-m", "tests.support.ways", bus, way]
        self.way = way
        self.running: list[Program] = []
        self.log: list[tuple[object, ...]] = []
        client.register("log", lambda event, *line: self.log.append(line))
        client.register("answer", lambda event, n: n + 1)
        client.run_in_thread()

    def start(self) -> Program:
        """Start the member, and wait until it is registered."""
        running = Program(self._command)
        self.running.append(running)
        until("the member", lambda: self._is_registered() or running.process.poll() is not None)
        assert running.process.poll() is None, running.process.communicate()
        return running

    def _is_registered(self) -> bool:
        members = statistics(self.bus)["members"]
        return any(m["name"] == NAME and m["state"] == "running" for m in members)

    def wait_for(self, *lines: tuple[object, ...]) -> None:
        """Wait until these lines are in the log."""
        until(f"{lines}", lambda: set(lines) <= set(self.log))

    def end(self, running: Program) -> None:
        """Have a handler close the member's bus, and see that its program ends well."""
        self.client.activate("end")
        output, _ = running.process.communicate(timeout=LIMIT_S)
        assert running.process.returncode == 0, output
        until("all settled", lambda: statistics(self.bus)["totals"]["queued"] == 0)
        assert adds_up(statistics(self.bus)["totals"])


@pytest.fixture(params=WAYS)
def setting(request: pytest.FixtureRequest, bus_name: str, tmp_path: Path) -> Iterator[Setting]:
    """What a test needs, in each way to run."""
    if request.param == "serve_uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    with (
        aembus.Supervisor(bus_name, state_directory=tmp_path, lane_bytes=8192),
        aembus.connect(bus_name) as client,
    ):
        setting = Setting(bus_name, request.param, client, tmp_path)
        try:
            yield setting
        finally:
            for running in setting.running:
                running.process.kill()
                running.process.communicate()


def test_order_calls_retries_holding_once_and_closing(setting: Setting) -> None:
    """One at a time and in order; what each option promises; at last a handler closes the bus."""
    running = setting.start()
    client, log = setting.client, setting.log
    for number in range(300):
        client.activate("note", number, timeout=LIMIT_S)
    assert client.point("note").call(300, timeout=LIMIT_S) == 600
    setting.wait_for(("note", 300))
    assert [line[1] for line in log] == list(range(301))
    assert client.point("ask").call(1, timeout=LIMIT_S) == 2
    assert client.point("hold").call(timeout=LIMIT_S) == "from a thread"
    with pytest.raises(aembus.CallFailed, match="on purpose"):
        client.point("flaky").call(timeout=LIMIT_S)
    setting.wait_for(("flaky", 3))
    assert [line[1] for line in log if line[0] == "flaky"] == [1, 2, 3]
    client.activate("once", 1)
    client.activate("once", 2)
    client.activate("close")
    setting.wait_for(("once", 1), ("close",))
    setting.end(running)
    assert ("once", 2) not in log
    reasons = sorted(letter["reason"] for letter in DeadLetters(setting.state).read())
    assert reasons[-1] == "its handler raised"


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_what_was_in_hand_comes_again(setting: Setting, how: str) -> None:
    """Killed, or ended by SystemExit in a handler: the next process gets the job, attempt 2."""
    if (setting.way, how) == ("thread", "exit"):
        pytest.skip("SystemExit ends a thread, and not the program")
    client = setting.client
    running = setting.start()
    client.activate("fatal", how)
    for number in range(3):
        client.activate("note", number)
    output, _ = running.process.communicate(timeout=LIMIT_S)
    assert running.process.returncode == (-9 if how == "kill" else 7), output
    running = setting.start()
    setting.wait_for(("fatal", 2), *(("note", number) for number in range(3)))
    assert [line for line in setting.log if line[0] == "fatal"] == [("fatal", 1), ("fatal", 2)]
    setting.end(running)
