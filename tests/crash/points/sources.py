"""Which copy of aembus the helper processes try: AEMBUS_SOURCES=DIRECTORY, else the one beside us.

DIRECTORY holds `aembus/`.  Nothing of aembus is imported here.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
VARIABLE: Final = "AEMBUS_SOURCES"
SOURCES: Final = Path(os.environ.get(VARIABLE) or ROOT).resolve()


def environment(sources: Path = SOURCES) -> dict[str, str]:
    """Return an environment whose Python processes import that copy, wherever they start."""
    path = os.pathsep.join([str(sources), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", VARIABLE: str(sources)}


def copy_sources(directory: Path) -> Path:
    """Copy the sources there, without what was built of them; return the copy."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(SOURCES / "aembus", directory / "aembus", ignore=ignore)
    return directory


def build_points(directory: Path) -> None:
    """Build the lane in C of a copy, with its named points.

    Skips the test where there is no compiler.
    """
    from tests.support.c_lane import compile_c

    shm = directory / "aembus" / "shm"
    target = shm / f"_lane{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = [*sorted(shm.glob("_lane*.c")), Path(__file__).parent / "killpoints.c"]
    compile_c(target, sources, "-O2", "-fPIC", "-shared", "-DAEMBUS_KILLPOINTS")


def copy_with_points(directory: Path) -> Path:
    """Copy the sources, and build the lane in C there with its named points; return the copy.

    Skips the test where there is no compiler.
    """
    build_points(copy_sources(directory))
    return directory
