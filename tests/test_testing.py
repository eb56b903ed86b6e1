"""aembus.testing: handlers are tested without processes, and without time passing."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import aembus
from aembus.testing import DeadJob, InProcessBus, Sequencer


@dataclass
class Order:
    """Data of a typed point."""

    number: int
    item: str = "tea"


@pytest.fixture
def bus() -> Iterator[InProcessBus]:
    """A bus without processes."""
    with InProcessBus() as bus:
        yield bus


def test_nothing_happens_by_itself(bus: InProcessBus) -> None:
    """Jobs are delivered by `deliver`, in order, one at a time, and all that they lead to."""
    seen: list[str] = []

    def main(worker: aembus.Bus) -> None:
        @worker.on("first")
        def first(event: aembus.Event, number: int) -> None:
            seen.append(f"first {number}")
            assert worker.activate("second", number) == 1

        @worker.on("second")
        def second(event: aembus.Event, number: int) -> None:
            assert event.job is not None
            assert event.job.attempt == 1
            seen.append(f"second {number}")

    worker = bus.start(main)
    client = bus.connect()
    assert [client.activate("first", n) for n in range(2)] == [1, 1]
    assert seen == []
    assert bus.deliver() == 4
    assert seen == ["first 0", "first 1", "second 0", "second 1"]
    assert worker.statistics().event_struct.delivered == 4


def test_retries_by_the_clock_and_dead_letters(bus: InProcessBus) -> None:
    """The pauses double, at the second; what is given up is listed with its data and reason."""
    at: list[float] = []
    began = bus.clock()

    def fail(event: aembus.Event, what: str) -> None:
        at.append(bus.clock() - began)
        raise ValueError(what)

    member = bus.connect()
    member.register("p", fail, name="fail", retries=3, backoff=1.0)
    member.activate("p", "x")
    bus.deliver()
    assert at == [0.0]
    assert bus.advance(0.5) == 0
    bus.advance(10.0)
    assert at == [0.0, 1.0, 3.0, 7.0]
    assert bus.clock() - began == 10.5
    assert bus.dead_letters == [DeadJob("p", "fail", ("x",), "its handler raised")]


def test_timers_by_the_clock(bus: InProcessBus) -> None:
    """The real timer service: once, periodically, at a point, cancelled; an hour takes no time."""
    at: list[tuple[str, float]] = []
    began = bus.clock()
    member = bus.connect()
    member.register("p", lambda event, name: at.append((name, bus.clock() - began)))
    timer = member.service("timer")
    timer.after(3600.0, lambda event: at.append(("after", bus.clock() - began)))
    every = timer.every(1500.0, "p", "every", name="tick")
    timer.after(10.0, "p", "never").cancel()
    bus.advance(3599.0)
    every.cancel()
    bus.advance(1e6)
    assert [name for name, _ in at] == ["every", "every", "after"]
    assert [when for _, when in at] == pytest.approx([1500.0, 3000.0, 3600.0], abs=0.01)


def test_calls_and_their_time_outs(bus: InProcessBus) -> None:
    """Who calls lets the others go on, and time pass where nobody has anything to do."""
    callee, caller = bus.connect(), bus.connect()
    callee.register("double", lambda event, n: 2 * n)
    callee.register("relay", lambda event, n: callee.point("inner").call(n) + 1)
    other = bus.connect()
    other.register("inner", lambda event, n: n * 10)
    held: list[aembus.Job] = []

    def hold(event: aembus.Event) -> None:
        assert event.job is not None
        event.job.hold()
        held.append(event.job)

    callee.register("hold", hold)
    assert caller.point("double").call(21) == 42
    assert caller.point("relay").call(2) == 21
    began = bus.clock()
    with pytest.raises(aembus.CallTimeout):
        caller.point("hold").call(timeout=5.0)
    assert bus.clock() - began == 5.0
    held[0].done("late")
    bus.deliver()
    caller.point("double").call(1)
    assert caller.statistics().late_replies == 1
    with pytest.raises(aembus.CallFailed, match="nobody to call"):
        caller.point("nothing").call()


def test_groups_once_close_and_leaving(bus: InProcessBus) -> None:
    """Turns, a one-shot, and what is queued for who has closed: its group, or a dead letter."""
    seen: list[str] = []
    one, two, client = bus.connect(), bus.connect(), bus.connect()
    for name, member in (("one", one), ("two", two)):
        member.register("g", lambda event, who=name: seen.append(who), group="g")
    for _ in range(2):
        client.activate("g")
    bus.deliver()
    assert sorted(seen) == ["one", "two"]
    for _ in range(2):
        client.activate("g")
    one.close()
    bus.deliver()
    assert seen.count("two") == 3
    two.register("once", lambda event: seen.append("once"), once=True)
    client.activate("once")
    client.activate("once")
    bus.deliver()
    assert seen.count("once") == 1
    assert [letter.point for letter in bus.dead_letters] == ["once"]
    assert client.activate("once") == 0


def test_what_a_leaver_held_or_would_have_tried_again_is_dead(bus: InProcessBus) -> None:
    """As on a bus with processes: it does not go to the group, and is not lost."""
    one, two = bus.connect(), bus.connect()

    def hold(event: aembus.Event, number: int) -> None:
        assert event.job is not None
        event.job.hold()

    def fail(event: aembus.Event, number: int) -> None:
        raise RuntimeError("on purpose")

    one.register("held", hold, group="g")
    one.register("failed", fail, group="g", retries=1, backoff=100.0)
    two.activate("held", 1)
    two.activate("failed", 2)
    bus.deliver()
    for point in ("held", "failed"):
        two.register(point, print, group="g")
    one.close()
    assert bus.deliver() == 0
    assert [(letter.point, letter.data) for letter in bus.dead_letters] == [
        ("held", (1,)),
        ("failed", (2,)),
    ]


def test_typed_points_async_handlers_and_refusals(bus: InProcessBus) -> None:
    """What handlers can be elsewhere, they can be here."""
    member = bus.connect()
    orders = member.point("order", Order)

    async def take(event: aembus.Event, order: Order) -> str:
        await asyncio.sleep(0)
        assert event.job is not None
        if order.number < 0:
            raise aembus.Refused("no such order")
        return f"{order.item} {order.number}"

    event = member.register(orders, take)
    client = bus.connect()
    assert client.point("order", Order).call(Order(1)) == "tea 1"
    with pytest.raises(aembus.CallFailed, match="no such order"):
        client.point("order", Order).call(Order(-1))
    assert event.statistics().refused == 1


def test_a_job_that_comes_too_late(bus: InProcessBus) -> None:
    """`ttl` goes by the clock of the test."""
    member = bus.connect()
    member.register("p", lambda event: None)
    member.activate("p", ttl=5.0)
    member.point("p").activate(ttl=20.0)
    bus.clock.set(bus.clock() + 10.0)
    bus.deliver()
    assert len(bus.dead_letters) == 1


def test_what_does_not_end_is_told(bus: InProcessBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that activate one another for ever are an error, not a hang."""
    monkeypatch.setattr("aembus.testing.in_process.TURNS_MAX", 100)
    member = bus.connect()
    member.register("p", lambda event: member.activate("p") and None)
    member.activate("p")
    with pytest.raises(aembus.AembusError, match="without an end"):
        bus.deliver()


