from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import aembus
from aembus.control import ControlClient
from tests.support.running import statistics, until


@contextmanager
def stopped_supervisor(bus: str) -> Iterator[None]:
    """Keep the supervisor from answering inside the block."""
    members = statistics(bus)["members"]
    (pid,) = (member["pid"] for member in members if member["kind"] == "supervisor")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_who_waits_for_an_answer_is_told_that_the_connection_was_closed(bus: str) -> None:
    """By another thread, or by a handler that interrupts: the supervisor has not gone."""
    control = ControlClient(bus)
    caught: list[Exception] = []

    def ask() -> None:
        try:
            control.request("statistics")
        except Exception as error:
            caught.append(error)

    with stopped_supervisor(bus):
        thread = threading.Thread(target=ask)
        thread.start()
        until("the request is under way", lambda: control._answers)
        control.close()
        thread.join()
    assert [type(error) for error in caught] == [aembus.BusClosed]


def test_a_closed_connection_says_so(bus: str) -> None:
    """And what wants no answer is dropped."""
    control = ControlClient(bus)
    control.close()
    with pytest.raises(aembus.BusClosed, match=bus):
        control.request("statistics")
    control.tell("statistics")
