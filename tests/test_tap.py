from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aembus
from tests.cli.support import AEMBUS, environment
from tests.support.running import adds_up, statistics, until

pytestmark = pytest.mark.parametrize("lane", ["c", "python"], indirect=True)

TAPPER = """
import sys, aembus
with aembus.connect(sys.argv[1]) as bus:
    bus.tap("p", lambda event, *data: None)
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which lane the processes that a test starts have; this one keeps its own."""
    chosen: str = request.param
    monkeypatch.setenv("AEMBUS_LANE", chosen)
    return chosen


@pytest.fixture
def bus(bus_name: str, tmp_path: Path, lane: str) -> Iterator[str]:
    """A running bus with small lanes and nobody on it; its name."""
    with aembus.Supervisor(
        bus_name, lane_bytes=4096, state_directory=tmp_path, log_level="CRITICAL"
    ):
        yield bus_name


def member(bus: str, name: str) -> dict[str, Any]:
    """Return a member as the statistics show it."""
    found: dict[str, Any] = next(m for m in statistics(bus)["members"] if m["name"] == name)
    return found


def test_copies_are_nobodys_concern(bus: str) -> None:
    """A tap sees each job, whether anybody is registered or not; activations do not count it."""
    with aembus.connect(bus) as tapper, aembus.connect(bus) as user:
        seen: list[Any] = []
        tapper.tap("p", lambda event, *data: seen.append((event.job.key, data)))
        assert user.activate("p", 1) == 0
        got: list[int] = []
        user.register("p", lambda event, number: got.append(number))
        assert user.activate("p", 2) == 1
        assert user.point("p").try_activate(3)
        while user.poll():
            pass
        assert got == [2, 3]
        until("three copies", lambda: tapper.poll(0.05) * 0 or len(seen) == 3)
        assert [data for _, data in seen] == [(1,), (2,), (3,)]
        tapper.close()
        assert user.activate("p", 4) == 1
        assert adds_up(statistics(bus)["totals"])


def test_calls_pass_taps_over(bus: str) -> None:
    """A call has its one answer; the tap sees what was asked."""
    with aembus.connect(bus) as tapper, aembus.connect(bus) as user, aembus.connect(bus) as callee:
        seen: list[Any] = []
        tapper.tap("p", lambda event, *data: seen.append(data))
        callee.register("p", lambda event, number: 2 * number)
        callee.run_in_thread()
        assert user.point("p").call(21) == 42
        assert [answer.value for answer in user.point("p").call_all(1)] == [2]
        until("its copy", lambda: tapper.poll(0.05) * 0 or seen == [(21,)])


def test_a_tap_that_never_looks_slows_nobody(bus: str) -> None:
    """What it has no room for is dropped, and counted; what it had is forgotten when it goes."""
    with aembus.connect(bus) as user:
        with aembus.connect(bus, name="tapper", keep=0) as tapper:
            tapper.tap("p", lambda event, *data: None)
            tapper.publish_registrations()
            for number in range(200):
                assert user.activate("p", number, timeout=0.0) == 0
            found = member(bus, "tapper")
            assert found["queued"] > 0
            assert found["queued"] + found["dropped"] == 200
            assert tapper.statistics().dropped == found["dropped"]
        now = statistics(bus)
        assert adds_up(now["totals"])
        assert (now["totals"]["dead_lettered"], now["supervisor"]["dead_letters"]) == (0, 0)


def test_a_tap_that_raises_makes_no_dead_letters(
    bus: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its exception is logged; the copy is done."""
    with aembus.connect(bus) as tapper, aembus.connect(bus) as user:

        def fail(event: aembus.Event, *data: Any) -> None:
            raise ValueError("not today")

        tapper.tap("p", fail)
        user.activate("p", 1)
        until("handled", lambda: tapper.poll(0.05) == 1)
        assert "not today" in caplog.text
        assert statistics(bus)["totals"]["dead_lettered"] == 0


def test_a_tap_may_be_async(bus: str) -> None:
    """It is awaited where the bus is served; what it raises is logged, as that nobody serves it."""
    seen: list[int] = []

    async def look(event: aembus.Event, number: int) -> None:
        await asyncio.sleep(0)
        seen.append(10 // number)
        if number == 1:
            looker.stop()

    with aembus.connect(bus) as looker, aembus.connect(bus) as sender:
        looker.tap("p", look)
        sender.activate("p", 5)
        assert looker.poll(10.0) == 1
        for number in (2, 0, 1):
            sender.activate("p", number)
        asyncio.run(asyncio.wait_for(looker.serve(), 10.0))
    assert seen == [5, 10]
    totals = statistics(bus)["totals"]
    assert (totals["dead_lettered"], totals["queued"]) == (0, 0)
    assert adds_up(totals)


def test_a_tap_that_is_killed(bus: str, tmp_path: Path) -> None:
    """Takes its copies along: they are no dead letters, and the sums agree."""
    with aembus.connect(bus) as user:
        with subprocess.Popen(
            [AEMBUS[0], "-c", TAPPER, bus], env=environment(tmp_path),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as tapper:  # fmt: skip
            assert tapper.stdout is not None
            assert tapper.stdout.readline() == "there\n"
            for number in range(100):
                user.activate("p", number)
            os.kill(tapper.pid, signal.SIGKILL)
            tapper.wait()
        until("it is gone", lambda: len(statistics(bus)["members"]) == 2)
        now = statistics(bus)
        assert adds_up(now["totals"])
        assert (now["totals"]["dead_lettered"], now["totals"]["queued"]) == (0, 0)
        assert user.activate("p", 1) == 0


def test_trace(bus: str, tmp_path: Path) -> None:
    """`aembus trace` shows a line for each job, and ends after as many as were asked for."""
    with aembus.connect(bus) as user:
        command = [*AEMBUS, "trace", "p", "--bus", bus, "--count", "2"]
        for options in ([], ["--json"]):
            with subprocess.Popen(
                [*command, *options], env=environment(tmp_path), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ) as trace:  # fmt: skip
                until(
                    "it looks",
                    lambda: any(p["name"] == "p" for p in statistics(bus)["points"]),
                )
                user.activate("p", "c1", b"\x00" * 200, key="c1")
                user.activate("p", "c2", key="c2")
                out, said = trace.communicate(timeout=20)
            lines = out.splitlines()
            assert (trace.returncode, len(lines)) == (0, 2)
            assert user.member_name in lines[0]
            if options:
                assert json.loads(lines[1])["data"] == ["c2"]
            else:
                assert lines[0].endswith("...")
                assert "'c2'" in lines[1]
                assert "2 jobs shown, 0 dropped" in said
            until("it has left", lambda: len(statistics(bus)["members"]) == 2)
