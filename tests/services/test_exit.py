"""The exit service and its client, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.services.process_exit import asked_exit_code, open_process
from tests.support.running import program, statistics, until


@pytest.fixture
def bus(bus_name: str, tmp_path: Path) -> Iterator[str]:
    """A bus without workers; its name."""
    with aembus.Supervisor(bus_name, services=["exit"], state_directory=tmp_path):
        yield bus_name


def exit_statistics(bus: str) -> dict[str, Any]:
    """Return what the exit service counts."""
    (service,) = (s for s in statistics(bus)["services"] if s["name"] == "exit")
    return dict(service)


@contextlib.contextmanager
def child(code: str = "input()") -> Iterator[subprocess.Popen[str]]:
    """Run a child that waits for a line, or as the code says; it is reaped at the end."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def knows_after_reaping() -> bool:
    """Say whether this kernel tells how a process ended whose parent has asked."""
    with child("pass") as process:
        descriptor = open_process(process.pid)
        process.wait()
        code = asked_exit_code(descriptor)
        os.close(descriptor)
    return code == 0


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -9),
    ],
)
def test_a_handler_is_told_how_a_process_has_ended(
    bus: str, code: str, exit_code: int, reaped: bool
) -> None:
    """Somebody else's child, asked for by its parent or not: its pid, its exit code, the data."""
    told: list[tuple[int, int | None, str]] = []
    with aembus.connect(bus) as member, child("input(); " + code) as process:
        exits = member.service("exit")
        exits.watch(process.pid, lambda event, *what: told.append(what), "data")
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        if reaped:
            process.wait()
        until("it is told", lambda: member.poll(0.1) * 0 or told)
        known = (exit_code,) if not reaped or knows_after_reaping() else (exit_code, None)
        ((pid, seen, data),) = told
        assert (pid, data) == (process.pid, "data")
        assert seen in known


def test_a_process_that_has_ended_and_was_not_asked_for_can_be_watched(bus: str) -> None:
    """Its handler is called at once, with the exit code."""
    told: list[Any] = []
    with aembus.connect(bus) as member, child("raise SystemExit(3)") as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        member.service("exit").watch(process.pid, lambda event, *what: told.append(what))
        until("it is told", lambda: member.poll(0.1) * 0 or told)
        assert told == [(process.pid, 3)]


async def never_awaited(event: aembus.Event, pid: int, code: int | None) -> None:
    """A handler that nobody would await."""


def test_no_process_is_an_error(bus: str) -> None:
    """A pid that nobody has, or that is none, is ProcessNotFound with the pid."""
    with aembus.connect(bus) as member, child("pass") as process:
        process.wait()
        for pid in (process.pid, 0, -5, 1 << 22, 1 << 40):
            with pytest.raises(aembus.ProcessNotFound, match=f"pid={pid}$"):
                member.service("exit").watch(pid, print)
        with pytest.raises(ValueError, match="name='n'"):
            member.service("exit").watch(os.getpid(), print, name="n")
        with pytest.raises(TypeError, match=r"pid='1'$"):
            member.service("exit").watch("1", print)
        with pytest.raises(TypeError, match="plain function; register the `async def` at a point"):
            member.service("exit").watch(os.getpid(), never_awaited)
        assert exit_statistics(bus)["watches"] == 0


def test_a_watch_that_was_cancelled_is_not_told(bus: str) -> None:
    """Of two watches of one process the other one still is; a name is free again."""
    told: list[Any] = []
    with aembus.connect(bus) as member, child() as process:
        exits = member.service("exit")
        member.register("gone", lambda event, *what: told.append(what))
        exits.watch(process.pid, lambda event, *what: told.append("never")).cancel()
        exits.watch(process.pid, "gone", "never", name="watch").cancel()
        exits.watch(process.pid, "gone", "once", name="watch")
        exits.watch(process.pid, "gone", "not again", name="watch")
        assert exit_statistics(bus)["watches"] == exit_statistics(bus)["processes"] == 1
        process.kill()
        until("it is told", lambda: member.poll(0.1) * 0 or told)
        assert told == [(process.pid, -9, "once")]
        until("nothing is left", lambda: exit_statistics(bus)["processes"] == 0)


WATCHER = """
import sys, aembus
with aembus.connect(sys.argv[1]) as bus:
    exits = bus.service("exit")
    exits.watch(int(sys.argv[2]), print)
    exits.watch(int(sys.argv[2]), "gone", "kept")
    print("watches", flush=True)
    bus.run()
"""


@pytest.mark.parametrize("order", ["watcher first", "watched first", "both"])
def test_a_watch_with_a_point_outlives_the_watcher(bus: str, order: str) -> None:
    """Kill the watcher, the watched, or both: the point is activated once, the handler goes."""
    told: list[Any] = []
    with aembus.connect(bus) as member, child() as process:
        member.register("gone", lambda event, *what: told.append(what))
        with program([sys.executable, "-c", WATCHER, bus, str(process.pid)]) as watcher:
            watcher.read_until("watches")
            assert exit_statistics(bus)["watches"] == 2
            if order == "watched first":
                process.kill()
                until("it is told", lambda: member.poll(0.1) * 0 or told)
            if order == "both":
                process.kill()
            watcher.end(signal.SIGKILL)
            if order == "watcher first":
                until("its handler is gone", lambda: exit_statistics(bus)["watches"] == 1)
                process.kill()
            until("it is told", lambda: member.poll(0.1) * 0 or told)
        assert told == [(process.pid, -9, "kept")]
        until("nothing is left", lambda: exit_statistics(bus)["watches"] == 0)
        assert statistics(bus)["totals"]["dead_lettered"] == 0


def end_when_told(bus: aembus.Bus) -> None:
    """Entry point: ends with exit code 5 when told to."""

    @bus.on("end")
    def end(event: aembus.Event) -> None:
        os._exit(5 if event.job is not None and event.job.attempt == 1 else 0)


def test_a_worker_can_be_watched(bus_name: str, tmp_path: Path) -> None:
    """The supervisor's own child, which it reaps itself: the exit code is known all the same."""
    spec = aembus.WorkerSpec("w", "tests.services.test_exit:end_when_told")
    told: list[Any] = []
    with (
        aembus.Supervisor(bus_name, services=["exit"], workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as member,
    ):
        worker = next(m for m in statistics(bus_name)["members"] if m["kind"] == "worker")
        member.service("exit").watch(worker["pid"], lambda event, *what: told.append(what))
        member.activate("end")
        until("it is told", lambda: member.poll(0.1) * 0 or told)
        assert told == [(worker["pid"], 5)]


def test_many_are_watched_at_once(bus: str) -> None:
    """Each of many processes that end together is told of once, with its own exit code."""
    told: list[Any] = []
    processes = []
    with aembus.connect(bus) as member:
        exits = member.service("exit")
        try:
            for number in range(40):
                process = subprocess.Popen(
                    ["sh", "-c", f"read line; exit {number}"], stdin=subprocess.PIPE
                )
                processes.append(process)
                exits.watch(process.pid, lambda event, *what: told.append(what), number)
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            until("all are told", lambda: member.poll(0.1) * 0 or len(told) == 40)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        wanted = {(p.pid, number, number) for number, p in enumerate(processes)}
        assert {(pid, code if code else 0, number) for pid, code, number in told} == wanted
