"""`async for job in point.subscribe()`: a loop's body that is the handler of an event."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.loops import loop_runners, make_lasting_descriptors
from tests.support.running import adds_up, statistics, until, workers

THIS = "tests.test_subscription"
LIMIT_S = 30.0
Run = Callable[[Coroutine[Any, Any, None]], None]


@dataclass
class Order:
    """Data of a typed point."""

    number: int


@pytest.fixture(scope="module", autouse=True)
def lasting_descriptors() -> None:
    """See make_lasting_descriptors."""
    make_lasting_descriptors()


@pytest.fixture(params=loop_runners())
def run(request: pytest.FixtureRequest) -> Run:
    """What runs a coroutine to its end, in a loop of either kind."""
    runner: Run = request.param
    return runner


def reasons(path: Path) -> list[str]:
    """Return the reasons of the dead letters."""
    return [letter["reason"] for letter in DeadLetters(path).read()]


@pytest.mark.parametrize("served", [False, True])
def test_jobs_come_one_at_a_time_and_in_order(bus: str, run: Run, served: bool) -> None:
    """With their data and identity; each is done when the next is asked for, and not before."""

    async def main(member: aembus.Bus, other: aembus.Bus) -> None:
        serving = asyncio.create_task(member.serve()) if served else None
        await asyncio.sleep(0)
        seen: list[int] = []
        async with member.point("p").subscribe() as jobs:
            for number in range(50):
                other.activate("p", number, "x")
            async for job in jobs:
                number, text = job.data
                assert (text, job.attempt, job.origin[0]) == ("x", 1, other.slot)
                seen.append(number)
                assert member.event_struct.statistics().held == 1
                assert member.event_struct.statistics().delivered == number
                if number == 49:
                    break
        assert seen == list(range(50))
        assert member.events == []
        if serving is not None:
            member.stop()
            await asyncio.wait_for(serving, LIMIT_S)

    with aembus.connect(bus) as member, aembus.connect(bus) as other:
        run(main(member, other))
        member.poll()
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert (totals["delivered"], totals["dead_lettered"]) == (50, 0)


def test_a_full_lane_makes_its_producer_wait(bus: str, run: Run) -> None:
    """Nothing is taken ahead of the loop: what waits, waits in the lane."""

    async def main(member: aembus.Bus, other: aembus.Bus) -> None:
        point = other.point("p")
        async with member.point("p").subscribe() as jobs:
            sent = 0
            while point.try_activate(sent):
                sent += 1
            job = await anext(jobs)
            for _ in range(10):
                await asyncio.sleep(0)
            assert not point.try_activate(-1)
            seen = [job.data[0]]
            while len(seen) < sent:
                seen.append((await anext(jobs)).data[0])
            assert seen == list(range(sent))

    with aembus.connect(bus) as member, aembus.connect(bus) as other:
        run(main(member, other))


def test_leaving_by_an_exception_fails_the_job(bus: str, run: Run, tmp_path: Path) -> None:
    """As a handler's: it is tried again, or a dead letter; those behind it go to the next one."""

    async def main(member: aembus.Bus) -> None:
        for number in range(2):
            with pytest.raises(LookupError):  # noqa: PT012  # raised on leaving the block
                async with member.point("p").subscribe(name="p") as jobs:
                    for _ in range(2 - number):
                        member.activate("p", number)
                    async for _ in jobs:
                        raise LookupError("on purpose")

    with aembus.connect(bus) as member:
        run(main(member))
        member.poll()
        assert sorted(reasons(tmp_path)) == [
            "its event was closed",
            "its handler raised",
            "its handler raised",
        ]
        assert adds_up(statistics(bus)["totals"])


def test_a_loop_that_is_left_without_the_block_loses_nothing(
    bus: str, run: Run, tmp_path: Path
) -> None:
    """The job that it was at fails, saying why; one that it has completed does not."""

    async def main(member: aembus.Bus) -> None:
        member.register("gone", print)
        for completed in (False, True):
            subscription = member.point("p").subscribe()
            jobs = aiter(subscription)
            member.activate("p", completed)
            async for job in jobs:
                if completed:
                    job.done()
                break
            del subscription, jobs
            while len(member.events) > 1:  # noqa: ASYNC110  # rounds of the loop
                await asyncio.sleep(0.001)

    with aembus.connect(bus) as member:
        run(main(member))
        member.poll()
        (reason,) = reasons(tmp_path)
        assert reason.startswith("failed: its loop was left")
        assert statistics(bus)["totals"]["delivered"] == 1


@pytest.mark.parametrize("begun", [False, True])
def test_all_that_is_queued_for_who_leaves_goes_to_the_group(
    bus_name: str, tmp_path: Path, run: Run, begun: bool
) -> None:
    """However much it is, and though nobody serves this bus afterwards."""
    got: list[int] = []

    async def main(member: aembus.Bus, sibling: aembus.Bus) -> None:
        async with member.point("p").subscribe(group="g") as jobs:
            for number in range(200):
                sibling.activate("p", number)
            sibling.register("p", lambda event, number: got.append(number), group="g")
            async for job in jobs:
                assert job.data == (0,)
                break

    async def leave_at_once(member: aembus.Bus, sibling: aembus.Bus) -> None:
        async with member.point("p").subscribe(group="g"):
            sibling.activate("p", 0)
            sibling.register("p", lambda event, number: got.append(number), group="g")

    with (
        aembus.Supervisor(bus_name, state_directory=tmp_path),
        aembus.connect(bus_name) as member,
        aembus.connect(bus_name) as sibling,
    ):
        run((main if begun else leave_at_once)(member, sibling))
        wanted = list(range(1, 200)) if begun else [0]
        until("all of it", lambda: sibling.poll(0.05) * 0 or got == wanted)
        assert adds_up(statistics(bus_name)["totals"])


