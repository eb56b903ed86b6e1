"""A thread may be about to use a short way whose lanes another one closes: it goes the long way."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from aembus.codec import decode, encode
from aembus.errors import BusClosed
from aembus.picking import IN_TURN
from aembus.shm.inbox import Inbox
from tests.support.lanes import implementations, use
from tests.support.senders import Activator, Registry
from tests.support.shared import inbox_made, inbox_open, take_turn


@pytest.fixture(params=implementations(), ids=lambda module: module.IMPLEMENTATION)
def inbox(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, bus_name: str
) -> Iterator[Inbox]:
    """The inbox of the only member that is concerned."""
    use(monkeypatch, request.param)
    with inbox_made(bus_name, 0), inbox_open(bus_name, 0) as inbox:
        yield inbox


@pytest.fixture
def alone(bus_name: str, inbox: Inbox) -> Iterator[Activator]:
    """A sender that has made its short way."""
    alone = Activator(bus_name, Registry({0: 0}, [(1, 0, None)]))
    assert [alone.activate("before") for _ in range(2)] == [1, 1]
    take_turn(inbox)
    yield alone
    alone.sender.close()


def test_it_ends_where_activations_are_held_back(alone: Activator, inbox: Inbox) -> None:
    """Behind that nothing is published by lanes that were closed; activations go on."""
    publisher = alone.route.publisher
    assert publisher is not None
    with alone.sender.held_back():
        pass
    assert publisher.publish(encode(["late"]), IN_TURN) == 0
    assert alone.activate("behind") == 1
    assert [decode(record.payload) for record in take_turn(inbox)] == [["behind"]]


def test_it_ends_where_the_sender_is_closed(alone: Activator, inbox: Inbox) -> None:
    """Whoever comes too late is told that the bus is closed."""
    publisher = alone.route.publisher
    assert publisher is not None
    alone.sender.close()
    assert publisher.publish(encode(["late"]), IN_TURN) == 0
    with pytest.raises(BusClosed):
        alone.activate("late")
    assert take_turn(inbox) == []


def test_it_ends_for_who_waits_at_the_lock(alone: Activator, inbox: Inbox) -> None:
    """A thread that came before the bus was closed gets its job through, or BusClosed."""
    outcomes: list[object] = []

    def activate() -> None:
        try:
            outcomes.append(alone.activate("one"))
        except BusClosed:
            outcomes.append("closed")

    threads = [threading.Thread(target=activate) for _ in range(4)]
    with alone.sender._gate.lock:
        for thread in threads:
            thread.start()
        alone.sender.close()
    for thread in threads:
        thread.join()
    jobs = len(take_turn(inbox))
    assert sorted(outcomes, key=str) == [1] * jobs + ["closed"] * (4 - jobs)
