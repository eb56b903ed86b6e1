"""`aembus.killpoint`: users kill their own handlers at named places."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.running import ROOT, adds_up, until, workers


def bill(bus: aembus.Bus) -> None:
    """Entry point: charges, and says that it has; a crash in between is what is tried."""
    answers = bus.point("billed")
    charges = bus.counter("charges")

    @bus.on("ended", group="billing")
    def handler(event: aembus.Event, call: int) -> None:
        assert event.job is not None
        charges.add()
        aembus.killpoint("charged")
        answers.activate(call, event.job.attempt)


@contextmanager
def billing(bus_name: str, directory: Path) -> Iterator[tuple[aembus.Bus, list[tuple[int, int]]]]:
    """Run a bus with one such worker; yield a client of it and what is billed."""
    spec = aembus.WorkerSpec("w", f"{__name__}:bill")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=directory),
        aembus.connect(bus_name) as client,
    ):
        billed: list[tuple[int, int]] = []
        client.register("billed", lambda event, *answer: billed.append(answer))
        yield client, billed


def test_every_nth_pass_kills_and_the_job_comes_again(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process dies at its third pass; its job, charged already, is billed by the next one."""
    monkeypatch.setenv("AEMBUS_KILLPOINT", "charged:3")
    with billing(bus_name, tmp_path) as (client, billed):
        for call in range(6):
            client.activate("ended", call)
        until("all are billed", lambda: client.poll(0.05) * 0 or len(billed) >= 6)
        # 0, 1, 2 died; 2, 3, 4 died; 4, 5.
        assert billed == [(0, 1), (1, 1), (2, 2), (3, 1), (4, 2), (5, 1)]
        (worker,) = workers(bus_name)
        assert (worker["restarts"], worker["counters"]) == (2, {"charges": 8})
        assert adds_up(worker["received"])


def test_a_job_that_always_kills_becomes_a_dead_letter(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a number the first pass kills, and so it does in each replacement."""
    monkeypatch.setenv("AEMBUS_KILLPOINT", "charged")
    with billing(bus_name, tmp_path) as (client, billed):
        client.activate("ended", 1)
        until("it is put aside", lambda: workers(bus_name)[0]["dead_lettered"] == 1)
        assert workers(bus_name)[0]["restarts"] == 3
        assert billed == []
    (letter,) = DeadLetters(tmp_path).read()
    assert (letter["point"], letter["attempts"]) == ("ended", 3)


def run(script: str, killpoint: str | None) -> subprocess.CompletedProcess[str]:
    """Run a script under AEMBUS_KILLPOINT."""
    environment: dict[str, Any] = {} if killpoint is None else {"AEMBUS_KILLPOINT": killpoint}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


SCRIPT = """
import aembus, atexit
atexit.register(print, "exit")
try:
    for number in range(3):
        aembus.killpoint("other")
        print(number, flush=True)
        aembus.killpoint("a:b")
finally:
    print("finally")
"""


@pytest.mark.parametrize(
    ("killpoint", "said", "code"),
    [
        (None, "0 1 2 finally exit", 0),
        ("", "0 1 2 finally exit", 0),
        ("somewhere:1", "0 1 2 finally exit", 0),
        ("a:b:4", "0 1 2 finally exit", 0),
        ("a:b:2", "0 1", -signal.SIGKILL),
        ("other", "", -signal.SIGKILL),
    ],
)
def test_only_the_point_that_is_named_kills(killpoint: str | None, said: str, code: int) -> None:
    """It is SIGKILL: nothing is cleaned up."""
    done = run(SCRIPT, killpoint)
    assert (done.stdout.split(), done.returncode) == (said.split(), code), done.stderr


@pytest.mark.parametrize("killpoint", [":1", "here:0", "here:", "here:-1", "here:x", ":"])
def test_nonsense_is_an_error_that_says_how(killpoint: str) -> None:
    """At the import of aembus, before anything could run without the fault that is wanted."""
    done = run("import aembus", killpoint)
    assert done.returncode == 1
    assert (
        f"is written name:n, n from 1 (without :n, the first time), AEMBUS_KILLPOINT={killpoint!r}"
        in done.stderr
    )
