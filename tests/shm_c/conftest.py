"""What the tests of this folder share."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.support.delivery import Bench, Slotted
from tests.support.lanes import implementations


@pytest.fixture(params=implementations(), ids=lambda module: module.IMPLEMENTATION)
def lane_module(request: pytest.FixtureRequest) -> ModuleType:
    """An implementation of the lane."""
    module: ModuleType = request.param
    return module


@pytest.fixture(params=["dictionary", "slots"])
def event_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the events keep what `deliver` needs of them."""
    if request.param == "slots":
        monkeypatch.setattr(Bench, "make_event", Slotted)
