"""What the tests with scenes share."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.scene import Scene, new_seed


@pytest.fixture(autouse=True)
def no_core_files() -> Iterator[None]:
    """Processes that are made to crash shall leave no core behind."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test's chance, printed when the test fails: AEMBUS_CRASH_SEED sets it."""
    chosen = new_seed()
    print(f"seed {chosen}; play it again: {replay(request.node.nodeid, chosen)}")
    return chosen


@pytest.fixture
def make_scene(
    request: pytest.FixtureRequest, bus_name: str, tmp_path: Path, seed: int
) -> Callable[..., Scene]:
    """Returns what makes a scene, which the test enters."""

    def make(**options: Any) -> Scene:
        return Scene(bus_name, tmp_path, seed, replay=replay(request.node.nodeid, seed), **options)

    return make


def replay(test: str, seed: int) -> str:
    """Return the command that runs a test again with the same chance."""
    return f"AEMBUS_CRASH_SEED={seed} python -m pytest '{test}'"
