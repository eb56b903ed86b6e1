from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import aembus
from tests.support.loops import loop_runners, make_lasting_descriptors
from tests.support.running import adds_up, statistics, until

LIMIT_S = 30.0
Main = Coroutine[Any, Any, None]


@pytest.fixture(scope="module", autouse=True)
def lasting_descriptors() -> None:
    """See make_lasting_descriptors."""
    make_lasting_descriptors()


@pytest.fixture(params=loop_runners())
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """What runs a coroutine to its end, in a loop of either kind."""
    runner: Callable[[Main], None] = request.param
    return runner


async def ended(task: asyncio.Task[None]) -> None:
    """Wait for the end of serving."""
    await asyncio.wait_for(task, LIMIT_S)


def rescued(bus: str) -> int:
    """Return how many wake-ups of the bus's members were rescued."""
    return sum(m["rescued_wakeups"] for m in statistics(bus)["members"])


def test_jobs_of_both_kinds_come_one_at_a_time(bus: str, run: Callable[[Main], None]) -> None:
    """Plain and async handlers take turns in order; other tasks run while one awaits."""
    seen: list[str] = []

    async def main(member: aembus.Bus) -> None:
        ticks = 0

        async def slow(event: aembus.Event, number: int) -> None:
            assert event.job is not None
            assert event.job.attempt == 1
            seen.append(f"begin {number}")
            before = ticks
            while ticks < before + 3:  # noqa: ASYNC110  # whole rounds of the loop
                await asyncio.sleep(0)
            assert event.job is not None
            seen.append(f"end {number}")

        def plain(event: aembus.Event, number: int) -> None:
            seen.append(f"plain {number}")
            if number == 9:
                member.stop()

        member.register("slow", slow)
        member.register("plain", plain)
        for number in range(10):
            member.activate("slow", number)
            member.activate("plain", number)
        task = asyncio.create_task(member.serve())
        while not task.done():
            ticks += 1
            await asyncio.sleep(0)
        await ended(task)

    with aembus.connect(bus) as member:
        run(main(member))
        expected = [f"{word} {n}" for n in range(10) for word in ("begin", "end", "plain")]
        assert seen == expected
        totals = statistics(bus)["totals"]
        assert totals["queued"] == 0
        assert adds_up(totals)


