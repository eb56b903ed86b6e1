"""Calls: a point is called, and what the handler returns, or why it does not, comes back."""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

import aembus
from aembus import calls
from aembus.codec import decode
from aembus.looking import Looking
from aembus.routes import Route
from aembus.routing import Target
from aembus.sender import Job
from aembus.supervisor.dead_letters import DeadLetters
from aembus.testing import InProcessBus
from tests.support.calling import LONG_S, THIS, callee, failure, start
from tests.support.lanes import both_lanes
from tests.support.running import adds_up, statistics, until, workers


def letters(path: Path) -> list[tuple[str, list[object]]]:
    """Return reason and data of each dead letter."""
    return [(letter["reason"], decode(letter["payload"])) for letter in DeadLetters(path).read()]


def test_the_result_comes_back(bus: str) -> None:
    """Whatever msgpack carries, from another member; by key always from the same one."""
    with aembus.connect(bus) as one, aembus.connect(bus) as two, aembus.connect(bus) as caller:
        for member in (one, two):
            member.register("echo", lambda event, *data, m=member: [m.slot, *data], group="g")
            member.run_in_thread()
        point = caller.point("echo")
        assert point.call({"a": [1, None, b"x"]}, key="k")[1:] == [{"a": [1, None, b"x"]}]
        assert len({point.call(key="k")[0] for _ in range(4)}) == 1
        assert {point.call()[0] for _ in range(2)} == {one.slot, two.slot}  # in turn
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert totals["dead_lettered"] == totals["queued"] == 0


@both_lanes
@pytest.mark.parametrize("timeout", [math.inf, 1e30])
def test_a_caller_may_wait_for_ever(bus: str, timeout: float) -> None:
    """By each of the ways to call, for the first call and for later ones."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.register("p", lambda event, number: number)
        callee.run_in_thread()
        point = caller.point("p")
        assert [point.call(number, timeout=timeout) for number in range(3)] == [0, 1, 2]
        assert [answer.value for answer in point.call_all(3, timeout=timeout)] == [3]
        assert asyncio.run(point.call_async(4, timeout=timeout)) == 4


@both_lanes
def test_a_caller_may_have_waited_for_ever(bus: str) -> None:
    """A time-out that was over before the machine started is one that is over."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.register("p", lambda event: None)
        for _ in range(3):
            with pytest.raises(aembus.CallTimeout):
                caller.point("p").call(timeout=-1e12)
        assert callee.poll() == 3


def test_jobs_and_calls_keep_their_order() -> None:
    """A call is delivered behind the activations of its caller that came before."""
    with InProcessBus() as bus:
        callee, caller = bus.connect(), bus.connect()
        seen: list[int] = []

        def handler(event: aembus.Event, number: int) -> list[int]:
            seen.append(number)
            return seen

        callee.register("p", handler)
        for number in range(5):
            caller.activate("p", number)
        assert caller.point("p").call(5) == [0, 1, 2, 3, 4, 5]


def test_whom_a_call_concerns(bus: str) -> None:
    """Nobody, or several without a group: an error at once that says the way out."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        with pytest.raises(aembus.CallFailed, match="nobody to call, point='p'") as failed:
            caller.point("p").call()
        assert failed.value.error_type == "NobodyRegistered"
        callee.register("p", lambda event: 1, name="a")
        callee.register("p", lambda event: 2, name="b", group="g")
        with pytest.raises(aembus.CallFailed, match="use call_all") as failed:
            caller.point("p").call()
        assert failed.value.error_type == "SeveralRegistered"
        assert callee.poll() == 0


def test_what_the_handler_raises_comes_back_as_text(bus: str, tmp_path: Path) -> None:
    """Type, text and traceback; the call is a dead letter with its plain data then."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:

        def handler(event: aembus.Event, number: int) -> None:
            raise LookupError(f"no {number} \udc80")

        callee.register("p", handler, name="h")
        callee.run_in_thread()
        with pytest.raises(aembus.CallFailed) as failed:
            caller.point("p").call(7)
        error = failed.value
        assert (error.error_type, error.text, error.event) == ("LookupError", "no 7 \\udc80", "h")
        assert "in handler" in error.traceback_text
        assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
        until("kept", lambda: letters(tmp_path) == [("its handler raised", [7])])


