"""What `aembus` exports, and that `aembus/__init__.py` does nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import aembus
from aembus import errors

FILE = Path(__file__).parent.parent / "aembus" / "__init__.py"
TREE = ast.parse(FILE.read_text())


def reexported() -> dict[str, ast.ImportFrom]:
    """Return the names that the file imports from aembus, TYPE_CHECKING ones included."""
    return {
        alias.asname or alias.name: node
        for statement in TREE.body  # what `__getattr__` imports for itself does not count
        if not isinstance(statement, ast.FunctionDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aembus")
        for alias in node.names
    }


def test_all_is_sorted_and_names_everything_once() -> None:
    """What is imported to be exported is in `__all__`, and nothing else is."""
    assert list(aembus.__all__) == sorted(reexported())


def test_every_error_is_public() -> None:
    """Whatever aembus raises can be caught by a public name."""
    raised = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.AembusError)
    }
    assert raised - set(aembus.__all__) == set()


@pytest.mark.parametrize("name", aembus.__all__)
def test_every_public_name_resolves(name: str) -> None:
    """Also those that are only loaded when asked for."""
    assert getattr(aembus, name) is not None


def test_every_public_name_is_listed() -> None:
    """`dir` and completion show also those that are only loaded when asked for."""
    assert set(aembus.__all__) <= set(dir(aembus))


def test_other_names_do_not_resolve() -> None:
    """The lazy lookup ends in an AttributeError that says the name."""
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(aembus, "no_such_name")  # noqa: B009  # mypy would refuse the plain attribute


def test_names_are_imported_under_their_own_name() -> None:
    """`from x import Y as Y`: the form that says "this is an export" to type checkers."""
    wrong = [
        f"line {node.lineno}: {name}"
        for name, node in reexported().items()
        if not any(alias.asname == alias.name == name for alias in node.names)
    ]
    assert wrong == []


def test_the_file_holds_reexports_and_nothing_else() -> None:
    """Imports, `__all__`, `__version__`, the docstring, the lazy lookup and its list."""
    others = [ast.unparse(node).splitlines()[0] for node in TREE.body if not is_expected(node)]
    assert others == []


def is_expected(node: ast.stmt) -> bool:
    """Say whether a file of re-exports may hold this statement."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef(name="__getattr__" | "__dir__"):
            return True
        case ast.Expr(value=ast.Constant(value=str())):
            return node is TREE.body[0]
        case ast.Assign(targets=[ast.Name(id="__all__" | "__version__")]):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=[]):
            return all(isinstance(inner, ast.ImportFrom) for inner in body)
        case _:
            return False
