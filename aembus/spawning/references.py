"""How a handler is named so that another process finds it: by its module and qualified name.

What is sent to a process that shall run a handler is never the handler itself (no pickle), but
where to import it from.  So a handler that is to run in a process of its own stands at the top of
a module, or of a class there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from aembus.errors import RegistrationError

MAIN: Final = "__main__"
_SCRIPT_PREFIX: Final = "__main__ of "  # what a program's module is called where it is no program


class Reference(NamedTuple):
    """Where to find a function or class.

    module: the module's name; of a program that was started as a file, made of its path.
    qualname: its name there, with dots.
    file: where the module's source is; empty if it has none.
    """

    module: str
    qualname: str
    file: str


def reference_to(thing: Any, what: str) -> Reference:
    """Return how another process finds a function or class.

    Args:
        what: says in an error what it is: "handler".

    Raises: RegistrationError if another process cannot find it.
    """
    module_name = getattr(thing, "__module__", None)
    qualname = getattr(thing, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str):
        raise _refusal(what, thing, "it has no name")
    if "<" in qualname:
        raise _refusal(what, thing, "it is defined inside a function, or is a lambda")
    module = sys.modules.get(module_name)
    if module is None:
        raise _refusal(what, thing, f"its module is not loaded, module={module_name!r}")
    found = _find(module, qualname)
    # None while its module is still being imported: a decorator registers before it has its name.
    if found is not None and found != thing:
        raise _refusal(what, thing, f"its name {qualname!r} is that of something else")
    if found is None and "." in qualname:
        raise _refusal(what, thing, f"its module has no {qualname!r}")
    file = getattr(module, "__file__", None)
    path = str(Path(file).resolve()) if file else ""
    if module_name == MAIN:
        spec = getattr(module, "__spec__", None)
        if spec is not None:  # python -m package.module
            return Reference(spec.name, qualname, path)
        if not path:
            raise _refusal(what, thing, "its program is no file")
        return Reference(_SCRIPT_PREFIX + path, qualname, path)
    return Reference(module_name, qualname, path)


def load_module(name: str, file: str) -> ModuleType:
    """Import the module of a reference and return it; a program's is run under another name.

    Raises: RegistrationError if that is another file's module, or what importing it raises.
    """
    if not name.startswith(_SCRIPT_PREFIX):
        module = importlib.import_module(name)
        found = getattr(module, "__file__", None)
        if file and found and Path(found).resolve() != Path(file):
            raise RegistrationError(
                "another module of this name is imported; give one of them another name, "
                f"module={name!r}, wanted={file!r}, found={found!r}"
            )
        return module
    known = sys.modules.get(name)
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise RegistrationError(f"this is no file of Python source, file={file!r}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def resolve(reference: Reference) -> Any:
    """Return what a reference names.  Raises: as `load_module`, RegistrationError."""
    module = load_module(reference.module, reference.file)
    found = _find(module, reference.qualname)
    if found is None:
        raise RegistrationError(
            "the module has no such function; was its file changed? "
            f"module={reference.module!r}, function={reference.qualname!r}"
        )
    return found


def _find(module: ModuleType, qualname: str) -> Any:
    found: Any = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _refusal(what: str, thing: Any, why: str) -> RegistrationError:
    return RegistrationError(
        f"a {what} with spawn=True runs in another process, which cannot find this one: {why}; "
        f"define it by `def` at the top of a module, {what}={thing!r}"
    )
