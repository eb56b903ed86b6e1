"""A service's code, loaded afresh for each version of it.

The service's module, and what it imports from its own package with a dot, become modules of a
package of their own (``aembus_service_7``), so that two versions of one file live side by side.
They are in `sys.modules` under those names, where dataclasses, typing and pickle look for a class's
module.  What they import by a full name is shared by the whole process, and not loaded again.

    switch/cdr.py       class Cdr(Service)           aembus_service_7.cdr
                        from .store import Store     aembus_service_7.store     afresh
                        from switch import tariffs   switch.tariffs             shared
                        import sqlite3               sqlite3                    shared

Source is compiled from the file as it is now: a cached compilation that is a second old may be of
other source.  Not here: instances (`versions`), and what a service's class promises (`Service`).
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import entry_points
from types import CodeType, ModuleType
from typing import Final

from aembus.errors import ServiceLoadError
from aembus.services.base import Service

BUILT_IN: Final = {
    "exit": "aembus.services.exit:ExitService",
    "timer": "aembus.services.timer:TimerService",
    "tcp": "aembus.services.tcp:TcpService",
}
ENTRY_POINTS: Final = "aembus.services"
PACKAGE_PREFIX: Final = "aembus_service_"
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
VERSION: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")

_numbers = itertools.count(1)
_importing = threading.Lock()


@dataclass(frozen=True, slots=True)
class ServiceCode:
    """A service's class, and the package that its modules were loaded into.

    spec: what was asked for: a built-in's name, an entry point's name, or ``module:Class``.
    """

    spec: str
    service_class: type[Service]
    package: str

    @property
    def name(self) -> str:
        """The service's name."""
        return self.service_class.name

    @property
    def version(self) -> str:
        """The version that the class states."""
        return self.service_class.version

    def forget(self) -> None:
        """Take the modules off `sys.modules`; nothing of them is in use."""
        _forget(self.package)


def load_code(spec: str) -> ServiceCode:
    """Load a service's code afresh; blocks while its modules run.

    Args:
        spec: a built-in's name, an entry point's name, or ``module:Class``.

    Raises: ServiceLoadError, which says why; no module is left then.
    """
    module_name, class_name = _find(spec)
    package = f"{PACKAGE_PREFIX}{next(_numbers)}"
    try:
        with _importing:
            module = _import_afresh(module_name, package)
        loaded = getattr(module, class_name, None)
        if loaded is None:
            raise ServiceLoadError(
                f"the module has no such class, service={spec!r}, file={module.__file__!r}, "
                f"class={class_name!r}"
            )
        return ServiceCode(spec, _checked(spec, loaded), package)
    except ServiceLoadError:
        _forget(package)
        raise
    except (Exception, SystemExit) as error:
        _forget(package)
        raise ServiceLoadError(
            f"service cannot be imported, service={spec!r}, error={_in_one_line(error)}"
        ) from error


def _find(spec: str) -> tuple[str, str]:
    path = BUILT_IN.get(spec)
    if path is None:
        found = {e.name: e.value for e in entry_points(group=ENTRY_POINTS)}
        path = found.get(spec, spec)
        if ":" not in path:
            known = sorted({*BUILT_IN, *found})
            raise ServiceLoadError(
                f"no such service; name one, or write module:Class, service={spec!r}, known={known}"
            )
    module_name, _, class_name = path.partition(":")
    if not (module_name and class_name.isidentifier()):
        raise ServiceLoadError(f"a service's class is written module:Class, service={spec!r}")
    return module_name, class_name


def _in_one_line(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is not None and not isinstance(error, SyntaxError):
        text += f" ({last.tb_frame.f_code.co_filename}, line {last.tb_lineno})"
    return " ".join(text.split())


# --- importing ----------------------------------------------------------------------------------


class _FreshLoader(SourceFileLoader):
    """Compiles what the file holds now."""

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class _FreshFinder:
    """Finds the modules of the packages made here, by the real package's path."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(PACKAGE_PREFIX):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        return None if spec is None else _fresh(spec)


def _fresh(spec: ModuleSpec) -> ModuleSpec:
    if type(spec.loader) is SourceFileLoader:
        spec.loader = _FreshLoader(spec.loader.name, spec.loader.path)
        spec.cached = None
    return spec


def _import_afresh(module_name: str, package: str) -> ModuleType:
    if _FreshFinder not in sys.meta_path:
        sys.meta_path.insert(0, _FreshFinder)
    importlib.invalidate_caches()
    parent_name, _, own_name = module_name.rpartition(".")
    if parent_name:
        _make_package(package, importlib.import_module(parent_name))
    else:
        _make_top_level(package, module_name)
    return importlib.import_module(f"{package}.{own_name}")


def _make_package(name: str, real: ModuleType) -> None:
    paths = getattr(real, "__path__", None)
    if paths is None:
        raise ServiceLoadError(f"this is a module and no package, name={real.__name__!r}")
    file = getattr(real, "__file__", None)
    if file is None:  # a package without __init__.py
        _add_module(ModuleSpec(name, None, is_package=True), list(paths))
        return
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=list(paths)
    )
    assert spec is not None and spec.loader is not None
    module = _add_module(_fresh(spec), list(paths))
    spec.loader.exec_module(module)


def _make_top_level(package: str, module_name: str) -> None:
    # A module of no package: it has nothing to import with a dot, and is found where it lies.
    found = PathFinder.find_spec(module_name)
    if found is None or found.origin is None:
        raise ServiceLoadError(
            f"no such module; it must lie on the path of the supervisor, module={module_name!r}"
        )
    _add_module(ModuleSpec(package, None, is_package=True), [])
    spec = importlib.util.spec_from_file_location(f"{package}.{module_name}", found.origin)
    assert spec is not None and spec.loader is not None
    module = _add_module(_fresh(spec), None)
    spec.loader.exec_module(module)


def _add_module(spec: ModuleSpec, path: list[str] | None) -> ModuleType:
    module = importlib.util.module_from_spec(spec)
    if path is not None:
        module.__path__ = path
    sys.modules[spec.name] = module
    return module


def _forget(package: str) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        del sys.modules[name]


# --- what must be right about a class -------------------------------------------------------------


def _checked(spec: str, loaded: object) -> type[Service]:
    """Return the class, if the host can work with it."""
    if not (isinstance(loaded, type) and issubclass(loaded, Service)):
        raise ServiceLoadError(
            "not a subclass of aembus.services.Service (imported by that name), "
            f"service={spec!r}, got={loaded!r}"
        )
    for attribute, pattern in (("name", NAME), ("version", VERSION)):
        value = getattr(loaded, attribute, None)
        if not (isinstance(value, str) and pattern.fullmatch(value)):
            raise ServiceLoadError(
                f"a service's {attribute} is 1 to 40 letters, digits, '-', '_', in a version also "
                f"'.', service={spec!r}, {attribute}={value!r}"
            )
    points: object = loaded.points
    if not (isinstance(points, tuple) and all(isinstance(point, str) for point in points)):
        raise ServiceLoadError(
            f"a service's points are a tuple of names, service={spec!r}, points={points!r}"
        )
    return loaded
