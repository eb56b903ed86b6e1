from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.running import adds_up, statistics, until, workers

THIS = "tests.test_held_jobs"


class Holder:
    """A member that holds the jobs at "hold" and keeps what else it got."""

    def __init__(self, bus: aembus.Bus, **options: object) -> None:
        self.bus = bus
        self.jobs: list[aembus.Job] = []
        self.seen: list[int] = []
        self.event = bus.register("hold", self.hold, **options)  # type: ignore[arg-type]
        bus.register("plain", lambda event, number: self.seen.append(number))

    def hold(self, event: aembus.Event, *data: object) -> None:
        assert event.job is not None
        event.job.hold()
        event.job.hold()
        self.jobs.append(event.job)

    def figures(self) -> tuple[int, int, int]:
        """Return what the statistics show of it: queued, held, delivered."""
        me = next(m for m in statistics(self.bus.name)["members"] if m["slot"] == self.bus.slot)
        return me["queued"], me["held"], me["delivered"]


def worker(bus: aembus.Bus) -> None:
    """Entry point: holds jobs, and completes them when it is told to."""
    held: dict[int, aembus.Job] = {}
    log = bus.point("log")

    @bus.on("hold")
    def hold(event: aembus.Event, number: int) -> None:
        assert event.job is not None
        event.job.hold()
        held[number] = event.job
        log.activate(number, event.job.attempt)

    @bus.on("hold fast", redeliver=False)
    def hold_fast(event: aembus.Event, number: int) -> None:
        hold(event, number)

    @bus.on("complete")
    def complete(event: aembus.Event, number: int) -> None:
        thread = threading.Thread(target=held.pop(number).done)
        thread.start()
        thread.join()
        log.activate(-number, 0)

    @bus.on("die")
    def die(event: aembus.Event, number: int) -> None:
        held.pop(number).done()
        os.kill(os.getpid(), signal.SIGKILL)

    bus.register("poison", lambda event: os.kill(os.getpid(), signal.SIGKILL))


class Log:
    """A client that collects what the worker reports."""

    def __init__(self, bus: aembus.Bus) -> None:
        self._bus = bus
        self.lines: list[tuple[int, int]] = []
        bus.register("log", lambda event, *line: self.lines.append(line))

    def wait_for(self, *lines: tuple[int, int]) -> None:
        until(f"{lines}", lambda: self._bus.poll(0.02) * 0 or set(lines) <= set(self.lines))