def test_typed_points_and_calls(bus: str, run: Run) -> None:
    """The data are the instance; a call is answered by job.done(); others' data fail alone."""

    async def main(member: aembus.Bus, caller: aembus.Bus) -> None:
        orders = member.point("order", Order)
        async with orders.subscribe() as jobs:
            caller.activate("order", {"number": "nonsense"})
            call = asyncio.create_task(caller.point("order", Order).call_async(Order(7)))
            job = await anext(jobs)
            assert job.data == Order(7)
            job.done("thanks")
            assert await call == "thanks"

    with aembus.connect(bus) as member, aembus.connect(bus) as caller:
        run(main(member, caller))


def test_loops_side_by_side(bus: str, run: Run) -> None:
    """With concurrency=2 one loop that takes its time does not delay the other."""

    async def main(member: aembus.Bus) -> None:
        serving = asyncio.create_task(member.serve(concurrency=2))
        await asyncio.sleep(0)
        async with member.point("a").subscribe() as slow, member.point("b").subscribe() as quick:
            member.activate("a", 0)
            for number in range(10):
                member.activate("b", number)
            await anext(slow)
            seen = [(await asyncio.wait_for(anext(quick), LIMIT_S)).data[0] for _ in range(10)]
            assert seen == list(range(10))
        member.stop()
        await asyncio.wait_for(serving, LIMIT_S)

    with aembus.connect(bus) as member:
        run(main(member))


def test_subscriptions_that_share_what_serves_them(bus: str, run: Run) -> None:
    """One that ends does not end the others, and one may begin while another ends."""

    async def main(member: aembus.Bus) -> None:
        async with member.point("b").subscribe() as others:
            async with member.point("a").subscribe():
                pass
            member.activate("b", 1)
            assert (await asyncio.wait_for(anext(others), LIMIT_S)).data == (1,)
            ending = asyncio.create_task(others.aclose())
            await asyncio.sleep(0)
            async with member.point("c").subscribe() as next_ones:
                member.activate("c", 2)
                assert (await asyncio.wait_for(anext(next_ones), LIMIT_S)).data == (2,)
            await ending

    with aembus.connect(bus) as member:
        run(main(member))


@pytest.mark.parametrize("served", [False, True])
def test_stopping_the_bus_ends_the_loop(bus: str, run: Run, served: bool) -> None:
    """The job in hand is finished, then the loop ends by itself."""
    seen: list[int] = []

    async def main(member: aembus.Bus) -> None:
        serving = asyncio.create_task(member.serve()) if served else None
        await asyncio.sleep(0)
        async with member.point("p").subscribe() as jobs:
            member.activate("p", 1)
            async for job in jobs:
                seen.append(job.data[0])
                member.stop()
        if serving is not None:
            await asyncio.wait_for(serving, LIMIT_S)

    with aembus.connect(bus) as member:
        run(main(member))
    assert seen == [1]
    assert statistics(bus)["totals"]["delivered"] == 1


def test_a_loop_at_work_when_the_supervisor_dies_lets_go_of_its_bus(
    bus_name: str, tmp_path: Path
) -> None:
    """Its event cannot be closed there any more; serving ends all the same, and so does close()."""

    async def work(member: aembus.Bus, supervisor: aembus.Supervisor) -> None:
        async with member.point("p").subscribe() as jobs:
            member.activate("p")
            async for _ in jobs:
                os.kill(supervisor.pid, signal.SIGKILL)
                while not member._sender.refuses:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                raise RuntimeError("as the test wants it")

    async def main(member: aembus.Bus, supervisor: aembus.Supervisor) -> None:
        with pytest.raises(aembus.BusBroken):
            await work(member, supervisor)
        assert not member.coroutines.served
        member.close()
        assert member._attachment.closed

    with aembus.Supervisor(bus_name, state_directory=tmp_path) as supervisor:
        asyncio.run(asyncio.wait_for(main(aembus.connect(bus_name), supervisor), LIMIT_S))
    with aembus.Supervisor(bus_name, state_directory=tmp_path):
        pass  # sweeps what the killed one has left


def subscriber(bus: aembus.Bus) -> None:
    """Entry point: a loop that says which job it is at, and takes its time over the first."""

    async def work() -> None:
        async with bus.point("p").subscribe(name="p") as jobs:
            async for job in jobs:
                bus.activate("log", os.getpid(), job.attempt, *job.data)
                if job.attempt == 1 and job.data == (0,):
                    await asyncio.Event().wait()

    asyncio.run(work())


def test_a_job_in_hand_comes_again(bus_name: str, tmp_path: Path, run: Run) -> None:
    """The worker is killed while its loop is at a job: the replacement's loop gets it."""
    spec = aembus.WorkerSpec("w", f"{THIS}:subscriber")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        log: list[tuple[int, ...]] = []
        client.register("log", lambda event, *line: log.append(line))
        for number in range(3):
            client.activate("p", number)
        until("the first", lambda: client.poll(0.02) * 0 or log)
        os.kill(log[0][0], signal.SIGKILL)
        until("the rest", lambda: client.poll(0.02) * 0 or len(log) == 4)
        assert [line[1:] for line in log] == [(1, 0), (2, 0), (1, 1), (1, 2)]
        assert adds_up(workers(bus_name)[0]["received"])
        assert reasons(tmp_path) == []
