"""Texts that are no Unicode: what os.fsdecode makes of a name that is no UTF-8, for instance."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import aembus
from tests.support.running import until, workers

NAME = os.fsdecode(b"caf\xe9")
SHOWN = "caf\\udce9"


def raises(bus: aembus.Bus) -> None:
    """Entry point that cannot find what it needs."""
    raise LookupError(NAME)


def fails(bus: aembus.Bus) -> None:
    """Entry point: a handler that fails for a reason that is no Unicode; its arguments are not."""
    assert sys.argv[1:] == [NAME]

    @bus.on("hold")
    def hold(event: aembus.Event) -> None:
        assert event.job is not None
        event.job.hold()
        event.job.fail(NAME)


def test_what_an_entry_point_raises_is_told(bus_name: str, tmp_path: Path) -> None:
    """With what cannot be written as its escape."""
    spec = aembus.WorkerSpec("w", f"{__name__}:raises")
    with (
        pytest.raises(aembus.SupervisorError) as refused,
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
    ):
        pass
    assert f"LookupError: {SHOWN}" in str(refused.value)


def test_why_a_job_has_failed_is_kept(bus_name: str, tmp_path: Path) -> None:
    """It ends no worker, and the state directory may be called so, too."""
    spec = aembus.WorkerSpec("w", f"{__name__}:fails", arguments=(NAME,))
    state = tmp_path / NAME
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=state),
        aembus.connect(bus_name) as client,
        aembus.DeadLetterBox(bus_name) as box,
    ):
        client.activate("hold")
        until("it is kept", box.list)
        assert [letter["reason"] for letter in box.list()] == [f"failed: {SHOWN}"]
        assert [worker["restarts"] for worker in workers(bus_name)] == [0]
    assert state.is_dir()
