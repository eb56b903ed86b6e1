"""Awaitable calls: what `call` does, while the event loop goes on."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.codec import key_hash
from tests.support.loops import loop_runners, make_lasting_descriptors
from tests.support.running import adds_up, statistics, until, workers

THIS = "tests.test_awaiting"
LONG_S = 60.0  # a time-out that no test waits for
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module", autouse=True)
def lasting_descriptors() -> None:
    """See make_lasting_descriptors."""
    make_lasting_descriptors()


@pytest.fixture(params=loop_runners())
def run(request: pytest.FixtureRequest) -> Run:
    """What runs a coroutine to its end, in a loop of either kind."""
    runner: Run = request.param
    return runner


def echo(member: aembus.Bus) -> None:
    """Have another member answer calls of "echo" in a thread of its own."""
    member.register("echo", lambda event, *data: list(data))
    member.run_in_thread()


@pytest.mark.parametrize("way", ["served", "in a thread", "not run"])
def test_many_calls_are_under_way_at_once(bus: str, run: Run, way: str) -> None:
    """However the caller is run: each gets its answer, also those that have to await room."""

    async def main(caller: aembus.Bus) -> None:
        point = caller.point("echo")
        if way == "in a thread":
            caller.run_in_thread()
        task = asyncio.create_task(caller.serve()) if way == "served" else None
        answers = await asyncio.gather(*(point.call_async(n, timeout=LONG_S) for n in range(500)))
        assert answers == [[n] for n in range(500)]
        assert threading.active_count() == threads + (way == "in a thread")
        if task is not None:
            caller.stop()
            await task

    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        echo(callee)
        threads = threading.active_count()
        run(main(caller))
        assert caller.statistics().late_replies == 0
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert all(member["rescued_wakeups"] == 0 for member in statistics(bus)["members"])


def test_jobs_come_while_calls_are_awaited(bus: str, run: Run) -> None:
    """A loop that listens for answers does not keep jobs from the thread that runs the bus."""
    with aembus.connect(bus) as caller, aembus.connect(bus) as other:
        seen: list[int] = []
        caller.register("p", lambda event, n: seen.append(n))
        other.register("slow", lambda event: None)
        caller.run_in_thread()

        async def main() -> None:
            call = asyncio.create_task(caller.point("slow").call_async(timeout=LONG_S))
            for number in range(20):
                other.activate("p", number)
                while len(seen) <= number:  # noqa: ASYNC110  # a thread fills it
                    await asyncio.sleep(0.001)
            other.run_in_thread()
            assert await call is None

        run(main())
        assert seen == list(range(20))


def test_a_cancelled_call_is_forgotten(bus: str, run: Run) -> None:
    """Cancelled, timed out: the late answer is dropped and counted, and the next call goes well."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:

        async def main() -> None:
            point = caller.point("echo")
            call = asyncio.create_task(point.call_async(1, timeout=LONG_S))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(aembus.CallTimeout, match="point='echo'"):
                await point.call_async(2, timeout=0.01)
            callee.run_in_thread()
            assert await point.call_async(3, timeout=LONG_S) == [3]

        callee.register("echo", lambda event, *data: list(data))
        run(main())
        assert caller.statistics().late_replies == 2


