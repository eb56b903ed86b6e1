"""The benches of the TCP service work: what they print and write, not how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_attacks(tmp_path: Path) -> None:
    """An attack is counted, and others are served meanwhile."""
    options = ["--pairs", "1", "--seconds", "1.5", "--attacks", "garbage"]
    found = run(tmp_path, "attacks", *options)
    attack = found["cells"]["garbage"]
    assert attack["counted"]["framing_errors"] > 0
    assert attack["with"][0] > 0
