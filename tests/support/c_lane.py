"""The lane in C, for tests: required, or built anew with other flags and loaded from there.

Imported as a pytest plugin (``-p tests.support.c_lane``) with AEMBUS_TEST_LANE=FILE in the
environment, it makes `aembus.shm._lane` the build in that file.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
NAME: Final = "aembus.shm._lane"
SOURCES: Final = tuple(sorted((ROOT / "aembus" / "shm").glob("_lane*.c")))
HEADERS: Final = tuple(sorted((ROOT / "aembus" / "shm").glob("_lane*.h")))
VARIABLE: Final = "AEMBUS_TEST_LANE"


def lane_in_c() -> ModuleType:
    """Return the lane in C; skip the test, or all of its file, where it was not built."""
    module: ModuleType = pytest.importorskip(
        NAME, reason="the lane in C was not built", exc_type=ImportError
    )
    return module


def compiler() -> list[str]:
    """Return the command of a C compiler; skip where there is none."""
    for command in (os.environ.get("CC"), sysconfig.get_config_var("CC"), "gcc", "cc"):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words[:1]
    pytest.skip("there is no C compiler")


def compile_c(target: Path, sources: Sequence[Path], *flags: str) -> Path:
    """Compile and link C sources; skip where Python's headers are missing."""
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        pytest.skip(f"Python's headers are not installed, include={include}")
    command = [*compiler(), "-std=c11", "-D_GNU_SOURCE", "-Wall", f"-I{include}", *flags]
    command += [*map(str, sources), "-o", str(target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def build(target: Path, *flags: str) -> Path:
    """Build the extension with `flags` beside the usual ones."""
    return compile_c(target, SOURCES, "-fPIC", "-shared", *flags)


class _Finder:
    """Finds the lane in C in a file of our choice."""

    def __init__(self, file: str) -> None:
        self._file = file

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != NAME:
            return None
        return importlib.util.spec_from_file_location(NAME, self._file)


if os.environ.get(VARIABLE):
    assert NAME not in sys.modules
    sys.meta_path.insert(0, _Finder(os.environ[VARIABLE]))
    assert importlib.import_module(NAME).__file__ == os.environ[VARIABLE]
