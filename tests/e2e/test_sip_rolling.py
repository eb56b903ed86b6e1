from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aembus.control import ControlClient
from tests.support.running import adds_up, sip_responder, statistics, until, workers
from tests.support.sip_load import finished, open_now
from tests.support.sipp import Sipp

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.required_in_ci,
    pytest.mark.skipif(shutil.which("sipp") is None, reason="sipp is not installed"),
]

RATE = 200  # calls a second
LENGTH_MS = 1000  # of each, once it is answered
RING_S = "0.2"


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_sipp_while_workers_are_rolled(
    bus_name: str, free_port: int, tmp_path: Path, seconds: int
) -> None:
    """No call fails while both workers get new code, again and again."""
    calls = seconds * RATE
    with sip_responder(bus_name, free_port, "--ring", RING_S) as responder:
        sipp = Sipp(
            tmp_path, free_port, "-t", "t1", "-m", str(calls), "-r", str(RATE),
            "-d", str(LENGTH_MS), timeout_s=2 * seconds + 60,
        )  # fmt: skip
        until("calls", lambda: all(w["delivered"] > 100 for w in workers(bus_name)))
        control = ControlClient(bus_name)
        switches = []
        stood_s = []
        try:
            while sipp.process.poll() is None and not finished(bus_name, calls):
                for worker in workers(bus_name):
                    before = open_now(bus_name)
                    answer = control.request("roll", name=worker["name"], step_s=20.0)
                    stood_s.append(answer["stood_s"])
                    if not finished(bus_name, calls):
                        switches.append(before)
        finally:
            control.close()
        assert sipp.counts() == (calls, 0)
        now = statistics(bus_name)
        assert responder.end() == 0
    stood_ms = ", ".join(f"{1000 * stood:.0f}" for stood in stood_s)
    print(f"{calls} calls, 0 failed; open at each switch: {switches}; stood for ms: {stood_ms}")
    assert switches
    assert all(min(switch.values()) > 0 for switch in switches), switches
    assert adds_up(now["totals"])
    assert now["supervisor"]["dead_letters"] == 0
