"""Builds the library that is preloaded to let system calls fail and to set the clock."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).with_name("shim.c")


def build_shim(directory: Path) -> Path:
    """Return the path of the built library; skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    library = directory / "shim.so"
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Werror", "-fPIC", "-shared", "-o", library, SOURCE, "-ldl"],
        check=True,
    )
    return library
