from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import aembus
from aembus.control import ControlClient
from aembus.supervisor.ownership import BusLock, sweep
from tests.spawning import handlers
from tests.support.running import ROOT, adds_up, statistics, until

THIS = "tests.spawning.test_spawn_kills"


@pytest.fixture
def bus(bus_name: str, tmp_path: Path) -> Iterator[str]:
    """A bus; its name."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path / "dead"):
        yield bus_name


@pytest.fixture
def me(bus: str) -> Iterator[aembus.Bus]:
    """A client of it."""
    with aembus.connect(bus) as joined:
        yield joined


def worker(bus: aembus.Bus) -> None:
    """Entry point: has an event with spawn=True, and one by which it dies."""
    bus.register("work", handlers.wait_for_file, spawn=True, children_max=3)
    bus.register("retry", handlers.fail_first, spawn=True, retries=1, backoff=1.0)
    bus.register("die", lambda event: os.kill(os.getpid(), signal.SIGKILL), redeliver=False)


def begun(folder: Path, number: int, attempt: int = 1) -> int:
    """Wait until a child has begun with a job; return its PID."""
    file = folder / f"begun-{number}-{attempt}"
    return int(until(f"{file.name} is there", lambda: file.exists() and file.read_text()))


def member(bus: str, kind: str) -> dict[str, Any]:
    """Return the statistics of the first member of a kind."""
    found: dict[str, Any] = next(m for m in statistics(bus)["members"] if m["kind"] == kind)
    return found


def is_gone(pid: int) -> bool:
    """Say whether a process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def nothing_queued(bus: str) -> None:
    """Wait until every job is finished, and see that they add up."""
    until("all are finished", lambda: not statistics(bus)["totals"]["queued"])
    assert adds_up(statistics(bus)["totals"])


def letters(bus: str) -> list[str]:
    """Return why the bus's dead letters are some."""
    with aembus.DeadLetterBox(bus) as box:
        return [letter["reason"] for letter in box.list()]


def test_a_killed_spawn_host_takes_its_children_along(
    bus: str, me: aembus.Bus, tmp_path: Path
) -> None:
    """No attempt overlaps the next one; what waited was not begun; a caller is told."""
    me.register("work", handlers.wait_for_file, spawn=True, children_max=2)
    me.register("dying", handlers.die_first, spawn=True)
    for number in range(4):
        me.activate("work", str(tmp_path), number)
    first = [begun(tmp_path, number) for number in range(2)]
    host = member(bus, "spawn")
    os.kill(host["pid"], signal.SIGKILL)
    for number in range(2):
        assert begun(tmp_path, number, attempt=2) not in first
        assert all(map(is_gone, first))
    replaced = member(bus, "spawn")
    assert (replaced["slot"], replaced["restarts"]) == (host["slot"], 1)
    for number in range(4):
        (tmp_path / f"go-{number}").touch()
    nothing_queued(bus)
    assert [(tmp_path / f"begun-{number}-1").exists() for number in (2, 3)] == [True, True]
    assert not letters(bus)
    assert me.point("dying").call(2, redeliver=True) == 3


def test_a_killed_nursery_takes_its_children_along(
    bus: str, me: aembus.Bus, tmp_path: Path
) -> None:
    """Their jobs come again from another nursery, and the spawn host lives."""
    me.register("work", handlers.wait_for_file, spawn=True)
    me.activate("work", str(tmp_path), 0)
    child = begun(tmp_path, 0)
    os.kill(psutil.Process(child).ppid(), signal.SIGKILL)
    begun(tmp_path, 0, attempt=2)
    assert is_gone(child)
    assert member(bus, "spawn")["restarts"] == 0
    (tmp_path / "go-0").touch()
    nothing_queued(bus)


def test_a_spawn_host_that_does_not_answer_holds_up_nobody(bus: str, me: aembus.Bus) -> None:
    """Who asks for children is told, and the next one who asks, too."""
    event = me.register("work", handlers.wait_for_file, spawn=True)
    host = member(bus, "spawn")["pid"]
    os.kill(host, signal.SIGSTOP)
    try:
        for _ in range(2):
            with pytest.raises(aembus.ControlError, match=f"does not answer, pid={host}"):
                _ = event.children
    finally:
        os.kill(host, signal.SIGCONT)
    assert event.children == ()


def test_a_killed_nurserys_place_is_taken_while_a_child_lives_on(
    bus: str, me: aembus.Bus, tmp_path: Path
) -> None:
    """Events are registered and jobs begun as ever, and what the child returns counts."""
    me.register("work", handlers.wait_without_parent, spawn=True, children_max=2, redeliver=False)
    me.activate("work", str(tmp_path), 0)
    os.kill(psutil.Process(begun(tmp_path, 0)).ppid(), signal.SIGKILL)
    try:
        me.register("who", handlers.whoami, spawn=True)
        assert me.point("who").call()
        me.activate("work", str(tmp_path), 1)
        begun(tmp_path, 1)
    finally:
        for number in range(2):
            (tmp_path / f"go-{number}").touch()
    nothing_queued(bus)
    assert letters(bus) == []


