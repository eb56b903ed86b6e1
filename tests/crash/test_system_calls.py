from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.scene import SOURCES, Scene, environment
from tests.crash.shims import build_shim

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

TIME_S_MAX = 170
CALLS_MIN = 10  # of a scenario: fewer, and nothing has been tried
# An event loop that cannot watch a connection has no way to tell anybody; and CPython waits for
# ever for a thread that finds no memory for its first frame, or cannot wake the loop at its end.
LOOP_CALL = "epoll_ctl"
THREADS = ("self._started.wait()", "shutdown_default_executor")


def each_call_failing(
    directory: Path, surroundings: dict[str, str], scenario: str, bus: str
) -> list[dict[str, Any]]:
    """Return what came of a scenario with its first, second, third ... system call failing.

    In asyncio's own loop: libuv, and so uvloop, aborts the process at some of these failures.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.faulted", scenario, bus],
        cwd=SOURCES,
        env={**surroundings, "AEMBUS_LOOP": "asyncio", "LD_PRELOAD": str(build_shim(directory))},
        capture_output=True, text=True, check=False, timeout=TIME_S_MAX,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) > CALLS_MIN
    last = results.pop()
    assert last["call"] == last["error"] == "", last  # none was left to fail, and all went well
    assert all(result["call"] for result in results)
    return results


def complaints(results: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with them: whoever died, hung, or left something."""
    wrong = []
    for result in results:
        left = dict(result.get("names", {}))
        if result["call"] == "flock":
            left.pop("lock", None)  # only its holder may remove it, and nobody is
        unclear = result["error"] and not (result["known"] and result["text"])
        hung = result["error"] == "Hung" and not (
            result["call"] == LOOP_CALL or any(wait in result["trace"] for wait in THREADS)
        )
        if result["status"] or left or result["descriptors"] or hung:
            wrong.append(str(result))
        elif unclear and result["error"] != "Hung":
            wrong.append(f"an unclear error: {result}")
    return wrong


@pytest.mark.parametrize(
    "scenario", ["supervisor", "stop", pytest.param("workers", marks=pytest.mark.slow)]
)
def test_supervisor_with_each_call_failing(bus_name: str, tmp_path: Path, scenario: str) -> None:
    """It goes on, or ends with an error that says why; and nothing is left of it."""
    results = each_call_failing(tmp_path, environment(bus_name, tmp_path), scenario, bus_name)
    assert complaints(results) == []


def test_member_with_each_call_failing(make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    """Joining, registering, activating, leaving: done or refused, and the bus does not mind."""
    with make_scene(workers=1, producers=1) as scene:
        scene.settle()
        results = each_call_failing(tmp_path, scene.environment(), "client", scene.bus)
        assert complaints(results) == []
        scene.settle()
        scene.stop()
