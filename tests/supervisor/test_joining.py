from __future__ import annotations

from pathlib import Path

import pytest

import aembus
from aembus.shm import layout
from tests.support.running import statistics

SLOTS = 4


@pytest.mark.parametrize("name", ["", "switch"])
def test_who_cannot_join_keeps_no_slot(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A process that is refused by what it finds, and lives on, may try as often as it likes."""
    with aembus.Supervisor(bus_name, slots=SLOTS, state_directory=tmp_path):
        with monkeypatch.context() as other_release:
            other_release.setattr(layout, "LAYOUT_VERSION", layout.LAYOUT_VERSION + 1)
            for _ in range(2 * SLOTS):
                with pytest.raises(aembus.VersionMismatch):
                    aembus.connect(bus_name, name=name, keep=0.0)
        with aembus.connect(bus_name, name=name) as bus:
            members = statistics(bus_name)["members"]
            assert [member["slot"] for member in members] == [0, bus.slot]
