from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import aembus
from aembus.postponed import Postponed, pause
from aembus.supervisor.dead_letters import DeadLetters
from aembus.testing import InProcessBus
from tests.support.running import adds_up, statistics, until, workers

THIS = "tests.test_retries"


def flaky(bus: aembus.Bus) -> None:
    """Entry point: a handler that raises, or dies, in the attempts that it is told to."""
    log = bus.point("log")

    @bus.on("work", retries=4, backoff=0.02)
    def work(event: aembus.Event, number: int, raises: list[int], dies: list[int]) -> None:
        assert event.job is not None
        attempt = event.job.attempt
        log.activate(number, attempt)
        if attempt in dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if attempt in raises:
            raise RuntimeError(f"attempt {attempt} of {number}")

    @bus.on("slow", retries=1, backoff=0.3, redeliver=False)
    def slow(event: aembus.Event) -> None:
        assert event.job is not None
        log.activate(-1, event.job.attempt)
        if event.job.attempt == 1:
            raise RuntimeError("once")


class Log:
    """A client that collects (job's number, attempt) as the workers' handlers begin."""

    def __init__(self, bus: aembus.Bus) -> None:
        self._bus = bus
        self.lines: list[tuple[int, int]] = []
        bus.register("log", lambda event, *line: self.lines.append(line))

    def wait_for(self, *lines: tuple[int, int]) -> None:
        until(f"{lines}", lambda: self._bus.poll(0.02) * 0 or set(lines) <= set(self.lines))


def member(bus: str, slot: int) -> dict[str, int]:
    """Return the statistics of one member."""
    return next(m for m in statistics(bus)["members"] if m["slot"] == slot)


def test_what_fails_comes_again_and_others_go_on(bus: str) -> None:
    """A job whose handler raises is retried after its pause; those behind it do not wait."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        seen: list[tuple[int, int]] = []

        def handler(event: aembus.Event, number: int) -> None:
            assert event.job is not None
            seen.append((number, event.job.attempt))
            if number == 0 and event.job.attempt < 3:
                raise ValueError("not yet")

        event = receiver.register("p", handler, retries=2, backoff=0.05)
        for number in range(3):
            sender.activate("p", number)
        assert receiver.poll(1.0) == 3
        assert seen == [(0, 1), (1, 1), (2, 1)]
        now = member(bus, receiver.slot)
        assert (now["queued"], now["retrying"], now["delivered"]) == (3, 1, 0)
        until("again", lambda: receiver.poll(1.0) * 0 or len(seen) == 5)
        assert seen[3:] == [(0, 2), (0, 3)]
        assert event.statistics() == aembus.EventStatistics(delivered=3, failed=2)
        now = member(bus, receiver.slot)
        assert (now["queued"], now["retrying"], now["delivered"]) == (0, 0, 3)
        assert (now["failed"], now["dead_lettered"]) == (2, 0)


def test_waking_for_a_retry_is_no_rescue(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleeps end by their bound when a job is due; nobody owed a post for that."""
    monkeypatch.setattr("aembus.shm.sleeper.LATE_POST_S", 0.001)
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:

        def handler(event: aembus.Event) -> None:
            assert event.job is not None
            if event.job.attempt < 6:
                raise ValueError("not yet")

        event = receiver.register("p", handler, retries=6, backoff=0.01)
        receiver.run_in_thread()
        sender.activate("p")
        until("done", lambda: event.statistics().delivered == 1)
        assert member(bus, receiver.slot)["rescued_wakeups"] == 0