def test_a_held_job_is_done_later_and_others_flow(bus: str) -> None:
    """The queue's head stays before it; what is behind is delivered; `done` lets all of it go."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        holder = Holder(receiver)
        sender.activate("hold")
        for number in range(4):
            sender.activate("plain", number)
        assert receiver.poll(1.0) == 5
        assert holder.seen == [0, 1, 2, 3]
        assert holder.figures() == (5, 1, 0)
        assert receiver.statistics().event_struct.held == 1
        assert holder.event.statistics().delivered == 0
        thread = threading.Thread(target=holder.jobs[0].done)
        thread.start()
        thread.join()
        assert receiver.poll(1.0) == 1
        assert holder.figures() == (0, 0, 5)
        assert holder.event.statistics().delivered == 1


def test_done_wakes_the_member(bus: str) -> None:
    """A member that sleeps gives the room back at once, and producers that wait for it go on."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        holder = Holder(receiver)
        receiver.run_in_thread()
        point = sender.point("hold")
        sent = 0
        while point.try_activate(b"x" * 1000):
            sent += 1
        until("all held", lambda: len(holder.jobs) == sent)
        with pytest.raises(aembus.InboxFull):
            point.activate(b"x" * 1000, timeout=0.01)
        for job in holder.jobs[: sent // 2 + 1]:
            job.done()
        assert point.activate(b"x" * 1000, timeout=20.0) == 1
        until("held", lambda: len(holder.jobs) == sent + 1)
        for job in holder.jobs[sent // 2 + 1 :]:
            job.done()
        until("settled", lambda: holder.figures() == (0, 0, sent + 1))


def test_completing_is_for_once(bus: str, tmp_path: Path) -> None:
    """Twice, never held, held too late, sent away: each is an error that says so."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        holder = Holder(receiver)
        others: list[aembus.Job] = []

        def plain(event: aembus.Event) -> None:
            assert event.job is not None
            others.append(event.job)

        receiver.register("other", plain)
        sender.activate("hold")
        sender.activate("other")
        assert receiver.poll(1.0) == 2
        (held,), (plain_job,) = holder.jobs, others
        held.done()
        with pytest.raises(aembus.JobNotInHand, match="sequence="):
            held.done()
        with pytest.raises(aembus.JobNotInHand, match="sequence="):
            held.fail("no")
        with pytest.raises(aembus.JobNotInHand, match="sequence="):
            plain_job.done()
        for job in (held, plain_job):
            with pytest.raises(aembus.JobNotInHand, match="by its handler"):
                job.hold()
        with pytest.raises(TypeError, match="own process"):
            pickle.dumps(held)
        receiver.poll(1.0)
        assert holder.figures() == (0, 0, 2)


def test_of_many_threads_one_completes(bus: str) -> None:
    """Whoever else tries is told."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        holder = Holder(receiver)
        for _ in range(20):
            sender.activate("hold")
        until("held", lambda: receiver.poll(1.0) * 0 or len(holder.jobs) == 20)
        refused: list[int] = []
        start = threading.Barrier(4)

        def complete() -> None:
            start.wait()
            for job in holder.jobs:
                try:
                    job.done()
                except aembus.JobNotInHand:
                    refused.append(1)

        threads = [threading.Thread(target=complete) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 3 * 20
        assert receiver.poll(1.0) == 20
        assert holder.figures() == (0, 0, 20)


def test_a_held_job_may_fail(bus: str, tmp_path: Path) -> None:
    """`fail` is as if the handler had raised: the job is retried, then a dead letter."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        holder = Holder(receiver, retries=1, backoff=0.01)
        sender.activate("hold", "data")
        for attempt in (1, 2):
            until("held", lambda: receiver.poll(1.0) * 0 or len(holder.jobs) == attempt)  # noqa: B023
            assert holder.jobs[-1].attempt == attempt
            holder.jobs[-1].fail("the peer is busy")
        until("dead", lambda: receiver.poll(1.0) * 0 or list(DeadLetters(tmp_path).read()))
        (letter,) = DeadLetters(tmp_path).read()
        assert (letter["reason"], letter["attempts"]) == ("failed: the peer is busy", 2)
        assert holder.event.statistics() == aembus.EventStatistics(delivered=0, failed=2)
        assert adds_up(statistics(bus)["totals"])


def test_an_attempt_that_failed_says_nothing_about_the_next(bus: str, tmp_path: Path) -> None:
    """Who completes it late, when the job is held again, is told, and that attempt goes on."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        holder = Holder(receiver, retries=1, backoff=0.0)
        sender.activate("hold")
        receiver.poll(1.0)
        holder.jobs[0].fail("the peer does not answer")
        until("held again", lambda: receiver.poll(1.0) * 0 or len(holder.jobs) == 2)
        first, second = holder.jobs
        with pytest.raises(aembus.JobNotInHand, match="sequence="):
            first.done()
        with pytest.raises(aembus.JobNotInHand, match="sequence="):
            first.fail("late")
        second.fail("the peer is gone")
        until("dead", lambda: receiver.poll(1.0) * 0 or list(DeadLetters(tmp_path).read()))
        (letter,) = DeadLetters(tmp_path).read()
        assert letter["reason"] == "failed: the peer is gone"


class Interrupted(dict[str, int]):
    """A result at which Ctrl-C comes while it is encoded."""

    def items(self) -> Any:
        """Be interrupted."""
        raise KeyboardInterrupt


def test_completing_that_was_interrupted_may_be_repeated(bus: str) -> None:
    """Ctrl-C in the middle of `done` leaves the job held, and not out of everybody's hands."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        holder = Holder(receiver)
        answers: list[object] = []
        caller = threading.Thread(target=lambda: answers.append(sender.point("hold").call()))
        caller.start()
        until("held", lambda: receiver.poll(1.0) * 0 or holder.jobs)
        with pytest.raises(KeyboardInterrupt):
            holder.jobs[0].done(Interrupted(a=1))
        holder.jobs[0].done("after all")
        caller.join()
        assert answers == ["after all"]
        assert receiver.poll(1.0) == 1
        assert holder.figures() == (0, 0, 1)


def test_a_handler_that_holds_and_raises(bus: str, tmp_path: Path) -> None:
    """Its job has failed and is held no more, unless it was completed before that."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        jobs: list[aembus.Job] = []

        def handler(event: aembus.Event, complete: bool) -> None:
            assert event.job is not None
            jobs.append(event.job)
            event.job.hold()
            if complete:
                event.job.done()
            raise ValueError("after all")

        for name, once in (("many", False), ("one", True)):
            receiver.register(name, handler, once=once)
            for complete in (True, False)[: 1 if once else 2]:
                sender.activate(name, complete)
        until("all ran", lambda: receiver.poll(1.0) * 0 or len(jobs) == 3)
        receiver.poll()
        for job in jobs:
            with pytest.raises(aembus.JobNotInHand):
                job.done()
        (letter,) = DeadLetters(tmp_path).read()
        assert letter["reason"] == "its handler raised"
        me = next(m for m in statistics(bus)["members"] if m["slot"] == receiver.slot)
        assert (me["delivered"], me["dead_lettered"], me["failed"]) == (2, 1, 3)
        assert (me["queued"], me["held"]) == (0, 0)


def test_closing_the_bus_ends_what_is_held(bus: str, tmp_path: Path) -> None:
    """What was completed is delivered, also without another round; the rest is a dead letter."""
    with aembus.connect(bus) as sender:
        receiver = aembus.connect(bus)
        holder = Holder(receiver)
        for _ in range(3):
            sender.activate("hold")
        assert receiver.poll(1.0) == 3
        holder.jobs[1].done()
        receiver.close()
        with pytest.raises(aembus.BusClosed):
            holder.jobs[0].done()
        until("its slot is free", lambda: len(statistics(bus)["members"]) == 2)
        letters = list(DeadLetters(tmp_path).read())
        assert [letter["reason"] for letter in letters] == ["in hand when its member went"] * 2
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert (totals["delivered"], totals["dead_lettered"]) == (1, 2)


def test_a_forked_child_completes_nothing(bus: str) -> None:
    """In another process the job object says so, and the parent's job stays held."""
    with aembus.connect(bus) as receiver, aembus.connect(bus) as sender:
        holder = Holder(receiver)
        sender.activate("hold")
        assert receiver.poll(1.0) == 1
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                holder.jobs[0].done()
            except aembus.ForkedBusError:
                os.write(write, b"refused")
            finally:
                os._exit(0)
        os.close(write)
        assert os.read(read, 100) == b"refused"
        os.close(read)
        os.waitpid(child, 0)
        assert holder.figures() == (1, 1, 0)
        holder.jobs[0].done()
        assert receiver.poll(1.0) == 1


def test_what_a_killed_worker_held_comes_again(bus_name: str, tmp_path: Path) -> None:
    """With attempt + 1; not what was completed, and not what is not to be redelivered."""
    spec = aembus.WorkerSpec("w", f"{THIS}:worker")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        log = Log(client)
        for number in (1, 2, 3):
            client.activate("hold", number)
        client.activate("hold fast", 4)
        client.activate("complete", 2)
        log.wait_for((1, 1), (2, 1), (3, 1), (4, 1), (-2, 0))
        assert workers(bus_name)[0]["held"] == 3
        client.activate("die", 1)  # completes 1, and is killed at once; is redelivered without it
        log.wait_for((3, 2))
        until("it has failed", lambda: workers(bus_name)[0]["failed"] == 1)
        client.activate("complete", 3)
        log.wait_for((-3, 0))
        until("settled", lambda: workers(bus_name)[0]["queued"] == 0)
        assert sorted(log.lines) == [(-3, 0), (-2, 0), (1, 1), (2, 1), (3, 1), (3, 2), (4, 1)]
        letters = {(letter["point"], letter["reason"]) for letter in DeadLetters(tmp_path).read()}
        assert letters == {
            ("hold fast", "in hand when its worker died"),
            ("die", "its handler raised"),  # a KeyError: job 1 did not come again
        }
        (worker,) = workers(bus_name)
        assert (worker["held"], worker["delivered"], worker["dead_lettered"]) == (0, 5, 2)
        assert adds_up(worker["received"])


def test_a_held_job_is_in_hand_at_deaths(bus_name: str, tmp_path: Path) -> None:
    """After three deaths while it was held it is put aside as any other in hand."""
    spec = aembus.WorkerSpec("w", f"{THIS}:worker")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        log = Log(client)
        client.activate("hold", 1)
        for attempt in (1, 2, 3):
            log.wait_for((1, attempt))
            os.kill(workers(bus_name)[0]["pid"], signal.SIGKILL)
        until("put aside", lambda: workers(bus_name)[0]["dead_lettered"] == 1)
        (letter,) = DeadLetters(tmp_path).read()
        assert (letter["reason"], letter["attempts"]) == ("in hand at 3 deaths", 3)


def test_a_poison_job_does_not_take_held_ones_with_it(bus_name: str, tmp_path: Path) -> None:
    """A death in the handler of one job counts against that; held ones come again all the same."""
    spec = aembus.WorkerSpec("w", f"{THIS}:worker")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        log = Log(client)
        for number in (1, 2):
            client.activate("hold", number)
        client.activate("hold fast", 3)
        log.wait_for((1, 1), (2, 1), (3, 1))
        letters = DeadLetters(tmp_path)
        for poisons in (1, 2):  # one after the other, three deaths each
            client.activate("poison")
            until("put aside", lambda: len(list(letters.read())) == 1 + poisons)  # noqa: B023
        log.wait_for((1, 7), (2, 7))
        for number in (1, 2):
            client.activate("complete", number)
        log.wait_for((-1, 0), (-2, 0))
        until("settled", lambda: workers(bus_name)[0]["queued"] == 0)
        assert sorted((letter["point"], letter["reason"]) for letter in letters.read()) == [
            ("hold fast", "in hand when its worker died"),  # that it asked for
            ("poison", "in hand at 3 deaths"),
            ("poison", "in hand at 3 deaths"),
        ]


def patient(bus: aembus.Bus) -> None:
    """Entry point: one worker holds jobs, another one hangs."""
    if bus.member_name == "w-1":
        worker(bus)
    else:
        bus.register("hang", lambda event: threading.Event().wait(), redeliver=False)


def test_the_watchdog_leaves_alone_who_holds(bus_name: str, tmp_path: Path) -> None:
    """A job may be held for longer than a handler may run: no handler is at work on it."""
    spec = aembus.WorkerSpec("w", f"{THIS}:patient", count=2, handler_timeout_s=0.3)
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        log = Log(client)
        client.activate("hold", 1)
        log.wait_for((1, 1))
        client.activate("hang")  # later than that, so the time-out has passed for both of them
        until("it was ended", lambda: workers(bus_name)[1]["restarts"] == 1)
        assert workers(bus_name)[0]["restarts"] == 0
        client.activate("complete", 1)
        log.wait_for((-1, 0))
        until("settled", lambda: workers(bus_name)[0]["queued"] == 0)


def test_stopping_waits_for_held_jobs(bus_name: str, tmp_path: Path) -> None:
    """What is completed in the time to drain is delivered; what is not becomes a dead letter."""
    go = tmp_path / "go"
    spec = aembus.WorkerSpec("w", f"{THIS}:late", arguments=(str(go),))
    bus = aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path, stop_timeout_s=3.0)
    with bus as supervisor:
        with aembus.connect(bus_name) as client:
            log = Log(client)
            client.activate("late", 1)
            client.activate("never", 2)
            log.wait_for((1, 1), (2, 1))
        until("it has left", lambda: len(statistics(bus_name)["members"]) == 2)
        os.kill(supervisor.pid, signal.SIGTERM)
        go.touch()
    (letter,) = DeadLetters(tmp_path).read()
    assert (letter["point"], letter["reason"]) == ("never", "the bus was stopped")


def late(bus: aembus.Bus) -> None:
    """Entry point: completes one job when it is told to, which is while the bus stops."""
    log = bus.point("log")

    @bus.on("late")
    def handler(event: aembus.Event, number: int) -> None:
        job = event.job
        assert job is not None
        job.hold()

        def complete() -> None:
            until("go", Path(sys.argv[1]).exists)
            job.done()

        threading.Thread(target=complete, daemon=True).start()
        log.activate(number, 1)

    @bus.on("never")
    def never(event: aembus.Event, number: int) -> None:
        assert event.job is not None
        event.job.hold()
        log.activate(number, 1)
