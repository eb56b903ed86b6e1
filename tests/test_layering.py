"""Imports point one way: examples -> the public names; in aembus, from high layers to low ones.

Every import statement counts, in functions and under TYPE_CHECKING too, and so does a dotted name
after `import aembus`.  That importing `aembus.x.y` also runs `aembus/x/__init__.py` does not
count, and a module that is named in a string (services, entry points) is not seen.
"""

from __future__ import annotations

import ast
import graphlib
import itertools
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("aembus", "examples")

# From low to high.  "x.*" is the module x and whatever is below it, "x" that module alone; of
# several that fit, the most specific counts.  A module imports from its own layer and from lower.
LAYERS: Final = (
    ("aembus.errors",),
    ("aembus.shm.layout", "aembus.shm.names"),
    ("aembus.shm.*",),
    ("aembus.job", "aembus.codec"),
    ("aembus.*",),  # points, events, control, sender and the like
    ("aembus.bus", "aembus.connecting", "aembus.worker", "aembus.spawning.host"),
    ("aembus.services.*",),
    ("aembus.hosting.*",),
    ("aembus.supervisor.*",),
    ("aembus.stress.*",),
    ("aembus.testing.*",),
    ("aembus",),  # the public names: of aembus, only the command line may import them
    ("aembus.cli.*", "aembus.__main__"),
    ("examples.*",),
)
# The supervisor knows both; they do not know each other.
STRANGERS: Final = ("aembus.services.*", "aembus.worker")
# All of aembus that the examples may import.
PUBLIC: Final = ("aembus", "aembus.services", "aembus.services.framing")
# What is not part of aembus, though it stands beside it.
OUTSIDE: Final = ("bench.*", "examples.*", "tests.*")
# What a supervisor, a command or a test may need, and a worker should not have to load.
HEAVY: Final = (
    *("argparse", "asyncio", "hypothesis", "multiprocessing", "psutil", "pytest", "ssl"),
    *("subprocess", "uvloop"),
)


class Import(NamedTuple):
    """One place where a module is imported, or reached by its dotted name."""

    importer: str
    line: int
    imported: str


