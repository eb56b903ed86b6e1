from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.support.lanes import implementations, use
from tests.support.shared import Household


@pytest.fixture(params=implementations(), ids=lambda module: module.IMPLEMENTATION)
def lane_module(request: pytest.FixtureRequest) -> ModuleType:
    """An implementation of the lane."""
    module: ModuleType = request.param
    return module


@pytest.fixture
def each_lane(lane_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every implementation of the lane in turn; else a test has the one that is in use."""
    use(monkeypatch, lane_module)


@pytest.fixture
def household(bus_name: str) -> Iterator[Household]:
    """An inbox and those who write into it."""
    with contextlib.ExitStack() as stack:
        yield Household(bus_name, stack)
