"""A callee as a worker's entry point, and calls that are made in a thread of their own."""

from __future__ import annotations

import os
import threading
from typing import Any

import aembus
from tests.support.running import until

THIS = "tests.support.calling"
LONG_S = 60.0  # a time-out that no test waits for


def callee(bus: aembus.Bus) -> None:
    """Entry point: handlers that answer, call others, or wait to be killed."""

    @bus.on("pid", group="workers")
    def pid(event: aembus.Event) -> int:
        return os.getpid()

    @bus.on("name")
    def name(event: aembus.Event, *data: object) -> list[object]:
        return [bus.member_name, *data]

    @bus.on("hang", group="workers")
    def hang(event: aembus.Event, *attempts: int) -> list[int]:
        assert event.job is not None
        if event.job.attempt in attempts:
            bus.activate("hanging", os.getpid())
            threading.Event().wait()
        return [os.getpid(), event.job.attempt]

    @bus.on("relay", group="workers")
    def relay(event: aembus.Event, point: str, *data: object) -> object:
        return bus.point(point).call(*data, timeout=LONG_S)


def start(bus: aembus.Bus, point: str, *data: object, **options: Any) -> list[object]:
    """Call in a thread; return a list that gets the result or the error."""
    outcome: list[object] = []

    def call() -> None:
        try:
            outcome.append(bus.point(point).call(*data, timeout=LONG_S, **options))
        except aembus.AembusError as error:
            outcome.append(error)

    threading.Thread(target=call).start()
    return outcome


def failure(outcome: list[object]) -> aembus.CallFailed:
    """Return what a call of `start` failed with."""
    until("an outcome", lambda: outcome)
    (error,) = outcome
    assert isinstance(error, aembus.CallFailed)
    return error
