"""A machine that has nothing left: no process for a child, no descriptor for a nursery."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aembus
from tests.spawning import handlers
from tests.support.running import adds_up, statistics, until


@pytest.fixture
def me(bus_name: str, tmp_path: Path) -> Iterator[aembus.Bus]:
    """A client of a bus."""
    with (
        aembus.Supervisor(bus_name, state_directory=tmp_path / "dead"),
        aembus.connect(bus_name) as joined,
    ):
        yield joined


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of handlers in whose nursery no process can be forked while `full` is there."""
    (tmp_path / "crowded.py").write_text(
        "import errno, os\n"
        "from tests.spawning.handlers import fail_first\n"
        f"full = {str(tmp_path / 'full')!r}\n"
        "fork = os.fork\n"
        "def fork_if_there_is_room():\n"
        "    if os.path.exists(full):\n"
        "        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    return fork()\n"
        f"if os.getpid() != {os.getpid()}:\n"
        "    os.fork = fork_if_there_is_room\n"
        "def nothing(event): pass\n"
        "def fail_once(event): return fail_first(event, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "crowded", raising=False)
    import crowded  # type: ignore[import-not-found]

    return crowded


def spawn_host(bus: str, what: str) -> int:
    """Return a number of the statistics of the spawn host."""
    return int(next(m for m in statistics(bus)["members"] if m["kind"] == "spawn")[what])


def test_jobs_go_on_when_there_are_processes_again(
    me: aembus.Bus, tmp_path: Path, crowded: Any
) -> None:
    """Also those that waited behind the one for which none could be forked."""
    me.register("work", crowded.nothing, spawn=True, children_max=1)
    (tmp_path / "full").touch()
    for _ in range(3):
        me.activate("work")
    until("one could not be begun", lambda: spawn_host(me.name, "retrying"))
    (tmp_path / "full").unlink()
    until("all are finished", lambda: not statistics(me.name)["totals"]["queued"])
    totals = statistics(me.name)["totals"]
    assert (totals["delivered"], adds_up(totals)) == (3, True)


def test_a_handler_is_refused_for_which_no_nursery_can_be_started(
    me: aembus.Bus, crowded: Any
) -> None:
    """At once, and with the reason; what there was before goes on."""
    me.register("before", handlers.whoami, spawn=True)
    assert me.point("before").call()  # so that the way of its answers is open
    pid = spawn_host(me.name, "pid")
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(aembus.RegistrationError, match=r"Too many open files.*event='nothing'"):
            me.register("work", crowded.nothing, spawn=True)
        assert me.point("before").call()
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    me.register("work", crowded.nothing, spawn=True)
    assert me.point("work").call() is None
