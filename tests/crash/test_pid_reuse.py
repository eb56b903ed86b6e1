from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.scene import SOURCES, Scene, environment
from tests.crash.scene_view import process_state
from tests.crash.shims import build_shim

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
REUSES = 5
LATE_MS = 400

# In a PID namespace of its own, where it may say which PID comes next.
PROGRAM = """
import os, signal, subprocess, sys, time
import aembus
from aembus.control import ControlClient

NEXT = "/proc/sys/kernel/ns_last_pid"
MEMBER = '''
import sys, aembus
bus = aembus.connect(sys.argv[1])
bus.register("reuse", print)
print(bus.incarnation, flush=True)
sys.stdin.read()
'''

def member(bus):
    process = subprocess.Popen([sys.executable, "-c", MEMBER, bus], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    return process

def clients(control):
    found = control.request("statistics")["members"]
    return {m["incarnation"]: m["pid"] for m in found if m["kind"] == "client"}

def until(what, condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)

bus, reuses, state = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with aembus.Supervisor(bus, state_directory=state, slots=8) as supervisor:
    control = ControlClient(bus)
    for _ in range(reuses):
        first = member(bus)
        old = int(first.stdout.readline())
        os.kill(supervisor.pid, signal.SIGSTOP)
        first.kill()
        first.wait()
        with open(NEXT, "w") as file:
            file.write(str(first.pid - 1))
        second = member(bus)
        assert second.pid == first.pid, (second.pid, first.pid)
        os.kill(supervisor.pid, signal.SIGCONT)
        new = int(second.stdout.readline())
        assert new != old
        until("the dead one has left", lambda: clients(control) == {new: second.pid})
        second.kill()
        second.wait()
        until("both have left", lambda: clients(control) == {})
        for process in (first, second):
            process.stdin.close()
            process.stdout.close()
    control.close()
print("done")
"""


def test_a_pid_that_is_used_again(bus_name: str, tmp_path: Path) -> None:
    """Whoever gets a dead member's PID is not taken for it, neither alive nor dead."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    setting = "test -w /proc/sys/kernel/ns_last_pid && echo 300 >/proc/sys/kernel/ns_last_pid"
    tried = subprocess.run(
        [*NAMESPACE, "sh", "-c", setting], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        pytest.skip(f"PIDs cannot be chosen here: {tried.stderr.strip()}")
    command = [sys.executable, "-c", PROGRAM, bus_name, str(REUSES), str(tmp_path / "state")]
    done = subprocess.run(
        [*NAMESPACE, *command], cwd=SOURCES, env=environment(bus_name, tmp_path),
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_worker_is_taken_over_before_it_is_reaped(
    make_scene: Callable[..., Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its place is somebody else's, nobody can get its PID."""
    monkeypatch.setenv("LD_PRELOAD", str(build_shim(tmp_path)))
    monkeypatch.setenv("AEMBUS_SHIM_REAP_MS", str(LATE_MS))
    with make_scene() as scene:
        scene.settle()
        for name in scene.worker_names:
            pid = scene.worker_pid(name)
            scene.be_loud(0)
            scene.await_at_work(name)
            scene.kill_worker(name)
            scene.await_state(name, "starting")
            assert process_state(pid) == "Z"
            scene.settle()  # one at a time: the late reaping holds the supervisor up
        scene.stop()
