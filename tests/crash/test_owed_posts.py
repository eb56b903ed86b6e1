from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.scene import SOURCES, Scene
from tests.crash.scene_board import TRICKLE

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

TIMES = 8
RESCUES_MAX = 2  # of a machine that is too slow to post within a sleep
COUNTED_AFTER_S = 1.5  # a rescue is counted once no post has come for a second

DIES_OWING_A_POST = """
import os, signal, sys
import aembus
from aembus.shm.doorbell import Ringer

Ringer.ring = lambda self, sleeping: os.kill(os.getpid(), signal.SIGKILL)
with aembus.connect(sys.argv[1]) as bus:
    bus.activate("crash.probe." + sys.argv[2], 99, 1 << 31, int(sys.argv[3]), 0, b"", 0)
    sys.exit("nobody slept")
"""


def test_a_post_that_a_dead_producer_owes_is_made_for_it(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    """Killed between its job and its post: the sleeper is woken, and not by its bound."""
    with make_scene(producers=1) as scene:
        scene.settle()
        died = 0
        for number in range(1, TIMES + 1):
            worker = scene.worker_names[number % scene.stage.workers]
            finished = scene.finished()
            done = subprocess.run(
                [sys.executable, "-c", DIES_OWING_A_POST, scene.bus, worker, str(number)],
                cwd=SOURCES, env=scene.environment(), capture_output=True, check=False,
            )  # fmt: skip
            if done.returncode == -signal.SIGKILL:
                died += 1
            else:  # its worker was awake in that moment
                assert b"nobody slept" in done.stderr, done.stderr.decode()
            scene.await_finished(finished + 1)
        assert died >= TIMES // 2
        scene.watch(COUNTED_AFTER_S)
        assert scene.rescued_now() <= RESCUES_MAX


def test_nobody_is_woken_by_the_bound(make_scene: Callable[..., Scene]) -> None:
    """Producers that go on, and are killed, post for every sleeper."""
    with make_scene() as scene:
        scene.be_loud(TRICKLE)
        deadline = time.monotonic() + 4.0
        while time.monotonic() < deadline:
            scene.watch(0.3)
            scene.watch(5.0, lambda: bool(scene.senders_connected()))
            scene.kill_producer(scene.senders_connected()[0])
        scene.settle()
        assert scene.rescued_now() <= RESCUES_MAX
        scene.stop()