class Doubler:
    """A handler that is an object, whose ``__call__`` is awaited."""

    async def __call__(self, event: aembus.Event, number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number


@pytest.mark.parametrize("handler", [Doubler(), functools.partial(Doubler.__call__, Doubler())])
def test_what_is_an_async_def_within_is_awaited(bus: str, handler: Callable[..., Any]) -> None:
    """A callable object and a partial are handlers as any ``async def`` is."""

    async def main(member: aembus.Bus) -> None:
        member.register("double", handler)
        task = asyncio.create_task(member.serve())
        assert await member.point("double").call_async(4, timeout=LIMIT_S) == 8
        member.stop()
        await ended(task)

    with aembus.connect(bus) as member:
        asyncio.run(main(member))


def test_a_loop_that_sleeps_is_woken(bus: str, run: Callable[[Main], None]) -> None:
    """Jobs from another thread's bus arrive, none lost, and no wake-up was rescued."""
    jobs = 3000
    seen: list[int] = []

    def produce() -> None:
        with aembus.connect(bus) as producer:
            point = producer.point("p")
            for number in range(jobs):
                point.activate(number, timeout=LIMIT_S)

    async def main(member: aembus.Bus) -> None:
        def collect(event: aembus.Event, number: int) -> None:
            seen.append(number)
            if number == jobs - 1:
                member.stop()

        member.register("p", collect)
        thread = threading.Thread(target=produce)
        thread.start()
        await asyncio.wait_for(member.serve(), LIMIT_S)
        thread.join()

    with aembus.connect(bus) as member:
        run(main(member))
        assert not rescued(bus)
    assert seen == list(range(jobs))


def test_a_post_that_comes_together_with_the_bound_is_no_lost_one(
    bus: str, run: Callable[[Main], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that is kept from its turn for longer than a sleep finds both when it goes on."""
    bound_s = 0.02
    monkeypatch.setattr("aembus.serving.SLEEP_S_MAX", bound_s)
    monkeypatch.setattr("aembus.shm.sleeper.LATE_POST_S", bound_s)
    seen: list[int] = []

    async def main(member: aembus.Bus) -> None:
        member.register("p", lambda event, number: seen.append(number))
        with aembus.connect(bus) as producer:
            task = asyncio.create_task(member.serve())
            producer.publish_registrations()
            for number in range(10):
                await asyncio.sleep(5 * bound_s)  # for sleeps that end with nothing to do
                assert producer.activate("p", number) == 1
                time.sleep(2 * bound_s)  # noqa: ASYNC251  # the loop is kept, that is the point
            await asyncio.sleep(5 * bound_s)
            member.stop()
            await ended(task)

    with aembus.connect(bus) as member:
        run(main(member))
        assert seen == list(range(10))
        assert not rescued(bus)


def test_an_async_handler_that_raises_is_tried_again(bus: str, run: Callable[[Main], None]) -> None:
    """Its exception is a failure like any other: retries, then a dead letter; serving goes on."""
    attempts: list[int] = []

    async def main(member: aembus.Bus) -> None:
        async def fail(event: aembus.Event) -> None:
            assert event.job is not None
            attempts.append(event.job.attempt)
            await asyncio.sleep(0)
            raise RuntimeError("on purpose")

        member.register("p", fail, retries=1, backoff=0.01)
        member.activate("p")
        task = asyncio.create_task(member.serve())
        deadline = time.monotonic() + LIMIT_S
        while not statistics(bus)["totals"]["dead_lettered"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        member.stop()
        await ended(task)

    with aembus.connect(bus) as member:
        run(main(member))
    assert attempts == [1, 2]


def test_cancelling_cancels_the_handler_and_leaves_its_job_in_hand(
    bus: str, run: Callable[[Main], None]
) -> None:
    """The handler sees the cancellation, the bus can be served again, what was queued is there."""
    seen: list[str] = []

    async def main(member: aembus.Bus) -> None:
        begun = asyncio.Event()

        async def endless(event: aembus.Event) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        def plain(event: aembus.Event) -> None:
            seen.append("plain")
            member.stop()

        member.register("endless", endless)
        member.register("plain", plain)
        member.activate("endless")
        member.activate("plain")
        task = asyncio.create_task(member.serve())
        await asyncio.wait_for(begun.wait(), LIMIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cancelled"]
        assert member.event_struct.statistics().held == 1
        await asyncio.wait_for(member.serve(), LIMIT_S)

    with aembus.connect(bus) as member:
        run(main(member))
    assert seen == ["cancelled", "plain"]


def test_waiting_for_room_lets_the_loop_go_on(bus: str, run: Callable[[Main], None]) -> None:
    """activate_async waits for room in the member's own full inbox, which the same loop empties."""
    seen: list[int] = []

    async def main(member: aembus.Bus) -> None:
        member.register("p", lambda event, number: seen.append(number))
        point = member.point("p")
        sent = 0
        while point.try_activate(sent):
            sent += 1
        with pytest.raises(aembus.InboxFull):
            await point.activate_async(-1, timeout=0.01)
        task = asyncio.create_task(member.serve())
        assert await point.activate_async(sent, timeout=LIMIT_S) == 1
        while len(seen) <= sent:  # noqa: ASYNC110  # the plain handler is to do nothing else
            await asyncio.sleep(0)
        member.stop()
        await ended(task)
        assert seen == list(range(sent + 1))

    with aembus.connect(bus) as member:
        run(main(member))


def test_closing_while_served_takes_effect_at_the_end(bus: str) -> None:
    """An async handler may close the bus: its job is finished first, then serve() returns."""
    ends: list[str] = []

    async def main(member: aembus.Bus) -> None:
        async def close(event: aembus.Event) -> None:
            member.close()
            await asyncio.sleep(0)
            ends.append("handler")

        member.register("p", close)
        member.activate("p")
        await asyncio.wait_for(member.serve(), LIMIT_S)

    with aembus.connect(bus) as member:
        asyncio.run(main(member))
        assert ends == ["handler"]
        with pytest.raises(aembus.BusClosed):
            member.activate("p")
    totals = statistics(bus)["totals"]
    assert (totals["delivered"], totals["dead_lettered"]) == (1, 0)


def test_a_coroutine_needs_a_loop(bus: str) -> None:
    """An async handler on a bus that is polled fails, saying the way out; so does poll()."""
    with aembus.connect(bus) as member:

        async def handler(event: aembus.Event) -> None:
            with pytest.raises(aembus.AembusError, match="served already"):
                member.poll()
            member.stop()

        member.register("p", handler)
        member.activate("p")
        member.poll(1.0)
        assert statistics(bus)["totals"]["dead_lettered"] == 1
        member.activate("p")
        asyncio.run(asyncio.wait_for(member.serve(), LIMIT_S))


def test_concurrency_lets_others_go_on(bus: str, run: Callable[[Main], None]) -> None:
    """With concurrency=2 a slow coroutine delays nobody; two slow ones do; each has its own job."""
    seen: list[str] = []

    async def main(member: aembus.Bus) -> None:
        go = asyncio.Event()
        running = 0

        async def slow(event: aembus.Event, number: int) -> None:
            nonlocal running
            running += 1
            assert event.job is not None
            before = event.job.identity
            seen.append(f"slow {number}")
            await go.wait()
            assert event.job is not None
            assert event.job.identity == before
            running -= 1
            if number == 3:
                member.stop()

        member.register("slow", slow)
        member.register("plain", lambda event, number: seen.append(f"plain {number}"))
        for number in range(4):
            member.activate("slow", number)
            member.activate("plain", number)
        task = asyncio.create_task(member.serve(concurrency=2))
        while running < 2:  # noqa: ASYNC110  # whole rounds of the loop
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert seen == ["slow 0", "plain 0", "slow 1"]
        go.set()
        await ended(task)

    with aembus.connect(bus) as member:
        with pytest.raises(ValueError, match="concurrency=0"):
            asyncio.run(member.serve(concurrency=0))
        run(main(member))
        assert [s for s in seen if s[0] == "s"] == [f"slow {n}" for n in range(4)]
        assert seen[:3] == ["slow 0", "plain 0", "slow 1"]
        until("the rest", lambda: member.poll() or statistics(bus)["totals"]["queued"] == 0)
        assert adds_up(statistics(bus)["totals"])


def test_cancelling_cancels_all_handlers_that_are_awaited(
    bus: str, run: Callable[[Main], None]
) -> None:
    """Their jobs stay in hand, and serving ends when they have."""
    ends: list[int] = []

    async def main(member: aembus.Bus) -> None:
        running = 0

        async def endless(event: aembus.Event, number: int) -> None:
            nonlocal running
            running += 1
            try:
                await asyncio.Event().wait()
            finally:
                ends.append(number)

        member.register("endless", endless)
        for number in range(3):
            member.activate("endless", number)
        task = asyncio.create_task(member.serve(concurrency=8))
        while running < 3:  # noqa: ASYNC110  # whole rounds of the loop
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ends) == [0, 1, 2]
        assert member.event_struct.statistics().held == 3

    with aembus.connect(bus) as member:
        run(main(member))


def test_a_concurrent_handler_that_raises_is_tried_again(
    bus: str, run: Callable[[Main], None]
) -> None:
    """As serially: retries, then a dead letter; the others are not disturbed."""
    attempts: list[int] = []

    async def main(member: aembus.Bus) -> None:
        async def fail(event: aembus.Event) -> None:
            assert event.job is not None
            attempts.append(event.job.attempt)
            await asyncio.sleep(0)
            raise RuntimeError("on purpose")

        member.register("p", fail, retries=1, backoff=0.01)
        member.activate("p")
        member.activate("p")
        task = asyncio.create_task(member.serve(concurrency=4))
        deadline = time.monotonic() + LIMIT_S
        while statistics(bus)["totals"]["dead_lettered"] < 2:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        member.stop()
        await ended(task)

    with aembus.connect(bus) as member:
        run(main(member))
    assert sorted(attempts) == [1, 1, 2, 2]