def test_a_call_is_tried_again_as_a_job_is(bus: str) -> None:
    """With `retries` the caller gets the result of the attempt that succeeds."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:

        def handler(event: aembus.Event) -> int:
            assert event.job is not None
            if event.job.attempt < 3:
                raise ValueError("not yet")
            return event.job.attempt

        callee.register("p", handler, retries=2, backoff=0.001)
        callee.run_in_thread()
        assert caller.point("p").call() == 3


@pytest.mark.parametrize("value", [object(), b"x" * 8192, "\ud800"])
def test_a_result_that_cannot_be_sent(bus: str, value: object) -> None:
    """Fails the call, and not its job; nothing is pickled."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        event = callee.register("p", lambda event: value)
        callee.run_in_thread()
        with pytest.raises(aembus.CallFailed):
            caller.point("p").call()
        until("done", lambda: event.statistics().delivered == 1)


def test_a_held_call_is_answered_by_done(bus: str) -> None:
    """From any thread, with the result; `fail` fails it."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        held: list[aembus.Job] = []

        def handler(event: aembus.Event) -> str:
            assert event.job is not None
            event.job.hold()
            held.append(event.job)
            return "not this"

        callee.register("p", handler)
        callee.run_in_thread()
        outcome = start(caller, "p")
        until("held", lambda: held)
        held.pop().done("this")
        until("an answer", lambda: outcome)
        assert outcome == ["this"]
        outcome = start(caller, "p")
        until("held", lambda: held)
        held.pop().fail("no luck")
        assert (failure(outcome).error_type, failure(outcome).text) == ("JobFailed", "no luck")


def test_a_late_answer_is_dropped_and_counted(bus: str) -> None:
    """The caller gets CallTimeout, goes on, and gets the right answer next time."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.register("p", lambda event, number: number)
        with pytest.raises(aembus.CallTimeout, match="point='p'"):
            caller.point("p").call(1, timeout=0.01)
        assert callee.poll(1.0) == 1
        callee.run_in_thread()
        assert caller.point("p").call(2) == 2
        assert caller.statistics().late_replies == 1


def test_many_threads_call_at_once(bus: str) -> None:
    """Each gets its own answer, while the member delivers, too."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.register("p", lambda event, number: number)
        callee.run_in_thread()
        caller.run_in_thread()
        wrong: list[object] = []

        def work(first: int) -> None:
            point = caller.point("p")
            for number in range(first, first + 50):
                try:
                    answer = point.call(number, timeout=LONG_S)
                except aembus.AembusError as error:
                    wrong.append(error)
                    return
                if answer != number:
                    wrong.append((number, answer))

        threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert caller.statistics().late_replies == 0


def test_an_event_that_is_closed_sends_its_calls_back(bus: str) -> None:
    """What nobody has begun goes to a sibling of the group, or fails if there is none."""
    with aembus.connect(bus) as one, aembus.connect(bus) as two, aembus.connect(bus) as caller:
        first = one.register("p", lambda event: 1, group="g")
        outcome = start(caller, "p")
        until("queued", lambda: statistics(bus)["totals"]["queued"] == 1)
        second = two.register("p", lambda event: 2, group="g")
        first.close()
        one.run_in_thread()
        two.run_in_thread()
        until("an answer", lambda: outcome)
        assert outcome == [2]
        two.stop()
        outcome = start(caller, "p")
        until("queued", lambda: statistics(bus)["totals"]["queued"] == 1)
        second.close()
        two.close()
        assert failure(outcome).error_type == "NobodyRegistered"
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert totals["dead_lettered"] == 0


def test_a_cycle_fails_at_once(bus: str) -> None:
    """A's handler calls B, whose handler calls A, or itself: no time-out is waited for."""
    with aembus.connect(bus) as a, aembus.connect(bus) as b, aembus.connect(bus) as caller:
        a.register("a", lambda event: b_point.call(timeout=LONG_S))
        b.register("b", lambda event: a_point.call(timeout=LONG_S))
        b.register("self", lambda event: self_point.call(timeout=LONG_S))
        b_point, a_point, self_point = a.point("b"), b.point("a"), b.point("self")
        for member in (a, b):
            member.run_in_thread()
        for point in ("a", "b", "self"):
            with pytest.raises(aembus.CallFailed, match="waits for this very call"):
                caller.point(point).call(timeout=LONG_S)


