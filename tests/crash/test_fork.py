from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.crash.scene import SOURCES, Scene
from tests.crash.scene_board import MIXED

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

FORKS = 20
FORKS_BY_HAND = 1000

PROGRAM = """
import os, sys, threading, warnings
import aembus

warnings.simplefilter("ignore", DeprecationWarning)  # of fork with threads: that is what is tried
bus = aembus.connect(sys.argv[1])
got = []
bus.register("forked.echo", lambda event, number: got.append(number))
kept = bus.point("forked.echo")
over = threading.Event()
sent = [0, 0]

def send(me):
    while not over.is_set():
        sent[me] += bus.activate("forked.echo", me, timeout=5.0)
        over.wait(0.0005)

def refuses(what):
    try:
        what()
    except aembus.ForkedBusError:
        return True
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\\n".encode())
    return False

def be_the_child():
    ok = all([
        refuses(lambda: kept.activate(1)),
        refuses(lambda: kept.try_activate(1)),
        refuses(lambda: bus.activate("forked.other", 1)),
        refuses(lambda: bus.register("x", print)),
        refuses(lambda: bus.poll()),
        refuses(lambda: bus.run()),
        refuses(lambda: bus.service("timer")),
    ])
    bus.close()
    with aembus.connect(sys.argv[1]) as own:  # the way out that the error names
        ok = ok and own.activate("forked.echo", 2, timeout=5.0) == 1
    os._exit(0 if ok else 1)

runner = bus.run_in_thread()
threads = [threading.Thread(target=send, args=(n,)) for n in range(2)]
for thread in threads:
    thread.start()
failed = 0
forks = int(sys.argv[2])
for _ in range(forks):
    child = os.fork()
    if not child:
        be_the_child()
    _, status = os.waitpid(child, 0)
    failed += status != 0
over.set()
for thread in threads:
    thread.join()
want = sum(sent) + forks
bus_done = threading.Event()
for _ in range(500):
    if len(got) >= want:
        break
    bus_done.wait(0.01)
bus.close()
if failed or len(got) != want or min(sent) == 0:
    sys.exit(f"failed={failed}, got={len(got)}, want={want}, sent={sent}")
"""


@pytest.mark.parametrize("forks", [FORKS, pytest.param(FORKS_BY_HAND, marks=pytest.mark.slow)])
def test_fork_with_threads(make_scene: Callable[..., Scene], forks: int) -> None:
    """A forked child is refused and may connect for itself; the parent loses nothing."""
    with make_scene(workers=1, producers=1) as scene:
        scene.be_loud(MIXED)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, scene.bus, str(forks)],
            cwd=SOURCES, env=scene.environment(), capture_output=True, text=True, check=False,
            timeout=30 + forks,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        scene.settle()
        scene.stop()