def test_who_awaits_room_is_cancelled_or_timed_out(bus: str, run: Run) -> None:
    """Nothing was sent then; those behind them get their turn."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.register("echo", lambda event, *data: list(data))

        async def main() -> None:
            point = caller.point("echo")
            sent = 0
            while point.try_activate(sent):
                sent += 1
            cancelled = asyncio.create_task(point.call_async("cancelled", timeout=LONG_S))
            good = asyncio.create_task(point.call_async("good", timeout=LONG_S))
            await asyncio.sleep(0)
            with pytest.raises(aembus.InboxFull, match="for='echo'"):
                await point.call_async("late", timeout=0.01)
            cancelled.cancel()
            callee.run_in_thread()
            assert await good == ["good"]
            with pytest.raises(asyncio.CancelledError):
                await cancelled

        run(main())
        assert caller.statistics().late_replies == 0


def test_who_awaits_room_takes_turns(bus: str, run: Run) -> None:
    """Behind one that waits for a slow member of a group, not all go to that member."""
    with aembus.connect(bus) as slow, aembus.connect(bus) as quick, aembus.connect(bus) as sender:
        got: list[str] = []
        for name, member in (("slow", slow), ("quick", quick)):
            handler = functools.partial(lambda who, event, number: got.append(who), name)
            member.register("p", handler, group="g", name=name)

        async def main() -> None:
            point = sender.point("p")
            key = next(key for key in range(100) if key_hash(key) % 2 == 0)  # the first member's
            while point.try_activate(-1, key=key):
                pass
            waiting = [
                asyncio.create_task(point.activate_async(number, timeout=LONG_S))
                for number in range(10)
            ]
            await asyncio.sleep(0)
            slow.run_in_thread()
            await asyncio.gather(*waiting)

        run(main())
        quick.poll(1.0)
        assert 4 <= got.count("quick") <= 6


def test_async_handlers_call(bus: str, run: Run) -> None:
    """Their member delivers nothing meanwhile, and a call that comes back to it fails at once."""
    with aembus.connect(bus) as served, aembus.connect(bus) as caller, aembus.connect(bus) as b:
        log: list[object] = []

        async def outer(event: aembus.Event) -> object:
            log.append("begin")
            answer = await served.point("inner").call_async(timeout=LONG_S)
            log.append("end")
            return answer

        async def cycle(event: aembus.Event) -> None:
            await served.point("cycle").call_async(timeout=LONG_S)

        served.register("outer", outer)
        served.register("cycle", cycle)
        served.register("other", lambda event: log.append("other"))
        b.register("inner", lambda event: caller.activate("other"))
        b.run_in_thread()
        thread = threading.Thread(target=lambda: run(served.serve()))
        thread.start()
        assert caller.point("outer").call(timeout=LONG_S) == 1
        with pytest.raises(aembus.CallFailed, match="waits for this very call"):
            caller.point("cycle").call(timeout=LONG_S)
        until("the other", lambda: len(log) == 3)
        assert log == ["begin", "end", "other"]
        served.stop()
        thread.join()


def test_answers_and_errors_of_async_handlers(bus: str, run: Run) -> None:
    """What they return, raise or refuse comes back; with the stages around them, too."""
    with aembus.connect(bus) as served, aembus.connect(bus) as caller:

        async def handler(event: aembus.Event, what: str) -> str:
            await asyncio.sleep(0)
            if what == "raise":
                raise LookupError("on purpose")
            if what == "refuse":
                raise aembus.Refused("not this")
            return what

        def admit(event: aembus.Event, what: str) -> list[str]:
            return [what]

        def wrap(event: aembus.Event, result: object, error: Exception | None) -> object:
            return {"is": result}

        plain = served.register("p", handler)
        staged = served.register("staged", handler, constructor=admit, destructor=wrap)
        thread = threading.Thread(target=lambda: run(served.serve()))
        thread.start()
        assert caller.point("p").call("x", timeout=LONG_S) == "x"
        assert caller.point("staged").call("x", timeout=LONG_S) == {"is": "x"}
        with pytest.raises(aembus.CallFailed, match="on purpose") as failed:
            caller.point("p").call("raise", timeout=LONG_S)
        assert failed.value.error_type == "LookupError"
        assert "in handler" in failed.value.traceback_text
        with pytest.raises(aembus.CallFailed, match="not this") as failed:
            caller.point("p").call("refuse", timeout=LONG_S)
        assert failed.value.error_type == "Refused"
        served.stop()
        thread.join()
        assert plain.statistics().refused == plain.statistics().failed == 1
        assert staged.statistics().timings is not None


def test_call_all_async(bus: str, run: Run) -> None:
    """Each concerned event answers, or there is why not; together, and not one after the other."""
    with (
        aembus.connect(bus) as one,
        aembus.connect(bus) as silent,
        aembus.connect(bus) as caller,
    ):
        echo(one)
        silent.register("echo", print, name="silent")

        async def main() -> None:
            answers = await caller.point("echo").call_all_async(1, timeout=0.2)
            first, second = sorted(answers, key=lambda a: a.error is not None)
            assert (first.member, first.value) == (one.member_name, [1])
            assert second.member == silent.member_name
            assert isinstance(second.error, aembus.CallTimeout)
            assert await caller.point("nobody").call_all_async() == []

        run(main())


def test_one_loop_at_a_time(bus: str) -> None:
    """A second loop is told so; when the first awaits nothing more, it may."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.register("echo", lambda event, *data: list(data))
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(caller.point("echo").call_async(timeout=LONG_S))
            except aembus.AembusError as error:
                errors.append(error)

        async def main() -> None:
            call = asyncio.create_task(caller.point("echo").call_async(1, timeout=LONG_S))
            await asyncio.sleep(0)
            await asyncio.to_thread(elsewhere)
            callee.run_in_thread()
            assert await call == [1]

        asyncio.run(main())
        assert "another event loop" in str(errors[0])
        assert asyncio.run(caller.point("echo").call_async(2, timeout=LONG_S)) == [2]