def test_a_killed_registrants_events_stay_as_its_place_does(bus_name: str, tmp_path: Path) -> None:
    """A worker's replacement registers them again; meanwhile and after, jobs have children."""
    spec = aembus.WorkerSpec("one", f"{THIS}:worker")
    with aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path / "dead"):
        with aembus.connect(bus_name) as me:
            me.activate("work", str(tmp_path), 0)
            child = begun(tmp_path, 0)
            me.activate("retry", 1)  # waits for its next attempt meanwhile
            me.activate("die")
            until("it is replaced", lambda: member(bus_name, "worker")["restarts"] == 1)
            me.activate("work", str(tmp_path), 1)
            begun(tmp_path, 1)
            until("it is up", lambda: member(bus_name, "worker")["state"] == "running")
            me.activate("work", str(tmp_path), 2)
            begun(tmp_path, 2)
            assert not is_gone(child)
            for number in range(3):
                (tmp_path / f"go-{number}").touch()
            until("work is done", lambda: member(bus_name, "spawn")["queued"] == 0)
            assert letters(bus_name) == ["in hand when its worker died"]  # of "die"


def test_a_killed_clients_events_go(bus: str, me: aembus.Bus, tmp_path: Path) -> None:
    """It had no name, so nobody comes in its place; what its child has in hand is finished."""
    source = (
        "import aembus, time\n"
        "from tests.spawning import handlers\n"
        f"bus = aembus.connect({bus!r})\n"
        "bus.register('work', handlers.wait_for_file, spawn=True)\n"
        "time.sleep(60)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT)
    until("it is there", lambda: me.activate("work", str(tmp_path), 0))
    begun(tmp_path, 0)
    client.kill()
    client.wait()
    until("it is gone", lambda: me.activate("work", str(tmp_path), 1) == 0)
    (tmp_path / "go-0").touch()
    for number in range(1, 9):
        (tmp_path / f"go-{number}").touch()
    nothing_queued(bus)


def test_all_end_with_a_killed_supervisor(bus_name: str, tmp_path: Path) -> None:
    """Spawn host, nursery, children."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path / "dead") as supervisor:
        me = aembus.connect(bus_name)
        me.register("work", handlers.wait_for_file, spawn=True)
        me.activate("work", str(tmp_path), 0)
        child = begun(tmp_path, 0)
        pids = [child, psutil.Process(child).ppid(), member(bus_name, "spawn")["pid"]]
        os.kill(supervisor.pid, signal.SIGKILL)
        until("all are gone", lambda: all(map(is_gone, pids)))
        me.close()
    lock = BusLock(bus_name)
    sweep(bus_name)
    lock.release()


def test_a_bus_stops_with_a_child_running(bus_name: str, tmp_path: Path) -> None:
    """After its time; the child is ended, and its job kept."""
    supervisor = aembus.Supervisor(bus_name, state_directory=tmp_path, stop_timeout_s=0.4)
    with supervisor, aembus.connect(bus_name) as me:
        me.register("work", handlers.wait_for_file, spawn=True)
        me.activate("work", str(tmp_path), 0)
        child = begun(tmp_path, 0)
        control = ControlClient(bus_name)
        control.request("stop")
        until("it ends", lambda: is_gone(child))
        control.close()
    with aembus.DeadLetterBox(bus_name, tmp_path) as box:
        assert [letter["reason"] for letter in box.list()] == ["the bus was stopped"]


def test_a_program_that_is_a_file_may_register(bus: str, tmp_path: Path) -> None:
    """Its handler is found in its file, which is not run as the program once more."""
    program = tmp_path / "program.py"
    program.write_text(
        "import aembus, sys\n"
        "def handler(event, number):\n"
        "    return [__name__ != '__main__', number + 1]\n"
        "if __name__ == '__main__':\n"
        f"    with aembus.connect({bus!r}) as bus:\n"
        "        bus.register('add', handler, spawn=True)\n"
        "        print(bus.point('add').call(1))\n"
    )
    run = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout, run.stderr) == ("[True, 2]\n", "")


def test_changed_sources_are_imported_anew(
    bus: str, me: aembus.Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When their events are registered again; what runs already goes on."""
    file = tmp_path / "versioned.py"
    file.write_text("def handler(event): return 'old'\n")
    monkeypatch.syspath_prepend(tmp_path)
    import versioned  # type: ignore[import-not-found]

    event = me.register("version", versioned.handler, spawn=True)
    assert me.point("version").call() == "old"
    file.write_text("def handler(event): return 'newer'\n")
    os.utime(file, (time.time() + 5, time.time() + 5))
    assert me.point("version").call() == "old"
    event.close()
    me.register("version", versioned.handler, spawn=True)
    assert me.point("version").call() == "newer"


def test_a_module_that_fails_elsewhere_is_refused(
    me: aembus.Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what importing it raised, and it harms no other event."""
    (tmp_path / "only_here.py").write_text(
        "import os\n"
        f"if os.getpid() != {os.getpid()}:\n"
        "    raise LookupError('not in this process')\n"
        "def handler(event): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    me.register("before", handlers.whoami, spawn=True)
    with pytest.raises(aembus.RegistrationError, match="LookupError: not in this process"):
        me.register("elsewhere", only_here.handler, spawn=True)
    assert me.activate("elsewhere") == 0
    assert me.point("before").call()
    me.register("after", handlers.whoami, spawn=True, name="another")
    assert me.point("after").call()


def test_a_module_with_threads_is_imported_by_the_child(
    me: aembus.Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a process with threads is never forked."""
    (tmp_path / "threaded.py").write_text(
        "import os, threading\n"
        f"if os.getpid() != {os.getpid()}:\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def handler(event): return threading.active_count()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import threaded  # type: ignore[import-not-found]

    me.register("threaded", threaded.handler, spawn=True)
    assert me.point("threaded").call() == 2
