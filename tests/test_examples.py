"""The small examples run as programs, as their docstrings say."""

from __future__ import annotations

import sys
from pathlib import Path

import aembus
from tests.support.running import program, until


def test_billing_is_interrupted_by_events(bus_name: str, tmp_path: Path) -> None:
    """A call that ends meanwhile and a new tariff change the bills of the next round."""
    with (
        aembus.Supervisor(bus_name, state_directory=tmp_path),
        aembus.connect(bus_name) as client,
        program([sys.executable, "-m", "examples.billing", bus_name]) as billing,
    ):
        billing.read_until("alice: 0.08")
        until("the handlers", lambda: client.activate("call.ended", "alice", 3500))
        billing.read_until("alice: 3.00")
        assert client.activate("tariff.changed", 10) == 1
        billing.read_until("alice: 6.00")