@pytest.mark.parametrize("by", ["the loop", "a thread"])
def test_closing_the_bus_ends_what_is_awaited(bus: str, run: Run, by: str) -> None:
    """Calls, and who awaits room, get BusClosed at once, and nothing is left in the loop."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.register("echo", print)

        async def main() -> None:
            point = caller.point("echo")
            call = asyncio.create_task(point.call_async(timeout=LONG_S))
            await asyncio.sleep(0)
            while point.try_activate():
                pass
            room = asyncio.create_task(point.activate_async(timeout=LONG_S))
            await asyncio.sleep(0)
            if by == "the loop":
                caller.close()
            else:
                await asyncio.to_thread(caller.close)
            for task in (call, room):
                with pytest.raises(aembus.BusClosed):
                    await task

        run(main())


def test_calls_after_the_end_leave_others_descriptors_alone(bus: str, run: Run) -> None:
    """The bell's number may be somebody else's by then, whom the loop goes on to listen to."""
    caller = aembus.connect(bus)

    async def main(one: socket.socket, other: socket.socket) -> None:
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        point = caller.point("nobody")
        with pytest.raises(aembus.CallFailed, match="NobodyRegistered"):
            await point.call_async(timeout=LONG_S)
        bell = caller._membership.take_pipe_bell().descriptor
        caller.close()
        os.dup2(one.fileno(), bell)
        taken.append(bell)
        loop.add_reader(bell, heard.set)
        with pytest.raises(aembus.BusClosed):
            await point.call_async(timeout=LONG_S)
        other.send(b"!")
        await asyncio.wait_for(heard.wait(), 10.0)
        loop.remove_reader(bell)

    taken: list[int] = []
    one, other = socket.socketpair()
    with one, other:
        try:
            run(main(one, other))
        finally:
            for descriptor in taken:
                os.close(descriptor)


def test_the_supervisors_death_ends_what_is_awaited(bus_name: str, tmp_path: Path) -> None:
    """BusBroken comes at once."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path) as supervisor:
        caller, callee = aembus.connect(bus_name), aembus.connect(bus_name)
        callee.register("echo", print)

        async def main() -> None:
            call = asyncio.create_task(caller.point("echo").call_async(timeout=LONG_S))
            await asyncio.sleep(0)
            os.kill(supervisor.pid, signal.SIGKILL)
            with pytest.raises(aembus.BusBroken):
                await call

        asyncio.run(main())
        caller.close()
        callee.close()
    with aembus.Supervisor(bus_name, state_directory=tmp_path):
        pass  # sweeps what the killed one has left


def test_calls_in_a_loop_that_is_interrupted(bus: str) -> None:
    """With delivery='interrupt' the signal brings jobs and answers, and a loop awaits them."""
    with aembus.connect(bus) as callee, aembus.connect(bus, delivery="interrupt") as caller:
        echo(callee)
        seen: list[int] = []
        caller.register("p", lambda event, n: seen.append(n))

        async def main() -> None:
            point = caller.point("echo")
            answers = await asyncio.gather(
                *(point.call_async(n, timeout=LONG_S) for n in range(200))
            )
            assert answers == [[n] for n in range(200)]
            callee.activate("p", 1)

        asyncio.run(main())
        until("the job", lambda: seen == [1])


def hanging_worker(bus: aembus.Bus) -> None:
    """Entry point: hangs at calls, and says so."""

    @bus.on("hang")
    def hang(event: aembus.Event) -> None:
        bus.activate("hanging", os.getpid())
        threading.Event().wait()


def test_a_callee_that_is_killed_fails_the_calls_it_had_begun(
    bus_name: str, tmp_path: Path, run: Run
) -> None:
    """CallFailed comes at the death; what it had not begun its replacement answers."""
    spec = aembus.WorkerSpec("w", f"{THIS}:hanging_worker")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as caller,
    ):
        pids: list[int] = []
        caller.register("hanging", lambda event, pid: pids.append(pid))

        async def main() -> None:
            task = asyncio.create_task(caller.serve())
            point = caller.point("hang")
            calls = [asyncio.create_task(point.call_async(timeout=LONG_S)) for _ in range(2)]
            for number, call in enumerate(calls):
                while len(pids) <= number:  # noqa: ASYNC110  # the other process takes its time
                    await asyncio.sleep(0.001)
                os.kill(pids[number], signal.SIGKILL)
                with pytest.raises(aembus.CallFailed) as failed:
                    await call
                assert failed.value.error_type == "MemberGone"
            caller.stop()
            await task

        run(main())
        until("settled", lambda: workers(bus_name)[0]["queued"] == 0)
        assert adds_up(statistics(bus_name)["totals"])
