"""The supervisor's event loop: uvloop or asyncio's own, and how many descriptors it may open."""

from __future__ import annotations

import asyncio
import importlib.util
import resource

import pytest

import aembus
from aembus.services.base import Caller, Service, call

MODULES = {"asyncio": "asyncio.unix_events", "uvloop": "uvloop"}


class Loop(Service):
    """A service that says where it runs."""

    name = "loop"
    version = "1"

    @call
    def describe(self, caller: Caller) -> list[object]:
        """Return the loop's module, and the limit of descriptors."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return [type(asyncio.get_running_loop()).__module__, limit]


@pytest.mark.parametrize("wanted", ["asyncio", "uvloop", ""])
def test_the_loop_is_chosen(
    bus_name: str, wanted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    """By AEMBUS_LOOP; without it uvloop, if it is installed.  Descriptors: as many as may be."""
    found = importlib.util.find_spec("uvloop") is not None
    if wanted == "uvloop" and not found:
        pytest.skip("uvloop is not installed")
    monkeypatch.setenv("AEMBUS_LOOP", wanted)
    service = "tests.hosting.test_event_loop:Loop"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        aembus.Supervisor(bus_name, services=[service], state_directory=str(tmp_path)),
        aembus.connect(bus_name) as bus,
    ):
        module, limit = bus.service("loop").describe()
    assert module == MODULES[wanted or ("uvloop" if found else "asyncio")]
    assert limit == hard


def test_a_loop_that_does_not_exist_is_told(bus_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable and what it may be."""
    monkeypatch.setenv("AEMBUS_LOOP", "turbo")
    with (
        pytest.raises(aembus.SupervisorError, match=r"'asyncio' or 'uvloop'.*'turbo'"),
        aembus.Supervisor(bus_name),
    ):
        pass
