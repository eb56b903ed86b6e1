"""What a member owed when it was killed is done by the supervisor, at once.

Sleeps that end by themselves are made too long to help: who wakes was woken.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import aembus
from aembus.cli.look import statistics_text
from aembus.cli.main import main
from aembus.shm import layout
from tests.support.running import ROOT, statistics, until, workers

LONG_S = 60.0
SOON_S = 20.0

PRODUCER = """
import os, signal, sys, aembus
from aembus.shm.peer import Peer
bus = aembus.connect(sys.argv[1])
point = bus.point("p")
sys.stdin.readline()
Peer.ring = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # between tail and post
point.activate("owed")
"""

CONSUMER = """
import os, signal, sys, aembus
from aembus.sender import Sender
bus = aembus.connect(sys.argv[1])
bus.register("p", lambda event, *data: None)
print("registered", flush=True)
sys.stdin.readline()
Sender.ring = lambda self, slot: os.kill(os.getpid(), signal.SIGKILL)  # between head and post
bus.event_struct._give_room = lambda slot: os.kill(os.getpid(), signal.SIGKILL)
bus.run()
"""


@pytest.fixture
def bus(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bus without workers, on which this process sleeps until it is woken."""
    monkeypatch.setattr("aembus.shm.sleeper.SLEEP_S_MAX", LONG_S)
    with aembus.Supervisor(bus_name, state_directory=tmp_path, lane_bytes=4096):
        yield bus_name


def start(script: str, bus: str) -> subprocess.Popen[str]:
    """Start a process that waits for a line."""
    return subprocess.Popen(
        [sys.executable, "-c", script, bus],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def go_on_until_killed(process: subprocess.Popen[str]) -> None:
    """Give a process its line, and see it die by its own SIGKILL."""
    process.communicate("\n", timeout=SOON_S)
    assert process.returncode == -signal.SIGKILL


def sleeps(bus: aembus.Bus) -> bool:
    """Say whether a member has announced its sleep."""
    return bool(bus._inbox._words[layout.SLEEPING // layout.WORD])


def test_a_post_that_a_dead_producer_owed_is_made(bus: str) -> None:
    """A producer killed between `tail` and its post: the consumer has the job at once."""
    with aembus.connect(bus) as consumer:
        got: list[str] = []
        consumer.register("p", lambda event, word: got.append(word))
        producer = start(PRODUCER, bus)
        until("it has joined", lambda: len(statistics(bus)["members"]) == 3)
        polled: list[float] = []

        def poll() -> None:
            began = time.monotonic()
            consumer.poll(LONG_S / 2)
            polled.append(time.monotonic() - began)

        thread = threading.Thread(target=poll)
        thread.start()
        until("the consumer sleeps", lambda: sleeps(consumer))
        go_on_until_killed(producer)
        thread.join(SOON_S)
        assert polled
        assert got == ["owed"]


def test_room_that_a_dead_consumer_owed_is_told(bus: str) -> None:
    """A consumer killed between `head` and its post: who waits for room goes on at once."""
    with aembus.connect(bus) as sender:
        consumer = start(CONSUMER, bus)
        assert consumer.stdout is not None
        assert consumer.stdout.readline()
        point = sender.point("p")
        while point.try_activate(b"x" * 500):
            pass
        ended = threading.Event()

        def wait_for_room() -> None:
            point.activate(b"x" * 500, timeout=LONG_S / 2)
            ended.set()

        thread = threading.Thread(target=wait_for_room)
        thread.start()
        until("the producer sleeps", lambda: sleeps(sender))
        go_on_until_killed(consumer)
        assert ended.wait(SOON_S)
        thread.join()


def worker(bus: aembus.Bus) -> None:
    """Entry point: does nothing, until it is killed."""
    bus.register("p", lambda event: None)


def test_a_degraded_worker_is_shown(
    bus_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `aembus stats` and `aembus ls`, as long as it is; it comes back by itself."""
    spec = aembus.WorkerSpec("w", "tests.supervisor.test_postmortem:worker")
    with aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path):
        for _ in range(7):  # then it is started again after 1.6 s
            (found,) = until(
                "it is up", lambda: [w for w in workers(bus_name) if w["state"] == "running"]
            )
            os.kill(found["pid"], signal.SIGKILL)
            until("it is noticed", lambda: workers(bus_name)[0]["state"] != "running")
        assert "degraded" in statistics_text(statistics(bus_name))
        assert main(["ls"]) == 0
        (line,) = [text for text in capsys.readouterr().out.splitlines() if bus_name in text]
        assert line.endswith("running, 1 degraded")
        until("it is up", lambda: workers(bus_name)[0]["state"] == "running")
