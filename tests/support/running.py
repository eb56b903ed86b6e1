"""Whole programs for the end-to-end tests: started, awaited, ended, and asked for figures."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aembus.control import ControlClient

ROOT = Path(__file__).resolve().parents[2]
READY_S_MAX = 20.0


class Program:
    """A program under test, its standard output collected line by line."""

    def __init__(
        self, command: Sequence[str], pass_fds: Sequence[int] = (), **environment: str
    ) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=pass_fds,
        )
        self.output = ""

    def read_until(self, text: str) -> str:
        """Return the line with `text`, reading until it comes."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        raise AssertionError(f"ended before it said {text!r}:\n{self.output}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, read the rest of the output, and return the exit code."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=30)
        self.output += rest
        return self.process.returncode


@contextlib.contextmanager
def program(
    command: Sequence[str], pass_fds: Sequence[int] = (), **environment: str
) -> Iterator[Program]:
    """Run a program for the length of the block; what still runs then is killed."""
    running = Program(command, pass_fds, **environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            try:
                running.process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.communicate()
        if running.process.stdout is not None:
            running.process.stdout.close()


@contextlib.contextmanager
def sip_responder(bus: str, port: int, *options: str) -> Iterator[Program]:
    """Run the SIP responder as `make run` does, and yield when it says that it is ready."""
    command = [sys.executable, "-m", "examples.telecom", "--bus", bus, "--port", str(port)]
    with program([*command, *options]) as running:
        running.read_until("sipp -sn uac")
        yield running


def statistics(bus: str) -> dict[str, Any]:
    """Return the bus's statistics, as `aembus stats --json` prints them."""
    control = ControlClient(bus)
    try:
        return control.request("statistics")
    finally:
        control.close()


def tcp_counts(bus_name: str) -> dict[str, int]:
    """Return what the TCP service of a bus has counted."""
    services = {service["name"]: service for service in statistics(bus_name)["services"]}
    found: dict[str, int] = services["tcp"]
    return found


def until(what: str, condition: Callable[[], Any], timeout_s: float = READY_S_MAX) -> Any:
    """Return the first true value of `condition`; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)  # between two looks at another process, which cannot call back


def workers(bus: str) -> list[dict[str, Any]]:
    """Return the statistics of the bus's workers."""
    return [m for m in statistics(bus)["members"] if m["kind"] == "worker"]


def adds_up(totals: dict[str, int]) -> bool:
    """Say whether no job is unaccounted for."""
    return totals["sent"] == totals["delivered"] + totals["dead_lettered"] + totals["queued"]
