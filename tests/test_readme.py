"""The application that the README begins with, typed as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.cli.support import run_program, running

README = Path(__file__).parent.parent / "README.md"

pytestmark = pytest.mark.e2e


def test_the_first_application_says_what_the_readme_shows(bus_name: str, tmp_path: Path) -> None:
    """Its two files, run by its commands, print the lines that are shown below them."""
    text = README.read_text()
    app, client = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:2]
    (tmp_path / "app.py").write_text(app)
    (tmp_path / "client.py").write_text(client.replace('"app"', repr(bus_name)))
    (command,) = re.findall(r"^aembus run (.*)$", text, re.MULTILINE)
    (shown,) = re.findall(r"```\n(app-1: .*?)```", text, re.DOTALL)
    first, second, _, last = shown.splitlines()
    with running(tmp_path, *command.split(), "--bus", bus_name) as bus:
        sent = run_program(tmp_path, [sys.executable, "client.py"])
        assert sent.out.splitlines() == [f"call-{number}: 1 job" for number in range(6)]
        said = {bus.read_line() for _ in range(12)}
        if first not in said:  # which worker has which keys depends on who came up first
            said = {line.translate(str.maketrans("12", "21")) for line in said}
        assert {first, second, last} <= said
        assert bus.end().code == 0