def test_a_handler_that_waits_delivers_nothing(bus: str) -> None:
    """Handlers never nest: what comes meanwhile is delivered after it has returned."""
    with aembus.connect(bus) as a, aembus.connect(bus) as b, aembus.connect(bus) as caller:
        log: list[str] = []

        def outer(event: aembus.Event) -> None:
            log.append("begin")
            point.call(timeout=LONG_S)
            log.append("end")

        a.register("outer", outer)
        a.register("other", lambda event: log.append("other"))
        b.register("inner", lambda event: None)
        point = a.point("inner")
        a.run_in_thread()
        outcome = start(caller, "outer")
        until("it waits", lambda: statistics(bus)["totals"]["queued"] == 2)
        caller.activate("other")
        b.run_in_thread()
        until("all", lambda: len(log) == 3)
        assert log == ["begin", "end", "other"]
        until("an answer", lambda: outcome)


def test_call_all(bus_name: str, tmp_path: Path) -> None:
    """Each concerned event answers, or there is why not, and who; of a group it is one."""
    specs = [aembus.WorkerSpec("w", f"{THIS}:callee", count=2)]
    with (
        aembus.Supervisor(bus_name, workers=specs, state_directory=tmp_path),
        aembus.connect(bus_name) as other,
        aembus.connect(bus_name) as caller,
    ):

        def fails(event: aembus.Event, *data: object) -> None:
            raise ValueError("no")

        other.register("name", fails, name="fails")
        other.run_in_thread()
        silent = aembus.connect(bus_name)
        silent.register("name", lambda event, number: number, name="silent")
        answers = {a.member: a for a in caller.point("name").call_all(5, timeout=0.5)}
        assert len(answers) == 4
        good = [a for a in answers.values() if a.error is None]
        assert sorted(a.value for a in good) == [[a.member, 5] for a in sorted(good, key=str)]
        assert {a.event for a in good} == {"callee.<locals>.name"}
        failed, missing = answers[other.member_name], answers[silent.member_name]
        assert (failed.event, str(failed.error)) == ("fails", "ValueError: no")
        assert isinstance(missing.error, aembus.CallTimeout)
        silent.close()
        (answer,) = caller.point("pid").call_all()
        assert answer.value in {w["pid"] for w in workers(bus_name)}
        assert caller.point("nobody").call_all() == []


@pytest.mark.parametrize("redeliver", [False, True])
def test_a_callee_that_is_killed(bus_name: str, tmp_path: Path, redeliver: bool) -> None:
    """Its call fails at once and is run by nobody again, unless the caller has asked for that."""
    spec = aembus.WorkerSpec("w", f"{THIS}:callee")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as caller,
    ):
        hanging: list[int] = []
        caller.register("hanging", lambda event, pid: hanging.append(pid))
        caller.run_in_thread()
        outcome = start(caller, "hang", 1, redeliver=redeliver)
        until("it hangs", lambda: hanging)
        queued = start(caller, "pid")
        until("queued", lambda: workers(bus_name)[0]["queued"] == 2)
        os.kill(hanging[0], signal.SIGKILL)
        if redeliver:
            until("an answer", lambda: outcome)
            assert outcome == [[workers(bus_name)[0]["pid"], 2]]
            assert letters(tmp_path) == []
        else:
            assert failure(outcome).error_type == "MemberGone"
            assert f"pid={hanging[0]}" in failure(outcome).text
            reason = "its member died or went with the call in hand"
            assert letters(tmp_path) == [(reason, [1])]
        until("the other", lambda: queued)  # it was not begun: the replacement answers it
        assert queued == [workers(bus_name)[0]["pid"]]
        until("settled", lambda: workers(bus_name)[0]["queued"] == 0)
        assert adds_up(statistics(bus_name)["totals"])
        assert caller.statistics().late_replies == 0


