"""A million records from one process to another, each with its number and a checksum."""

from __future__ import annotations

import subprocess
import sys
import time
from types import ModuleType

import pytest

from aembus.shm import layout
from aembus.shm.doorbell import fence
from tests.support.lanes import implementations, use
from tests.support.million import PAUSE_EVERY, PRODUCER_SLOT, number_of, payload_of
from tests.support.running import ROOT
from tests.support.shared import inbox_made, inbox_open, peer_open

RECORDS = 1_000_000
LANE_BYTES = 64 * 1024


@pytest.mark.parametrize("module", implementations(), ids=lambda module: module.IMPLEMENTATION)
def test_a_million_records_arrive_whole_once_and_in_order(
    bus_name: str, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    """Nothing is lost, doubled, reordered or torn, and every sleep is ended by its post."""
    use(monkeypatch, module)
    expected = corrupted = reordered = sleeps = 0
    began = time.perf_counter()
    with (
        inbox_made(bus_name, 0, lane_bytes=LANE_BYTES),
        inbox_made(bus_name, 1, lane_bytes=LANE_BYTES),
        inbox_open(bus_name, 0) as inbox,
        peer_open(bus_name, 0, 1) as producer_bell,
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.million",
                bus_name,
                module.__name__,
                str(RECORDS),
            ],
            cwd=ROOT,
        ) as producer,
    ):
        while expected < RECORDS:
            if not inbox.has_jobs():
                assert inbox.wait(inbox.has_jobs, 30.0), f"nothing came any more after {expected}"
                sleeps += 1
            for lane, budget in inbox.turn():
                take, start, done = lane.take, lane.start, lane.done
                for _ in range(budget):
                    record = take()
                    if record is None:
                        break
                    start(record)
                    number = number_of(record.payload)
                    corrupted += number < 0
                    reordered += number != expected or record.sequence != expected + 1
                    expected += 1
                    done(record)
            for slot in inbox.producers_wanting_room():
                assert slot == PRODUCER_SLOT
                fence()
                producer_bell.ring()
        assert not inbox.has_jobs()
        assert not inbox.wait(inbox.has_jobs, 0.05)
        assert producer.wait(30) == 0
        rescued = inbox._words[layout.RESCUED_WAKEUPS // layout.WORD]
    took_s = time.perf_counter() - began
    print(f"{module.IMPLEMENTATION}: records={expected}, sleeps={sleeps}, took_s={took_s:.1f}")
    assert (corrupted, reordered, rescued) == (0, 0, 0)
    assert sleeps >= RECORDS // PAUSE_EVERY


def test_the_checks_of_the_test_would_notice() -> None:
    """A payload that lost, gained or changed a byte is taken for corrupt."""
    for number in (0, 1, 96, 97, 999_999):
        payload = payload_of(number)
        assert number_of(payload) == number
        assert number_of(payload[:-1]) == -1
        assert number_of(payload + b"\0") == -1
        for position in range(len(payload)):
            changed = bytearray(payload)
            changed[position] ^= 1
            assert number_of(bytes(changed)) == -1
