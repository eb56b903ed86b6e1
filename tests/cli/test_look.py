from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.cli import buses, look
from aembus.cli.buses import DEAD, FOREIGN, RUNNING, FoundBus
from aembus.cli.main import main
from aembus.cli.text import fits
from aembus.errors import PermissionRefused
from aembus.shm import names
from aembus.supervisor.ownership import lock_holder

MODULE_BUS = f"t{os.getpid()}-look"
COUNTS = ("sent", "delivered", "dead_lettered", "queued", "expired", "dropped")
NOTHING = dict.fromkeys(COUNTS, 0)


@pytest.fixture(scope="module")
def busy_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running bus whose two workers have had 11 jobs, one of which failed."""
    workers = [aembus.WorkerSpec("calls", "tests.cli.application:main", count=2)]
    supervisor = aembus.Supervisor(
        MODULE_BUS, services=["timer"], workers=workers, log_level="CRITICAL",
        state_directory=tmp_path_factory.mktemp("state"), spare=False,
    )  # fmt: skip
    with supervisor:
        with aembus.connect(MODULE_BUS) as bus:
            for number in (*range(10), -1):
                bus.activate("work", number)
        wait_for(lambda: buses.statistics(MODULE_BUS)["totals"], lambda t: t["queued"] == 0)
        wait_for(lambda: buses.statistics(MODULE_BUS)["members"], lambda m: len(m) == 3)
        yield MODULE_BUS


def wait_for(look_at: Callable[[], Any], wanted: Callable[[Any], bool]) -> None:
    """Return when what is looked at is as wanted; another process cannot call us back."""
    deadline = time.monotonic() + 10
    while not wanted(seen := look_at()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.01)


def without_times(statistics: dict[str, Any]) -> dict[str, Any]:
    """Return statistics that can be compared with those of a moment later."""
    return {**statistics, "supervisor": {**statistics["supervisor"], "uptime_s": 0}}


def test_stats_json_is_what_the_supervisor_says(
    busy_bus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the fields of the contract, as they are."""
    assert main(["stats", "--bus", busy_bus, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert without_times(printed) == without_times(buses.statistics(busy_bus))
    assert printed["bus"] == busy_bus
    assert {m["kind"] for m in printed["members"]} == {"supervisor", "worker"}
    contract = {"slot", "kind", "name", "pid", "restarts", "delivered", "failed", "queued"}
    assert all(contract <= member.keys() for member in printed["members"])


def test_stats_for_a_person(busy_bus: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Members in an aligned table, the totals that add up, points, services, counters."""
    assert main(["stats", "--bus", busy_bus]) == 0
    head, members, totals, points, services, counters = (
        capsys.readouterr().out.strip().split("\n\n")
    )
    assert head.startswith(f"bus {busy_bus!r}, supervisor pid ")
    lines = members.splitlines()
    title = lines[0].split()
    assert title == ["slot", "kind", "name", "pid", "state", "restarts", "delivered", "queued",
                     "held", "retrying", "dead", "expired", "dropped", "failed"]  # fmt: skip
    rows = [dict(zip(title, line.split(), strict=True)) for line in lines[1:]]
    assert [(row["slot"], row["name"]) for row in rows] == [
        ("0", "supervisor"), ("1", "calls-1"), ("2", "calls-2"),
    ]  # fmt: skip
    assert {len(line) for line in lines} == {len(lines[0])}
    assert sum(int(row["delivered"]) for row in rows) == 10
    assert sum(int(row["dead"]) for row in rows) == 1
    assert sum(int(row["failed"]) for row in rows) == 1
    assert totals == ("sent 11 = delivered 10 + dead-lettered 1 + queued 0; expired 0, dropped 0")
    assert [line.split() for line in points.splitlines()] == [
        ["point", "events", "stopped"],
        ["work", "2", "0"],
    ]
    assert services.splitlines()[1].split()[:6] == ["timer", "1", "running", "0", "running", "0,"]
    assert counters == "counters: jobs 11"


def test_a_narrow_terminal_misses_no_number(busy_bus: str) -> None:
    """Columns of which nobody has any are left out, and what services count stands below."""
    found = buses.statistics(busy_bus)
    text = look.statistics_text(found, 80)
    assert fits(text, 80)
    assert not fits(look.statistics_text(found), 80)
    title = text.split("\n\n")[1].splitlines()[0].split()
    assert title == [
        "slot",
        "kind",
        "name",
        "pid",
        "state",
        "delivered",
        "queued",
        "dead",
        "failed",
    ]
    assert "\ntimer 1: running 0, expired 0, " in text


def test_a_bus_of_nothing_is_said_in_words() -> None:
    """No points, no services, no counters: no empty tables."""
    text = look.statistics_text(
        {
            "bus": "quiet",
            "supervisor": {"pid": 7, "uptime_s": 61.0},
            "members": [],
            "points": [],
            "services": [],
            "totals": NOTHING,
            "counters": {},
        }
    )
    assert text.splitlines()[0] == "bus 'quiet', supervisor pid 7, up 1 min 1 s"
    assert "points: none" in text
    assert "services: none" in text
    assert "counters" not in text


def test_ls_shows_a_running_bus(busy_bus: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its supervisor's pid and its members by kind, for a person and for a program."""
    pid = buses.statistics(busy_bus)["supervisor"]["pid"]
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["bus", "supervisor", "members", "uptime", "state"]
    [row] = [line for line in lines if line.startswith(f"{busy_bus} ")]
    assert f" {pid} " in row
    assert " supervisor, 2 workers " in row
    assert row.endswith("  running")

    assert main(["ls", "--json"]) == 0
    [entry] = [e for e in json.loads(capsys.readouterr().out) if e["bus"] == busy_bus]
    assert entry.pop("uptime_s") > 0
    assert entry == {
        "bus": busy_bus, "state": "running", "supervisor_pid": pid,
        "members": {"supervisor": 1, "worker": 2},
        "degraded": 0,
    }  # fmt: skip


def test_a_killed_bus_is_marked_and_can_be_cleaned(
    bus_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ls` says what to do, `stats` that nobody is there, `clean` removes every name."""
    with aembus.Supervisor(bus_name) as supervisor:
        os.kill(supervisor.pid, signal.SIGKILL)
        os.waitid(os.P_PID, supervisor.pid, os.WEXITED | os.WNOWAIT)
    left = buses.left_in_shared_memory(bus_name)
    assert {names.lock_path(bus_name), names.control_path(bus_name)} < set(left)

    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [row] = [line for line in lines if line.startswith(f"{bus_name} ")]
    assert row.endswith("  dead, run: aembus clean")

    assert main(["stats", "--bus", bus_name]) == 1
    assert f"bus={bus_name!r}" in capsys.readouterr().err

    assert main(["clean", "--bus", bus_name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[:-1]) == sorted(map(str, left))
    assert lines[-1] == f"removed: {len(left)} names"
    assert buses.left_in_shared_memory(bus_name) == []


def found(*buses_found: FoundBus) -> Callable[[], list[FoundBus]]:
    """Return something to find the buses with."""
    return lambda: list(buses_found)


def test_stats_takes_the_only_bus_that_runs(
    busy_bus: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dead ones and other users' do not count."""
    monkeypatch.setattr(
        buses, "find_all",
        found(FoundBus("a", DEAD, 0), FoundBus("b", FOREIGN, 0), FoundBus(busy_bus, RUNNING, 1)),
    )  # fmt: skip
    assert main(["stats"]) == 0
    assert capsys.readouterr().out.startswith(f"bus {busy_bus!r}")


def test_stats_without_any_bus_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and how to start one."""
    monkeypatch.setattr(buses, "find_all", found(FoundBus("a", DEAD, 0)))
    assert main(["stats"]) == 1
    assert "start one: aembus run" in capsys.readouterr().err


def test_stats_with_several_buses_lists_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2: the option that is missing is named."""
    monkeypatch.setattr(
        buses, "find_all", found(FoundBus("east", RUNNING, 1), FoundBus("west", RUNNING, 2))
    )
    with pytest.raises(SystemExit) as caught:
        main(["stats"])
    assert caught.value.code == 2
    assert "--bus NAME, running=['east', 'west']" in capsys.readouterr().err


def test_ls_without_any_bus_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no error, and JSON stays JSON."""
    monkeypatch.setattr(buses, "find_all", found())
    assert main(["ls"]) == 0
    assert "start one: aembus run" in capsys.readouterr().out
    assert main(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_ls_shows_a_bus_that_does_not_answer_yet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bus_name: str
) -> None:
    """Between its lock and its control socket a supervisor is neither running nor dead."""
    monkeypatch.setattr(
        buses, "find_all",
        found(FoundBus(bus_name, RUNNING, 4711), FoundBus("theirs", FOREIGN, 0)),
    )  # fmt: skip
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split(maxsplit=4) == [bus_name, "4711", "-", "-", look.STARTING]
    assert lines[2].split(maxsplit=4) == ["theirs", "-", "-", "-", "another user's"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a while")
def test_another_users_bus_is_not_called_dead(bus_name: str) -> None:
    """What one may not look into may well run."""
    lock: Path = names.lock_path(bus_name)
    lock.touch(0o600)
    try:
        os.seteuid(65534)
        try:
            assert buses.find(bus_name) == FoundBus(bus_name, FOREIGN, 0)
            with pytest.raises(PermissionRefused, match=bus_name):
                lock_holder(bus_name)
        finally:
            os.seteuid(0)
    finally:
        lock.unlink()


ANOTHER_RELEASE = """
import sys, aembus, aembus.control
aembus.control.PROTOCOL_VERSION += 1
from aembus.supervisor import Supervisor
Supervisor(sys.argv[1], state_directory=sys.argv[2]).run(lambda: print("up", flush=True))
"""


def test_ls_shows_a_bus_of_another_release_and_the_others(
    busy_bus: str, bus_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be asked is told as what it is; it keeps nobody from seeing the others."""
    command = [sys.executable, "-c", ANOTHER_RELEASE, bus_name, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "up\n"
            assert main(["ls"]) == 0
        finally:
            other.terminate()
    rows = {row.split()[0]: row for row in capsys.readouterr().out.splitlines()}
    assert rows[bus_name].endswith("  runs with another release of aembus")
    assert rows[busy_bus].endswith("  running")