def test_nothing_is_shared() -> None:
    """No name in /dev/shm, no thread, and the clock does not go back."""
    threads = threading.active_count()
    with InProcessBus() as bus:
        bus.connect("named").register("p", print)
        assert not [name for name in os.listdir("/dev/shm") if bus.name in name]
        assert threading.active_count() == threads
        with pytest.raises(ValueError, match="does not go back"):
            bus.clock.set(0.0)


def test_a_wait_for_ever_ends_where_nothing_will_happen() -> None:
    """A call without a time-out to who never answers is an error of the test, and no hang."""
    with InProcessBus() as bus:
        bus.connect().register("p", lambda event: event.job.hold())
        with pytest.raises(aembus.AembusError, match="this waits for ever"):
            bus.connect().point("p").call(timeout=math.inf)


def test_a_sequencer_orders_steps_of_threads() -> None:
    """Each block comes in its turn, whichever thread it is in."""
    sequencer = Sequencer()
    seen: list[int] = []

    def steps(numbers: list[int]) -> None:
        for number in numbers:
            with sequencer(number):
                seen.append(number)

    threads = [threading.Thread(target=steps, args=(n,)) for n in ([2, 3, 7], [0, 4, 5], [1, 6])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == list(range(8))


def test_a_sequencer_tells_when_the_order_cannot_be_kept() -> None:
    """A block that raised, that never comes, or that comes twice."""
    sequencer = Sequencer()
    with pytest.raises(ZeroDivisionError), sequencer(0):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="waited for=0"), sequencer(1):
        pass
    with pytest.raises(RuntimeError, match="number=1"), sequencer(1):
        pass
    with pytest.raises(RuntimeError, match=r"timeout_s=0\.01"), Sequencer(0.01)(1):
        pass
