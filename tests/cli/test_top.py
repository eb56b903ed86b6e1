from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import aembus
from aembus.cli.main import main
from aembus.cli.top import Look, rates, text
from tests.cli.support import AEMBUS, environment


def member(name: str, delivered: int, sent: int) -> dict[str, object]:
    """Return a member as the statistics show it."""
    return {
        "slot": 1, "kind": "client", "name": name, "pid": 7, "state": "running",
        "delivered": delivered, "sent": sent, "queued": 3, "held": 0, "retrying": 0, "failed": 0,
        "dead_lettered": 0, "restarts": 0,
    }  # fmt: skip


def look(at: float, *members: dict[str, object]) -> Look:
    """Return a look at these members."""
    found = {
        "bus": "switch",
        "supervisor": {"uptime_s": 61.0},
        "totals": {"queued": 3, "dead_lettered": 2},
        "members": list(members),
    }
    return Look(at, found)


def test_rates_are_differences() -> None:
    """By second, busiest first; who has come since, or came again, has no rate below 0."""
    before = look(10.0, member("a", 100, 0), member("b", 0, 500))
    now = look(12.0, member("a", 300, 0), member("b", 0, 100), member("c", 50, 10))
    rows = rates(before, now)
    assert [(r["name"], r["in_per_s"], r["out_per_s"]) for r in rows] == [
        ("a", 100, 0),
        ("c", 25, 5),
        ("b", 0, 0),
    ]
    assert "125 jobs/s, queued 3, dead-lettered 2" in text(now, rows)


def test_a_running_bus(bus_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON a line a look, of the members that there are."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path):
        command = ["top", "--bus", bus_name, "--interval", "0.05", "--count", "2"]
        assert main([*command, "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [[m["name"] for m in line["members"]] for line in lines] == [["supervisor"]] * 2
        assert main(command) == 0
        assert capsys.readouterr().out.count(f"bus '{bus_name}'") == 2


def test_ctrl_c_ends_it(bus_name: str, tmp_path: Path) -> None:
    """With nothing on standard error."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path):
        command = [*AEMBUS, "top", "--bus", bus_name, "--interval", "0.05"]
        with subprocess.Popen(
            command, env=environment(tmp_path), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as top:  # fmt: skip
            assert top.stdout is not None
            while "jobs/s" not in top.stdout.readline():
                assert top.poll() is None
            top.send_signal(2)
            _, said = top.communicate(timeout=20)
        assert (top.returncode, said) == (130, "")


def test_no_such_bus(bus_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear line."""
    assert main(["top", "--bus", bus_name, "--count", "1"]) == 1
    assert "no supervisor runs this bus" in capsys.readouterr().err
