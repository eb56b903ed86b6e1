"""What an async handler may end of but a result and an exception, and what it leaves running."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

import pytest

import aembus
from tests.support.running import adds_up, statistics

LIMIT_S = 30.0


class Foreign(BaseException):
    """No Exception."""


@contextlib.asynccontextmanager
async def served(bus: aembus.Bus, concurrency: int = 1) -> AsyncIterator[asyncio.Task[None]]:
    """Serve a bus meanwhile."""
    task = asyncio.create_task(bus.serve(concurrency=concurrency))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=LIMIT_S)


@pytest.mark.parametrize("concurrency", [1, 2])
def test_what_a_handler_awaits_may_be_cancelled(bus: str, concurrency: int) -> None:
    """That is an exception of the handler's: its job fails, is tried again, and others go on."""
    attempts: list[int] = []

    async def main() -> None:
        with aembus.connect(bus) as callee, aembus.connect(bus) as caller:

            async def impatient(event: aembus.Event) -> None:
                assert event.job is not None
                attempts.append(event.job.attempt)
                sleep = asyncio.create_task(asyncio.sleep(LIMIT_S))
                sleep.cancel()
                await sleep

            async def echo(event: aembus.Event, word: str) -> str:
                return word

            callee.register("impatient", impatient, retries=1, backoff=0.001)
            callee.register("echo", echo)
            async with served(callee, concurrency):
                with pytest.raises(aembus.CallFailed, match="CancelledError"):
                    await caller.point("impatient").call_async(timeout=LIMIT_S)
                assert await caller.point("echo").call_async("on", timeout=LIMIT_S) == "on"
            assert callee.statistics().event_struct.held == 0

    asyncio.run(main())
    assert attempts == [1, 2]
    totals = statistics(bus)["totals"]
    assert (totals["dead_lettered"], totals["queued"]) == (1, 0)
    assert adds_up(totals)


@pytest.mark.parametrize("error", [Foreign("mine"), GeneratorExit()])
@pytest.mark.parametrize("concurrency", [1, 2])
def test_what_is_no_exception_ends_serving(
    bus: str, concurrency: int, error: BaseException
) -> None:
    """However many handlers may be under way it passes from serve(), and the job stays in hand."""

    async def main() -> None:
        with aembus.connect(bus) as member:

            async def handler(event: aembus.Event) -> None:
                raise error

            member.register("p", handler)
            member.activate("p")
            serving = asyncio.create_task(member.serve(concurrency=concurrency))
            await asyncio.wait([serving], timeout=LIMIT_S)
            assert serving.exception() is error
            assert statistics(bus)["totals"]["queued"] == 1

    asyncio.run(main())


def test_nobody_waits_for_what_a_handler_has_left_running(bus: str) -> None:
    """A task that outlives its handler may call who waited for that one: it is no cycle."""
    answers: list[object] = []

    async def main() -> None:
        with aembus.connect(bus) as first, aembus.connect(bus) as second:
            answered = asyncio.Event()
            left: list[asyncio.Task[None]] = []

            async def call_back(event: aembus.Event) -> None:
                await answered.wait()
                assert event.job is None
                answers.append(await second.point("back").call_async(timeout=LIMIT_S))

            async def ask(event: aembus.Event) -> str:
                left.append(asyncio.create_task(call_back(event)))
                return "asked"

            async def relay(event: aembus.Event) -> object:
                return await first.point("ask").call_async(timeout=LIMIT_S)

            async def back(event: aembus.Event) -> str:
                return "back"

            second.register("ask", ask)
            first.register("relay", relay)
            first.register("back", back)
            async with served(first), served(second):
                with aembus.connect(bus) as caller:
                    answers.append(await caller.point("relay").call_async(timeout=LIMIT_S))
                answered.set()
                await asyncio.wait_for(left[0], LIMIT_S)

    asyncio.run(main())
    assert answers == ["asked", "back"]


async def begin(member: aembus.Bus, concurrency: int) -> asyncio.Task[None]:
    """Begin to serve, until a handler is awaited, and return."""
    begun = asyncio.Event()

    async def endless(event: aembus.Event) -> None:
        begun.set()
        await asyncio.sleep(LIMIT_S)

    member.register("endless", endless)
    member.publish_registrations()
    task = asyncio.create_task(member.serve(concurrency=concurrency))
    member.activate("endless")
    await begun.wait()
    return task


def close_in_the_middle(member: aembus.Bus, concurrency: int) -> asyncio.Task[None]:
    """Serve in a loop and close that, as programs do that do not use `asyncio.run`."""
    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin(member, concurrency))
    loop.set_exception_handler(lambda loop, context: None)  # it tells of the task, rightly
    loop.close()
    return task


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_loop_that_was_closed_serves_no_more(bus: str, concurrency: int) -> None:
    """The bus can be closed, and goes; what is left of the task does no harm then."""
    member = aembus.connect(bus, name="served")
    task = close_in_the_middle(member, concurrency)
    member.close()
    assert "served" not in [m["name"] for m in statistics(bus)["members"]]
    del task
    gc.collect()
    with pytest.raises(aembus.BusClosed):
        member.activate("endless")


@pytest.mark.parametrize("concurrency", [1, 2])
def test_another_loop_may_serve_when_one_was_closed(bus: str, concurrency: int) -> None:
    """Also when what is left of the first one's task goes later."""
    seen: list[int] = []

    async def again(member: aembus.Bus) -> None:
        async with served(member) as task:
            for number in range(10):
                member.activate("numbers", number)
                if number == 5:
                    left.clear()
                    gc.collect()
                await asyncio.sleep(0)
            await asyncio.wait([task], timeout=LIMIT_S)

    def collect(event: aembus.Event, number: int) -> None:
        seen.append(number)
        if number == 9:
            member.stop()

    with aembus.connect(bus) as member:
        member.register("numbers", collect)
        left = [close_in_the_middle(member, concurrency)]
        asyncio.run(again(member))
        assert seen == list(range(10))
