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
from aembus.services.base import Caller, Service, call
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


def test_async_handlers_call_one_another_also_in_an_async_test(bus: InProcessBus) -> None:
    """Each has an event loop of its own, whatever runs around it."""
    one, two, client = bus.connect(), bus.connect(), bus.connect()

    async def ask(event: aembus.Event, number: int) -> int:
        await asyncio.sleep(0)
        answer: int = one.point("double").call(number)
        await asyncio.sleep(0)
        return answer + 1

    async def double(event: aembus.Event, number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    one.register("ask", ask)
    two.register("double", double)

    async def test() -> int:
        answer: int = client.point("ask").call(21)
        await asyncio.sleep(0)
        return answer

    assert asyncio.run(test()) == 43


def test_an_async_handler_may_complete_its_job_itself(bus: InProcessBus) -> None:
    """That is no failure, as where the bus is served."""
    member = bus.connect()

    async def answer(event: aembus.Event) -> None:
        assert event.job is not None
        event.job.done("early")

    event = member.register("p", answer)
    assert bus.connect().point("p").call() == "early"
    bus.deliver()
    assert event.statistics() == aembus.EventStatistics(delivered=1, failed=0)


def test_who_polls_or_runs_lets_the_others_go_on(bus: InProcessBus) -> None:
    """And the clock, up to what comes, or the end of the time-out; to wait for ever is an error."""
    one, two = bus.connect(), bus.connect()
    began = bus.clock()
    at: list[float] = []

    def fail(event: aembus.Event) -> None:
        at.append(bus.clock() - began)
        if len(at) == 3:
            one.stop()
        raise RuntimeError("on purpose")

    one.register("p", fail, retries=9, backoff=1.0)
    assert one.poll(5.0) == 0
    assert bus.clock() - began == 5.0
    two.service("timer").after(5.0, lambda event: two.activate("p"))
    assert one.poll(8.0) == 1
    assert at == pytest.approx([10.0], abs=0.01)
    assert one.poll(8.0) == 1
    assert at[1] == at[0] + 1.0
    one.run()
    assert at[2] == at[1] + 2.0
    with pytest.raises(aembus.AembusError, match="this waits for ever"):
        two.run()


def test_a_member_that_a_thread_runs_is_told(bus: InProcessBus) -> None:
    """It is none of the test's one thread, so nothing is delivered to it in its turn."""
    member = bus.connect()
    member.register("p", print)
    member.run_in_thread()
    try:
        with pytest.raises(aembus.AembusError, match="a thread runs this bus already"):
            bus.deliver()
    finally:
        member.close()


def test_time_passes_also_where_somebody_cannot_go_on(bus: InProcessBus) -> None:
    """What is due to who waits in a handler, or was stopped, keeps nobody's clock."""
    one, two = bus.connect(), bus.connect()
    failed: list[str] = []

    def fail(event: aembus.Event) -> None:
        raise RuntimeError("on purpose")

    def ask(event: aembus.Event) -> None:
        try:
            one.point("held").call(timeout=5.0)
        except aembus.CallTimeout:
            failed.append("timed out")

    one.register("fail", fail, retries=1, backoff=1.0)
    one.register("ask", ask)
    two.register("held", lambda event: event.job.hold())
    two.activate("fail")
    two.activate("ask")
    began = bus.clock()
    bus.deliver()
    assert failed == ["timed out"]
    assert bus.clock() - began == 5.0
    two.activate("fail")
    bus.deliver()
    one.stop()
    bus.advance(10.0)
    assert bus.clock() - began == 15.0


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("sibling", [True, False])
def test_the_callers_of_who_leaves_are_told(bus: InProcessBus, begun: bool, sibling: bool) -> None:
    """A call in hand has failed; one that nobody has begun is somebody else's, if there is one."""
    leaver, client = bus.connect(), bus.connect()

    def leave(event: aembus.Event) -> None:
        if begun:
            assert event.job is not None
            event.job.hold()
        leaver.close()

    leaver.register("leave", leave)
    leaver.register("p", leave, name="leave", group="g")
    if not begun:
        client.activate("leave")
    if sibling:
        bus.connect().register("p", lambda event: "the sibling", group="g")
    if sibling and not begun:
        assert client.point("p").call(key=b"") == "the sibling"
    else:
        with pytest.raises(aembus.CallFailed) as failed:
            client.point("p").call(key=b"")
        kind = "MemberGone" if begun else "NobodyRegistered"
        assert failed.value.error_type == kind
    assert len(bus.dead_letters) == begun


class Slow(Service):
    """Calls that are `async def`s."""

    name = "slow"
    version = "1"

    @call
    async def double(self, caller: Caller, number: int) -> int:
        """Await nothing."""
        return 2 * number

    @call
    async def sleep(self, caller: Caller) -> None:
        """Await something."""
        await asyncio.sleep(0)


def test_services_calls_that_are_async() -> None:
    """What awaits nothing is done at once, and the rest says what it needs."""
    with InProcessBus(services=(Slow,)) as bus:
        slow = bus.connect().service("slow")
        assert slow.double(21) == 42
        with pytest.raises(aembus.CallFailed, match=r"needs a real supervisor, .*Slow\.sleep"):
            slow.sleep()


def test_what_needs_an_event_loop_says_so(bus: InProcessBus) -> None:
    """`serve` and its like."""
    with pytest.raises(aembus.AembusError, match="serve"):
        asyncio.run(bus.connect().serve())


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
