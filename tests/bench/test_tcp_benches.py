"""The benches of the TCP service work: what they print and write, not how fast anything is."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.attacks import attacking
from bench.echo_servers import on_bus
from bench.idle_connections import await_connections
from tests.support.running import ROOT


def run(tmp_path: Path, name: str, *options: str) -> dict[str, Any]:
    """Run a bench and return what it wrote as JSON."""
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", f"bench.{name}", *options, "--json", str(file)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_echo(tmp_path: Path) -> None:
    """Every server answers, and each figure of each round is kept."""
    options = ["--rounds", "1", "--seconds", "0.05", "--connections", "2", "--sizes", "64"]
    found = run(tmp_path, "echo", *options)
    (cell,) = found["cells"]
    assert {"asyncio", "aembus asyncio"} <= set(cell["servers"])
    assert all(server["rate_per_s"][0] > 0 for server in cell["servers"].values())
    assert found["computing"]["aembus asyncio"]["rate_per_s"][0] > 0


def test_idle_connections(tmp_path: Path) -> None:
    """The idle ones are really there while the active ones ask."""
    options = ["--rounds", "1", "--seconds", "0.05", "--idle", "20", "--active", "2"]
    found = run(tmp_path, "idle_connections", *options)
    (cell,) = found["cells"]
    assert cell["with"]["connections"] == [22]
    assert cell["without"]["connections"] == [2]


def test_connections_that_are_not_there_are_no_figure() -> None:
    """What was measured with fewer idle connections than said is an error."""
    with on_bus() as serving, pytest.raises(RuntimeError, match="wanted=1, found=0"):
        await_connections(serving, 1, 0.1)


def test_an_attack_that_ends_is_no_figure() -> None:
    """What others were served while nobody attacked them is an error."""

    def kill_the_attacker(address: str) -> None:
        with attacking("half_open", address):
            children = psutil.Process().children()
            attacker = next(child for child in children if "half_open" in child.cmdline())
            attacker.kill()
            attacker.wait()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as attacked:
        address = f"127.0.0.1:{attacked.getsockname()[1] - 1}"
        with pytest.raises(RuntimeError, match="before its time, name=half_open"):
            kill_the_attacker(address)


def test_attacks(tmp_path: Path) -> None:
    """An attack is counted, and others are served meanwhile."""
    options = ["--pairs", "1", "--seconds", "1.5", "--attacks", "garbage"]
    found = run(tmp_path, "attacks", *options)
    attack = found["cells"]["garbage"]
    assert attack["counted"]["framing_errors"] > 0
    assert attack["with"][0] > 0
