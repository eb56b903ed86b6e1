from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import aembus
from aembus.control import REQUEST_TIMEOUT_S
from aembus.shm import layout
from tests.crash.scene import SOURCES, Scene, environment
from tests.crash.scene_board import BUSY
from tests.crash.scene_view import descriptors

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

PLENTY = 4096  # pages
AROUND = (-8, -2, -1, 0, 1, 8)
AROUND_BY_HAND = range(-64, 9)
TIMEOUT_S = 60
LOG_BYTES_MAX = 100_000
A_WHILE_S = 0.5


def small_bus(bus: str, directory: Path, pages: int) -> str:
    """Return what a small bus says that has so many pages of /dev/shm."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    mount = f'mount -t tmpfs -o size={pages * layout.PAGE} tmpfs /dev/shm && exec "$@"'
    before = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    tried = subprocess.run([*before, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a mount namespace is not permitted here: {tried.stderr.strip()}")
    command = [sys.executable, "-m", "tests.crash.small_bus", bus, str(directory / "state")]
    done = subprocess.run(
        [*before, *command], cwd=SOURCES, env=environment(bus, directory),
        capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left:" not in done.stdout
    return done.stdout.strip()


@pytest.mark.parametrize("around", [AROUND, pytest.param(AROUND_BY_HAND, marks=pytest.mark.slow)])
def test_just_enough_shared_memory_or_not(
    bus_name: str, tmp_path: Path, around: range | tuple[int, ...]
) -> None:
    """Some pages more or less: a bus that works, or an error with the numbers; never SIGBUS."""
    need = int(small_bus(bus_name, tmp_path, PLENTY))
    worked = []
    for offset in around:
        said = small_bus(bus_name, tmp_path, need + offset)
        if said.isdigit():
            worked.append(offset)
        else:
            assert "too little space in /dev/shm" in said
            assert "need=" in said
            assert "--shm-size" in said
    assert worked
    assert min(worked) >= 0
    assert max(around) in worked


def test_one_page_of_shared_memory(bus_name: str, tmp_path: Path) -> None:
    """Not even the registry fits: the same error."""
    assert "too little space in /dev/shm" in small_bus(bus_name, tmp_path, 1)


# Joins with ever more descriptors, until it can.
FEW_DESCRIPTORS = """
import os, resource, sys
import aembus

def opened():
    return len(os.listdir("/proc/self/fd")) - 1

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
before, refused = opened(), 0
for spare in range(40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare, hard))
    try:
        with aembus.connect(sys.argv[1]) as bus:
            bus.register("few", print)
            assert bus.activate(sys.argv[2], 0, 1 << 31, spare, 0, b"", int(sys.argv[3])) == 1
        break
    except (aembus.AembusError, OSError) as error:
        refused += 1
        assert str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert opened() == before, os.listdir("/proc/self/fd")
else:
    sys.exit("never")
print(refused)
"""


def test_a_member_without_descriptors(make_scene: Callable[..., Scene]) -> None:
    """Joining fails with an error until there are enough, and leaves none open; then it works."""
    with make_scene(workers=1, producers=1) as scene:
        scene.settle()
        done = subprocess.run(
            [sys.executable, "-c", FEW_DESCRIPTORS, scene.bus, "crash.probe.w-1", "0"],
            cwd=SOURCES, env=scene.environment(), capture_output=True, text=True, check=False,
            timeout=TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 2


@pytest.mark.parametrize("spare", [-4, -1, 1, 2, 3])
def test_a_supervisor_without_descriptors(make_scene: Callable[..., Scene], spare: int) -> None:
    """Who cannot be let in is told so at once; the others go on, and later there is room again."""
    # A dead letter could not be kept meanwhile: its job stays in hand, and holds up its lane.
    with make_scene(workers=1, producers=1, raise_share=0.0) as scene:
        scene.settle()
        limits = resource.prlimit(scene.supervisor_pid, resource.RLIMIT_NOFILE)
        used = sum(descriptors(scene.supervisor_pid).values())
        resource.prlimit(scene.supervisor_pid, resource.RLIMIT_NOFILE, (used + spare, limits[1]))
        began = time.monotonic()
        with pytest.raises(
            (aembus.AembusError, OSError), match=r"too many|Too many|maximum|closed"
        ):
            aembus.connect(scene.bus)
        assert time.monotonic() - began < REQUEST_TIMEOUT_S / 2
        finished = scene.finished()
        scene.be_loud(BUSY)
        scene.await_finished(finished + 20)
        assert (scene.directory / "stderr").stat().st_size < LOG_BYTES_MAX
        resource.prlimit(scene.supervisor_pid, resource.RLIMIT_NOFILE, limits)
        with aembus.connect(scene.bus) as bus:
            assert bus.activate("crash.nobody") == 0
        scene.settle()
        scene.stop()


def test_a_worker_that_cannot_be_spawned_is_tried_again(
    make_scene: Callable[..., Scene],
) -> None:
    """A death while descriptors are out is made good once there are some again."""
    with make_scene(workers=2, producers=1) as scene:
        scene.be_loud(BUSY)
        assert scene.watch(TIMEOUT_S, lambda: len(scene.workers_at_work()) == 2)
        limits = resource.prlimit(scene.supervisor_pid, resource.RLIMIT_NOFILE)
        few = sum(descriptors(scene.supervisor_pid).values()) - 6
        resource.prlimit(scene.supervisor_pid, resource.RLIMIT_NOFILE, (few, limits[1]))
        scene.kill_worker(scene.worker_names[0])
        other = scene.worker_names[1]
        finished = scene.finished_by(other)
        scene.watch(A_WHILE_S)
        scene.await_finished_by(other, finished + 20)
        resource.prlimit(scene.supervisor_pid, resource.RLIMIT_NOFILE, limits)
        scene.forgive_delay()
        scene.settle()
        scene.stop()
