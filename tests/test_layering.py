"""Imports point one way: examples -> the public names; in aembus, from high layers to low ones.

Every import statement counts, in functions and under TYPE_CHECKING too, and so does a dotted name
after `import aembus`.  That importing `aembus.x.y` also runs `aembus/x/__init__.py` does not
count, and a module that is named in a string (services, entry points) is not seen.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("aembus", "examples")

# From low to high.  "x" is the module x alone, "x.*" also whatever is below it; the longest
# prefix that fits a module counts.
LAYERS: Final = (
    ("aembus.errors",),
    ("aembus.shm.layout", "aembus.shm.names"),
    ("aembus.shm.*",),
    ("aembus.job", "aembus.codec"),
    ("aembus.*",),  # points, events, control, sender and the like
    ("aembus.bus", "aembus.worker"),
    ("aembus.services.*",),
    ("aembus.supervisor.*",),
    ("aembus.cli.*", "aembus.__main__"),
    ("aembus",),  # the public names: may import anything, nothing in aembus imports them
    ("examples.*",),
)
# Not for the layers to say: the supervisor starts a worker and hosts services, neither of which
# knows the other.
STRANGERS: Final = (("aembus.services.*", "aembus.worker"),)
# All that the examples may know of aembus.
PUBLIC: Final = ("aembus", "aembus.services.framing")
# What only a supervisor, a command or a test needs.
HEAVY: Final = (
    "argparse",
    "asyncio",
    "hypothesis",
    "multiprocessing",
    "psutil",
    "pytest",
    "ssl",
    "subprocess",
    "uvloop",
)


class Import(NamedTuple):
    """One import of a module of the tree, or of something foreign to it by its dotted name."""

    importer: str
    line: int
    imported: str


@dataclass(frozen=True)
class Tree:
    """The modules below a root, and what they import."""

    modules: frozenset[str]
    imports: tuple[Import, ...]


def read_tree(root: Path) -> Tree:
    """Parse all modules of PACKAGES below `root`."""
    files = {
        module_name(path.relative_to(root)): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    imports = [found for name in files for found in imports_of(name, files[name], files.keys())]
    return Tree(frozenset(files), tuple(imports))


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(importer: str, path: Path, modules: object) -> Iterator[Import]:
    return iter(())
