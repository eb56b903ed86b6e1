"""Ctrl-C may raise where a loop goes back to its condition.

From Python 3.12 on the exception table leaves that place out if the loop has a condition that is
evaluated there again: what is raised then passes by the `finally`, `except` or `with` around it.
With ``while True`` and a ``break``, and with ``for``, it does not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import aembus

PACKAGE = Path(aembus.__file__).parent
IN_THE_MAIN_THREAD = sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("shm/*.py")])


def tidies_up(block: ast.AST) -> bool:
    """Say whether a block does something when it is left by whatever exception."""
    if isinstance(block, ast.With | ast.AsyncWith):
        return True
    if not isinstance(block, ast.Try):
        return False
    caught = [ast.unparse(h.type) if h.type else "BaseException" for h in block.handlers]
    return bool(block.finalbody) or "BaseException" in caught


def exposed(node: ast.AST, guarded: bool = False) -> Iterator[int]:
    """Yield the lines of the loops that can be left without the block around them being told."""
    if isinstance(node, ast.While) and guarded and not isinstance(node.test, ast.Constant):
        yield node.lineno
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        guarded = False
    inside = node.body if isinstance(node, ast.Try) else []
    for child in ast.iter_child_nodes(node):
        within = tidies_up(node) and (not inside or child in inside)
        yield from exposed(child, guarded or within)


@pytest.mark.parametrize("module", IN_THE_MAIN_THREAD, ids=lambda path: path.stem)
def test_a_loop_in_a_block_that_tidies_up_has_no_condition(module: Path) -> None:
    """Such a loop is written so that Ctrl-C at its end cannot pass the block by."""
    assert [f"{module.name}:{line}" for line in exposed(ast.parse(module.read_text()))] == []


def test_a_loop_that_is_exposed_is_found() -> None:
    """The one that has a condition, inside of the block, in the same function."""
    source = """
def f():
    try:
        while x():      # 4
            def g():
                while y():
                    pass
        while True:
            with z():
                while y():  # 10
                    pass
    finally:
        while u():
            pass
"""
    assert list(exposed(ast.parse(source))) == [4, 10]
