"""Event loops of either kind, for tests that run in both."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest


def make_lasting_descriptors() -> None:
    """Have uvloop make, before any test, the pipe that it keeps for the rest of the process."""
    try:
        import uvloop
    except ImportError:
        return
    uvloop.run(asyncio.sleep(0))


def loop_runners() -> list[Any]:
    """Return `asyncio.run` and its like of uvloop, as parameters; skipped where it is not."""
    try:
        import uvloop
    except ImportError:
        missing = pytest.mark.skip(reason="uvloop is not installed")
        return [pytest.param(asyncio.run, id="asyncio"), pytest.param(None, marks=missing)]
    return [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
