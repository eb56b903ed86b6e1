from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.crash.scene import SOURCES, Scene

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

TIMES = 6

# The thread that sleeps on the bus gets a processor only when nobody else wants it, and somebody
# always does: so it is still asleep when the bus is closed.
PROGRAM = """
import os, sys, threading
import aembus

os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

over = threading.Event()

def be_busy():
    while not over.is_set():
        sum(range(1000))

def until_closed(what):
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    try:
        while True:
            what()
    except aembus.AembusError:
        pass

busy = [threading.Thread(target=be_busy) for _ in range(2)]
for thread in busy:
    thread.start()
for number in range(int(sys.argv[2])):
    bus = aembus.connect(sys.argv[1])
    bus.register("close.nothing", print)
    ways = (bus.run, lambda: bus.poll(5.0))
    thread = threading.Thread(target=until_closed, args=(ways[number % 2],))
    thread.start()
    over.wait(0.01)
    bus.close()
    thread.join()
over.set()
print("done")
"""


def test_closed_by_another_thread(make_scene: Callable[..., Scene]) -> None:
    """A bus is closed while another thread sleeps in `run` or `poll`: both return, unharmed."""
    with make_scene(workers=1, producers=1) as scene:
        scene.settle()
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", PROGRAM, scene.bus, str(TIMES)],
            cwd=SOURCES, env=scene.environment(), capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        scene.settle()
        scene.stop()
