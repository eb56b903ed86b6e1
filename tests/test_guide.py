"""The examples of the guide run, and print what the guide says, or assert it themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BUS = re.compile(r'"guide-[a-z-]+"')
EXAMPLES = {
    "calls": ["7", "failed: KeyError 'xx'", "9 None"],
    "stages": ["{'balance': 70}", "failed: Refused no account, name='bob'"],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str, bus_name: str, tmp_path: Path) -> None:
    """Its code, in a file of the page's name, on a bus of the test's name."""
    text = (GUIDE / f"{name}.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = re.sub(r'(Supervisor|connect)\("\w+"', rf'\1("{bus_name}"', code)
    (tmp_path / f"{name}.py").write_text(code)
    run = subprocess.run(
        [sys.executable, f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == EXAMPLES[name]
    assert all(f"`{line}`" in text for line in EXAMPLES[name])


@pytest.mark.parametrize(
    "page",
    [page for page in sorted(GUIDE.glob("*.md")) if page.stem not in EXAMPLES],
    ids=lambda page: page.stem,
)
def test_the_code_of_a_page_runs(page: Path, bus_name: str, tmp_path: Path) -> None:
    """All code of one page of the guide, as one program, runs and its assertions hold."""
    blocks = CODE.findall(page.read_text())
    assert blocks, "a page of the guide shows code"
    program = tmp_path / f"{page.stem}.py"
    program.write_text(BUS.sub(repr(bus_name), "\n".join(blocks)))
    run = subprocess.run(
        [sys.executable, program],
        cwd=GUIDE.parent.parent,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
