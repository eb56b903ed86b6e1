from __future__ import annotations

import dataclasses
import pickle
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from aembus.errors import ServiceLoadError
from aembus.hosting.code import PACKAGE_PREFIX, load_code
from aembus.services import Service

SERVICE = """
from __future__ import annotations
from dataclasses import dataclass
from aembus.services import Service, call
{imports}
@dataclass
class Record:
    caller: str
    other: Record | None = None

class Cdr(Service):
    name = {name!r}
    version = {version!r}
    {more}
    Record = Record
"""


def service(imports: str = "", name: str = "cdr", version: str = "1", more: str = "") -> str:
    """Return the source of a service."""
    return SERVICE.format(imports=imports, name=name, version=version, more=more)


def private_modules() -> set[str]:
    """Return the modules of services that are loaded afresh."""
    return {name for name in sys.modules if name.startswith(PACKAGE_PREFIX)}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path; no module of these tests stays."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    known, meta_path = set(sys.modules), list(sys.meta_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]
    sys.meta_path[:] = meta_path


def test_two_versions_of_one_file_live_side_by_side(directory: Path) -> None:
    """Also where the file changes within a second, to other source of the same length."""
    (directory / "cdr.py").write_text(service(version="1"))
    first = load_code("cdr:Cdr")
    (directory / "cdr.py").write_text(service(version="2"))
    second = load_code("cdr:Cdr")
    assert (first.version, second.version) == ("1", "2")
    assert first.service_class is not second.service_class
    assert issubclass(first.service_class, Service)
    assert "cdr" not in sys.modules


def test_a_dot_means_afresh_and_a_full_name_means_shared(directory: Path) -> None:
    """What a service imports from its package with a dot is its version's own."""
    package = directory / "switch"
    package.mkdir()
    (package / "__init__.py").write_text("KIND = 'package'\n")
    (package / "store.py").write_text("from . import KIND\nSTATE = ['store']\n")
    (package / "tariffs.py").write_text("STATE = ['tariffs']\n")
    imports = "from .store import STATE, KIND\nfrom switch import tariffs"
    more = "state, kind, shared = STATE, KIND, tariffs.STATE"
    (package / "cdr.py").write_text(service(imports, more=more))
    first: typing.Any = load_code("switch.cdr:Cdr").service_class
    (package / "store.py").write_text("KIND = 'changed'\nSTATE = ['other']\n")
    second: typing.Any = load_code("switch.cdr:Cdr").service_class
    assert (first.state, first.kind, second.state) == (["store"], "package", ["other"])
    assert first.shared is second.shared


def test_its_classes_are_found_by_their_modules_name(directory: Path) -> None:
    """Pickle, typing and dataclasses look a class's module up in sys.modules."""
    (directory / "cdr.py").write_text(service())
    record: typing.Any = load_code("cdr:Cdr").service_class.Record  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(record("a"))) == record("a")
    assert typing.get_type_hints(record)["other"] == record | None
    assert dataclasses.replace(record("a"), caller="b") == record("b")


def test_what_is_forgotten_leaves_no_module(directory: Path) -> None:
    """Neither the service's module nor its package."""
    before = private_modules()
    (directory / "cdr.py").write_text(service())
    load_code("cdr:Cdr").forget()
    assert private_modules() == before


def test_the_built_in_services_are_loaded_afresh_too() -> None:
    """Each load is a class of its own, on the same contract."""
    before = private_modules()
    first, second = load_code("timer"), load_code("timer")
    assert first.service_class is not second.service_class
    assert first.service_class.calls() == second.service_class.calls() != []
    first.forget()
    second.forget()
    assert private_modules() == before


def test_a_package_offers_its_service_by_an_entry_point(directory: Path) -> None:
    """Of the group aembus.services, by a short name."""
    (directory / "cdr.py").write_text(service(version="7"))
    metadata = directory / "cdr_demo-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cdr-demo\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[aembus.services]\ncdr-demo = cdr:Cdr\n")
    assert load_code("cdr-demo").version == "7"


@pytest.mark.parametrize(
    ("spec", "source", "says"),
    [
        ("cdr", None, "name one, or write module:Class, service='cdr', known=.*'timer'"),
        ("cdr:", None, "written module:Class"),
        ("nowhere:Cdr", None, "no such module; it must lie on the path of the supervisor"),
        ("nowhere.cdr:Cdr", None, "cannot be imported.*No module named 'nowhere'"),
        ("cdr:Other", service(), "no such class.*class='Other'"),
        ("cdr:Record", service(), "not a subclass of aembus.services.Service"),
        ("cdr:Cdr", "def f(:\n", "cannot be imported.*SyntaxError"),
        ("cdr:Cdr", "x = 1\nx = 1 / 0\n", "ZeroDivisionError: division by zero .*cdr.py, line 2"),
        ("cdr:Cdr", "import sys; sys.exit(3)\n", "cannot be imported.*SystemExit: 3"),
        ("cdr:Cdr", service(imports="import lost_module"), "No module named 'lost_module'"),
        ("cdr:Cdr", service(version="1 beta"), "version is 1 to 40 letters.*version='1 beta'"),
        ("cdr:Cdr", service(name=""), "name is 1 to 40 letters"),
        ("cdr:Cdr", service(more="points = 'cdr.written'"), "points are a tuple of names"),
    ],
)
def test_code_that_will_not_do_says_why(
    directory: Path, spec: str, source: str | None, says: str
) -> None:
    """In one line, and no module is left."""
    before = private_modules()
    if source is not None:
        (directory / "cdr.py").write_text(source)
    with pytest.raises(ServiceLoadError, match=says) as caught:
        load_code(spec)
    assert "\n" not in str(caught.value)
    assert private_modules() == before