def test_after_the_last_retry_it_is_a_dead_letter(bus: str, tmp_path: Path) -> None:
    """With the last attempt's traceback, the number of attempts, and no death among them."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:

        def handler(event: aembus.Event) -> None:
            assert event.job is not None
            raise ValueError(f"attempt {event.job.attempt}")

        receiver.register("p", handler, retries=4, backoff=0.001)
        sender.activate("p")
        until("dead", lambda: receiver.poll(1.0) * 0 or list(DeadLetters(tmp_path).read()))
        (letter,) = DeadLetters(tmp_path).read()
        assert letter["reason"] == "its handler raised"
        assert (letter["attempts"], letter["failures"]) == (5, 5)
        assert "ValueError: attempt 5" in letter["detail"]
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert (totals["sent"], totals["dead_lettered"]) == (1, 1)


def test_the_count_goes_on_in_the_replacement(bus_name: str, tmp_path: Path) -> None:
    """Killed in an attempt or in a pause: attempts go on, deaths and failures are told apart."""
    spec = aembus.WorkerSpec("w", f"{THIS}:flaky")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        log = Log(client)
        client.activate("work", 1, [1, 2, 4, 5], [3, 6])  # 4 failures, 2 deaths: both are allowed
        client.activate("work", 2, [1, 2, 3, 5, 6], [4])  # one failure too many
        client.activate("work", 3, [], [1, 2, 3])  # one death too many
        client.activate("work", 4, [], [])
        log.wait_for((1, 7), (2, 6), (3, 3), (4, 1))
        until("settled", lambda: workers(bus_name)[0]["queued"] == 0)
        letters = {letter["reason"]: letter for letter in DeadLetters(tmp_path).read()}
        assert set(letters) == {"its handler raised", "in hand at 3 deaths"}
        assert "attempt 6 of 2" in letters["its handler raised"]["detail"]
        (worker,) = workers(bus_name)
        assert (worker["delivered"], worker["dead_lettered"]) == (2, 2)
        assert adds_up(worker["received"])
        assert len(set(log.lines)) == len(log.lines)  # no attempt was counted twice


def test_a_kill_in_the_pause_is_no_death_of_the_job(bus_name: str, tmp_path: Path) -> None:
    """What waits for its next attempt is not in hand: also with redeliver=False it goes on."""
    spec = aembus.WorkerSpec("w", f"{THIS}:flaky")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        log = Log(client)
        client.activate("slow")
        until("it waits", lambda: client.poll(0.02) * 0 or workers(bus_name)[0]["retrying"] == 1)
        os.kill(workers(bus_name)[0]["pid"], signal.SIGKILL)
        log.wait_for((-1, 2))
        until("settled", lambda: workers(bus_name)[0]["delivered"] == 1)
        assert not list(DeadLetters(tmp_path).read())
        assert workers(bus_name)[0]["retrying"] == 0


def test_once_and_retries() -> None:
    """An event for one job tries that job again, and gets no other meanwhile."""
    with InProcessBus() as bus:
        receiver, sender = bus.connect(), bus.connect()
        seen: list[tuple[int, int]] = []

        def handler(event: aembus.Event, number: int) -> None:
            assert event.job is not None
            seen.append((number, event.job.attempt))
            if event.job.attempt == 1:
                raise ValueError("not yet")

        receiver.register("p", handler, once=True, retries=1, backoff=60.0)
        sender.activate("p", 1)
        sender.activate("p", 2)
        bus.advance(60.0)
        assert seen == [(1, 1), (1, 2)]
        assert [(d.data, d.reason) for d in bus.dead_letters] == [((2,), "its event was closed")]


def test_an_event_that_is_closed_in_the_pause() -> None:
    """Its failed job becomes a dead letter when its next attempt is due."""
    with InProcessBus() as bus:
        receiver, sender = bus.connect(), bus.connect()

        def handler(event: aembus.Event) -> None:
            raise ValueError("no")

        event = receiver.register("p", handler, retries=5, backoff=60.0)
        sender.activate("p")
        assert bus.deliver() == 1
        event.close()
        assert bus.advance(59.0) == 0
        assert bus.dead_letters == []
        bus.advance(1.0)
        assert [d.reason for d in bus.dead_letters] == ["its event was closed"]


@pytest.mark.parametrize("options", [{"retries": -1}, {"backoff": -1.0}, {"backoff": float("nan")}])
def test_odd_numbers_are_refused(bus: str, options: dict[str, float]) -> None:
    """With the values, before anything is registered."""
    with aembus.connect(bus) as receiver:
        with pytest.raises(aembus.RegistrationError, match=r"retries=.*backoff="):
            receiver.register("p", print, **options)  # type: ignore[arg-type]
        assert receiver.events == []


def test_the_pause_doubles_up_to_a_bound() -> None:
    """However many failures there were."""
    assert [pause(0.5, failures, 3.0) for failures in (1, 2, 3, 4, 10**6)] == [0.5, 1, 2, 3, 3]
    assert pause(0.0, 10**6, 3.0) == 0


def test_postponed_actions_come_in_the_order_of_their_time() -> None:
    """Those of one time in the order in which they were added."""
    postponed, done = Postponed(), list[str]()
    for due, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        postponed.add(due, lambda name=name: done.append(name))  # type: ignore[misc]
    assert not postponed.is_due(0.5)
    assert postponed.due_in(0.5) == 0.5
    while action := postponed.pop_due(1.5):
        action()
    assert done == ["a", "b"]
    assert len(postponed) == 1
