from __future__ import annotations

import json
import mmap
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import aembus
from tests.crash.scene import SOURCES, Scene
from tests.crash.scene_board import TRICKLE
from tests.crash.shims import build_shim
from tests.support.running import until

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

HOUR_NS = 3600 * 10**9
WAIT_S = 0.25
LATE_S = 1.5  # waits are posted within half a second of a step; the rest is for slow machines
EARLY_S = 0.01
STEPS = 8

# Takes the time of bounded waits; its own clock is one that nobody sets.
WAITER = """
import json, sys, time
import aembus

with aembus.connect(sys.argv[1]) as bus:
    bus.register("clock.nothing", print)
    print("ready", flush=True)
    wait_s = float(sys.argv[2])
    while True:
        began = time.monotonic()
        bus.poll(wait_s)
        print(json.dumps(time.monotonic() - began), flush=True)
"""


class Clock:
    """The wall clock of the processes of a scene."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._mapping = mmap.mmap(file.fileno(), 8)
        self.environment = {"AEMBUS_SHIM_CLOCK": str(path)}

    def step(self, to_ns: int) -> None:
        """Let the clock be wrong by so much from now on."""
        struct.pack_into("=q", self._mapping, 0, to_ns)

    def close(self) -> None:
        """Let go of it."""
        self._mapping.close()


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A clock to be set, for all processes that the test starts."""
    shim = build_shim(tmp_path)
    clock = Clock(tmp_path / "clock")
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    yield clock
    clock.close()


def test_the_shim_sets_the_clock(clock: Clock) -> None:
    """A process under the shim sees the wrong time (else the next test would prove nothing)."""
    clock.step(-HOUR_NS)
    code = "import time; print(time.time())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert -3700 < float(told) - time.time() < -3500


def test_steps_of_the_wall_clock(make_scene: Callable[..., Scene], clock: Clock, seed: int) -> None:
    """Whoever waits is neither early nor late by what the clock was set by; jobs go on."""
    choose = random.Random(seed)
    with make_scene() as scene:
        scene.settle()
        waiter = subprocess.Popen(
            [sys.executable, "-c", WAITER, scene.bus, str(WAIT_S)],
            cwd=SOURCES, env=scene.environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert waiter.stdout is not None
        try:
            assert waiter.stdout.readline() == "ready\n"
            scene.be_loud(TRICKLE)
            off = 0
            for number in range(STEPS):
                off += HOUR_NS if number % 3 == 0 else -HOUR_NS
                finished = scene.finished()
                scene.watch(choose.random() * 0.1)
                clock.step(off)
                for _ in range(2):
                    took_s = json.loads(waiter.stdout.readline())
                    assert WAIT_S - EARLY_S <= took_s <= WAIT_S + LATE_S
                scene.await_finished(finished + 10)
        finally:
            waiter.kill()
            waiter.wait()
            waiter.stdout.close()
        scene.settle()
        scene.stop()


def test_a_timer_of_the_wall_clock_follows_its_steps(
    clock: Clock, bus_name: str, tmp_path: Path
) -> None:
    """Set back, the clock keeps `at` waiting; set forward over its time, it fires at once."""
    with (
        aembus.Supervisor(bus_name, services=["timer"], state_directory=tmp_path),
        aembus.connect(bus_name) as member,
    ):
        timer = member.service("timer")
        seen: list[str] = []

        def handler(event: aembus.Event, what: str) -> None:
            seen.append(what)

        def wait_for(what: str) -> None:
            until(f"{what} has fired", lambda: member.poll(0.1) * 0 or what in seen)

        timer.at(time.time() + 0.3, handler, "before the step back")
        clock.step(-HOUR_NS)
        timer.at(time.time() + 0.3, handler, "after it")
        timer.at(time.time() - 3600 + 0.3, handler, "by the new clock")
        timer.after(0.6, handler, "fence")
        wait_for("fence")
        assert sorted(seen) == ["by the new clock", "fence"]
        timer.at(time.time() + 7200, handler, "two hours ahead")
        clock.step(0)
        wait_for("before the step back")
        wait_for("after it")
        assert "two hours ahead" not in seen
        clock.step(2 * HOUR_NS + HOUR_NS)
        wait_for("two hours ahead")