def test_a_call_that_kills_is_not_redelivered_for_ever(bus_name: str, tmp_path: Path) -> None:
    """At the third death it is a dead letter, and the caller is told."""
    spec = aembus.WorkerSpec("w", f"{THIS}:callee")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as caller,
    ):
        caller.register("hanging", lambda event, pid: os.kill(pid, signal.SIGKILL))
        caller.run_in_thread()
        outcome = start(caller, "hang", 1, 2, 3, redeliver=True)
        assert failure(outcome).error_type == "DeadLetter"
        assert failure(outcome).text == "in hand at 3 deaths"
        until("kept", lambda: letters(tmp_path) == [("in hand at 3 deaths", [1, 2, 3])])


def test_a_client_that_is_killed_fails_its_calls(bus_name: str, tmp_path: Path) -> None:
    """Nobody replaces it: also what it had not begun fails, though a stopped member lags."""
    with (
        aembus.Supervisor(bus_name, state_directory=tmp_path),
        aembus.connect(bus_name) as caller,
    ):
        pid = os.fork()
        if pid == 0:  # a process of its own, without a name
            try:
                with aembus.connect(bus_name) as client:
                    callee(client)
                    client.run()
            finally:
                os._exit(0)
        try:
            hanging: list[int] = []
            caller.register("hanging", lambda event, pid: hanging.append(pid))
            caller.run_in_thread()
            until("it is there", lambda: len(statistics(bus_name)["members"]) == 3)
            until("registered", lambda: caller.point("relay").call_all("hanging", timeout=1.0))
            first, second = start(caller, "hang", 1), None
            until("it hangs", lambda: pid in hanging)
            second = start(caller, "pid")
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert failure(first).error_type == "MemberGone"
        assert failure(second).error_type in ("MemberGone", "NobodyRegistered")


def test_a_caller_that_is_killed_harms_nobody(bus_name: str, tmp_path: Path) -> None:
    """Its callee's answer goes nowhere, and the callee answers others."""
    spec = aembus.WorkerSpec("w", f"{THIS}:callee", count=2)
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as caller,
        aembus.connect(bus_name) as slow,
    ):
        slow.register("slow", lambda event: 1)
        outcome = start(caller, "relay", "slow")
        until("it waits", lambda: statistics(bus_name)["totals"]["queued"] == 2)
        busy = next(w for w in workers(bus_name) if w["queued"])
        os.kill(busy["pid"], signal.SIGKILL)
        assert failure(outcome).error_type == "MemberGone"
        assert slow.poll(1.0) == 1
        slow.run_in_thread()
        assert caller.point("slow").call() == 1
        assert caller.point("relay").call("slow") == 1


def test_who_calls_looks_for_the_answer_before_it_sleeps(
    bus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `run` looks for jobs: an answer that comes within a moment costs no sleep and no post."""
    with aembus.connect(bus) as callee, aembus.connect(bus) as caller:
        callee.register("p", lambda event, number: number)
        callee.run_in_thread()
        # A moment that no answer takes, on however busy a machine.
        monkeypatch.setattr(calls, "WAKE_UP_NS", int(LONG_S * calls.NS))
        monkeypatch.setattr(caller._membership.calls, "_looking", Looking(LONG_S))

        def sleep(ready: object, timeout_s: float) -> None:
            raise AssertionError("it slept")

        monkeypatch.setattr(caller._inbox, "wait", sleep)
        assert [caller.point("p").call(number) for number in range(3)] == [0, 1, 2]


def test_a_callee_that_goes_while_it_is_picked(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another thread of the caller's has heard of it: its answer says so."""
    with aembus.connect(bus) as caller:
        goer = aembus.connect(bus)
        goer.register("p", print)
        sender = caller._sender
        pick = sender.pick

        def pick_and_lose(route: Route, job: Job) -> Sequence[Target]:
            targets = pick(route, job)
            goer.close()
            until("it has gone", lambda: goer.slot not in sender.refresh().members)
            return targets

        monkeypatch.setattr(sender, "pick", pick_and_lose)
        (answer,) = caller.point("p").call_all(timeout=LONG_S)
        assert isinstance(answer.error, aembus.CallFailed)
