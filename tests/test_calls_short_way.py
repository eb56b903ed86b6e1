"""Calls in the lane in C: when they go the short way, and that it promises the same."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.shm import lanes
from tests.support.calling import LONG_S, THIS, failure, start
from tests.support.running import adds_up, statistics, until, workers


class Long:
    """Counts what of a caller's calls goes the long way: what is sent by its Sender."""

    def __init__(self, bus: aembus.Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent = 0
        self._send = bus._sender.send
        monkeypatch.setattr(bus._sender, "send", self._count)

    def _count(self, *arguments: Any) -> int:
        self.sent += 1
        return self._send(*arguments)

    def of(self, call: Callable[[], object]) -> bool:
        """Make a call and say whether it went the long way."""
        before = self.sent
        call()
        return self.sent > before


@pytest.mark.skipif(lanes.Publisher is None, reason="the short way is of the lane in C")
def test_the_short_way_is_given_up_when_the_bus_changes(
    bus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call finds out and makes it anew: for another member, and around a tap for good."""
    with aembus.connect(bus) as caller, aembus.connect(bus) as two:
        one = aembus.connect(bus)
        one.register("p", lambda event: 1, group="g")
        one.run_in_thread()
        point = caller.point("p")
        long = Long(caller, monkeypatch)
        assert [long.of(point.call) for _ in range(3)] == [True, False, False]
        assert not long.of(lambda: point.call(key="k", timeout=LONG_S))
        assert long.of(lambda: point.call(redeliver=True))
        two.register("p", lambda event: 2, group="g")
        two.run_in_thread()
        assert sorted(point.call() for _ in range(4)) == [1, 1, 2, 2]
        assert not long.of(point.call)
        one.close()
        assert [point.call() for _ in range(3)] == [2, 2, 2]
        assert not long.of(point.call)
        copies: list[tuple[object, ...]] = []
        caller.tap("p", lambda event, *data: copies.append(data))
        assert [point.call() for _ in range(3)] == [2, 2, 2]
        assert long.of(point.call)
        assert caller.poll() == len(copies) == 4
        two.register("p", lambda event: 3)
        with pytest.raises(aembus.CallFailed, match="use call_all"):
            point.call()


def test_late_answers_on_the_short_way(bus: str) -> None:
    """They are dropped and counted, and later calls get their own."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        may_go_on = threading.Event()
        may_go_on.set()

        def handler(event: aembus.Event, number: int) -> int:
            may_go_on.wait()
            return number

        event = callee.register("p", handler)
        callee.run_in_thread()
        point = caller.point("p")
        assert [point.call(number) for number in range(3)] == [0, 1, 2]
        may_go_on.clear()
        for number in range(2):
            with pytest.raises(aembus.CallTimeout, match="member="):
                point.call(number, timeout=0.01)
        may_go_on.set()
        until("both are answered", lambda: event.statistics().delivered == 5)
        assert caller.statistics().late_replies == 0
        assert [point.call(number) for number in range(3)] == [0, 1, 2]
        assert caller.statistics().late_replies == 2


@pytest.mark.parametrize("runs", [False, True])
def test_two_threads_call_by_the_short_way_at_once(bus: str, runs: bool) -> None:
    """Each gets its own answers, also while a third thread runs their member and takes them."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.register("p", lambda event, number: number)
        callee.run_in_thread()
        if runs:
            caller.run_in_thread()
        point = caller.point("p")
        point.call(0)
        answers: dict[int, list[object]] = {1: [], 2: []}

        def work(thread: int) -> None:
            for number in range(200):
                answers[thread].append(point.call(number * thread, timeout=LONG_S))

        threads = [threading.Thread(target=work, args=(thread,)) for thread in answers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {n: [number * n for number in range(200)] for n in answers}
        assert caller.statistics().late_replies == 0


def test_a_callee_that_is_killed_on_the_short_way(bus_name: str, tmp_path: Path) -> None:
    """As on the long one: what was in hand has failed, and nobody is left waiting."""
    spec = aembus.WorkerSpec("w", f"{THIS}:callee")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as caller,
    ):
        hanging: list[int] = []
        caller.register("hanging", lambda event, pid: hanging.append(pid))
        caller.run_in_thread()
        for _ in range(3):
            assert caller.point("hang").call() == [workers(bus_name)[0]["pid"], 1]
        outcome = start(caller, "hang", 1)
        until("it hangs", lambda: hanging)
        os.kill(hanging[0], signal.SIGKILL)
        assert failure(outcome).error_type == "MemberGone"
        until("the replacement", lambda: workers(bus_name)[0]["pid"] != hanging[0])
        assert caller.point("hang").call(timeout=LONG_S) == [workers(bus_name)[0]["pid"], 1]
        assert adds_up(statistics(bus_name)["totals"])