def read_imports(root: Path) -> dict[str, list[Import]]:
    """Return what each module of PACKAGES below `root` imports."""
    files = {
        _module_name(path.relative_to(root)): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    return {name: list(_imports_of(name, path, files)) for name, path in files.items()}


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports_of(importer: str, path: Path, modules: Collection[str]) -> Iterator[Import]:
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    tree = ast.parse(path.read_text(), str(path))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and id(node) not in inner:
            names = [name for name in [ast.unparse(node)] if name.startswith("aembus.")]
        else:
            continue
        for name in names:
            imported = _longest_known(name, modules)
            if imported != importer:
                yield Import(importer, node.lineno, imported)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _longest_known(name: str, modules: Collection[str]) -> str:
    known = name
    while known and known not in modules:
        known = known.rpartition(".")[0]
    return known or name  # foreign: as it is written


def fits(pattern: str, module: str) -> bool:
    """Say whether `module` is meant by `pattern`."""
    prefix = pattern.removesuffix(".*")
    return module == prefix or (prefix != pattern and module.startswith(f"{prefix}."))


def layer_of(module: str) -> int | None:
    """Return the number of the layer that `module` belongs to, None for what is not ours."""
    fitting = [
        (len(pattern.removesuffix(".*")), not pattern.endswith(".*"), number)
        for number, patterns in enumerate(LAYERS)
        for pattern in patterns
        if fits(pattern, module)
    ]
    return max(fitting)[2] if fitting else None


def complaint(found: Import) -> str | None:
    """Return what is wrong with an import, None if nothing is."""
    importer, imported = found.importer, found.imported
    own, other = layer_of(importer), layer_of(imported)
    if fits("examples.*", importer):
        if fits("aembus.*", imported) and imported not in PUBLIC:
            return "the examples use the public names only"
        return "this is for tests" if fits("tests.*", imported) else None
    if any(fits(pattern, imported) for pattern in OUTSIDE):
        return "this is outside of aembus"
    if own is not None and other is not None and other > own:
        return f"{LAYERS[other]} is above {LAYERS[own]}"
    if any(fits(a, importer) and fits(b, imported) for a, b in (STRANGERS, STRANGERS[::-1])):
        return "these do not know each other"
    return None


def find_violations(imports: dict[str, list[Import]]) -> list[str]:
    """Return a line for each import that goes the wrong way."""
    return [
        f"{found.importer}:{found.line} imports {found.imported}: {words}"
        for module in imports.values()
        for found in module
        if (words := complaint(found)) is not None
    ]


def find_cycle(imports: dict[str, list[Import]]) -> list[str]:
    """Return one cycle of imports, beginning and ending with the same module, or nothing."""
    graph = {name: {found.imported for found in module} for name, module in imports.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle[::-1]  # so that each imports the next
    return []


def test_every_import_goes_to_the_same_layer_or_a_lower_one() -> None:
    """Nothing low knows what is built on it, and the examples use only the public names."""
    assert find_violations(read_imports(ROOT)) == []


def test_no_module_imports_itself_over_others() -> None:
    """The graph of modules has no cycle."""
    assert find_cycle(read_imports(ROOT)) == []


def test_there_is_something_to_check() -> None:
    """The walk finds the modules and their imports: an empty one would pass everything."""
    imports = read_imports(ROOT)
    assert {"aembus", "aembus.errors", "aembus.shm.lane", "examples"} <= imports.keys()
    assert "aembus.errors" in {found.imported for found in imports["aembus.shm.segment"]}


def test_a_wrong_import_is_reported_however_it_is_written(tmp_path: Path) -> None:
    """Relative, in a function, under TYPE_CHECKING, by attribute: each is seen."""
    write_tree(
        tmp_path,
        {
            "aembus/__init__.py": "from aembus.bus import Bus as Bus",
            "aembus/bus.py": "from aembus import errors\nfrom tests.helpers import x",
            "aembus/errors.py": "def f():\n    from .supervisor import core",
            "aembus/job.py": "from aembus import Bus",
            "aembus/shm/__init__.py": "",
            "aembus/shm/lane.py": "import os.path\nfrom ..points import ActivationPoint",
            "aembus/points.py": "if TYPE_CHECKING:\n    import aembus.bus",
            "aembus/worker.py": "import aembus.errors",
            "aembus/services/__init__.py": "",
            "aembus/services/timer.py": "from aembus.worker import load_entry_point",
            "aembus/supervisor/__init__.py": "from . import core",
            "aembus/supervisor/core.py": "from aembus.services import timer",
            "examples/__init__.py": "",
            "examples/fine.py": "import aembus\nfrom aembus import Bus\naembus.Bus()",
            "examples/curious.py": "import aembus\naembus.bus.Bus()\nfrom aembus.errors import E",
        },
    )
    reported = [line.partition(": ")[0] for line in find_violations(read_imports(tmp_path))]
    assert sorted(reported) == [
        "aembus.bus:2 imports tests.helpers.x",
        "aembus.errors:2 imports aembus.supervisor.core",
        "aembus.job:1 imports aembus",
        "aembus.points:2 imports aembus.bus",
        "aembus.services.timer:1 imports aembus.worker",
        "aembus.shm.lane:2 imports aembus.points",
        "examples.curious:2 imports aembus.bus",
        "examples.curious:3 imports aembus.errors",
    ]


def test_a_cycle_is_reported(tmp_path: Path) -> None:
    """Also one within a layer, and one that an import in a function closes."""
    write_tree(
        tmp_path,
        {
            "aembus/events.py": "from aembus.points import x",
            "aembus/points.py": "from aembus import sender",
            "aembus/sender.py": "def f():\n    from .events import y",
        },
    )
    imports = read_imports(tmp_path)
    assert find_violations(imports) == []
    cycle = find_cycle(imports)
    assert len(cycle) == 4
    assert set(itertools.pairwise(cycle)) == {
        ("aembus.events", "aembus.points"),
        ("aembus.points", "aembus.sender"),
        ("aembus.sender", "aembus.events"),
    }


def write_tree(root: Path, files: dict[str, str]) -> None:
    """Make the files below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_bare_worker_stays_light() -> None:
    """A worker that registers nothing has loaded none of what only others need."""
    script = (
        "import sys; before = set(sys.modules); import aembus, aembus.worker; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert "aembus" in loaded
    assert loaded.intersection(HEAVY) == set()
