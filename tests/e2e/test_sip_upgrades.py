from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest

import aembus
from tests.support.running import adds_up, sip_responder, statistics, until, workers
from tests.support.sip_load import calls_begun, finished, open_now
from tests.support.sipp import Sipp

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.required_in_ci,
    pytest.mark.skipif(shutil.which("sipp") is None, reason="sipp is not installed"),
]

RATE = 200  # calls a second
LENGTH_MS = 1000  # of each, once it is answered
RING_S = "0.2"
CALLS_BETWEEN = 100  # two upgrades


@pytest.mark.parametrize("service", ["timer", "tcp"])
@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_sipp_while_a_service_is_upgraded_with_hand_over(
    bus_name: str, free_port: int, tmp_path: Path, seconds: int, service: str
) -> None:
    """No call fails while timers, or connections, pass from version to version under load."""
    calls = seconds * RATE
    with sip_responder(bus_name, free_port, "--ring", RING_S) as responder:
        sipp = Sipp(
            tmp_path, free_port, "-t", "tn", "-max_socket", "1000", "-m", str(calls),
            "-r", str(RATE), "-d", str(LENGTH_MS), timeout_s=2 * seconds + 60,
        )  # fmt: skip
        until("calls", lambda: all(w["delivered"] > 100 for w in workers(bus_name)))
        switches, pauses_ms = [], []
        with aembus.ServiceBox(bus_name) as box:
            while sipp.process.poll() is None:
                before = open_now(bus_name)
                change = box.upgrade(service, hand_over=True)
                if finished(bus_name, calls):
                    break
                switches.append(before)
                pauses_ms.append(round(1000 * change.pause_s, 1))
                next_at = min(calls_begun(bus_name) + CALLS_BETWEEN, calls)
                until("more calls", functools.partial(finished, bus_name, next_at))
            until("the old versions are gone", lambda: len(box.list()) == 2)
        assert sipp.counts() == (calls, 0)
        now = statistics(bus_name)
        assert responder.end() == 0
    print(
        f"{service}: {calls} calls, 0 failed; {len(switches)} upgrades, which took "
        f"{min(pauses_ms)} to {max(pauses_ms)} ms; open at each switch: {switches}"
    )
    assert all(min(switch.values()) > 0 for switch in switches), switches
    assert adds_up(now["totals"])
    assert now["supervisor"]["dead_letters"] == 0
