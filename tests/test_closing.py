"""`close` in the middle of something else: by another thread, and by a signal handler."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import aembus
from tests.support.lanes import both_lanes
from tests.support.running import until

LIMIT_S = 30.0
Work = Callable[[aembus.Bus], object]


def call_all(bus: aembus.Bus) -> None:
    """Call somebody."""
    bus.point("echo").call_all(1, timeout=LIMIT_S)


def register(bus: aembus.Bus) -> None:
    """Register, and close that."""
    bus.register("p", print, name=str(next(numbers))).close()


numbers = itertools.count()
WORK: dict[str, Work] = {
    "call_all": call_all,
    "register": register,
    "statistics": aembus.Bus.statistics,
}


@pytest.fixture
def echo(bus: str) -> Iterator[str]:
    """A bus where somebody answers."""
    with aembus.connect(bus) as callee:
        callee.register("echo", lambda event, *data: data)
        callee.run_in_thread()
        yield bus


class Worker:
    """A thread that works until that raises."""

    def __init__(self, bus: aembus.Bus, work: Work, rounds: int) -> None:
        self._bus, self._work, self._rounds = bus, work, rounds
        self.begun = threading.Event()
        self.ended_by: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            for number in itertools.count(1):
                self._work(self._bus)
                if number == self._rounds:
                    self.begun.set()
        except BaseException as error:
            self.ended_by = error


@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_who_works_while_another_thread_closes_gets_bus_closed(echo: str, work: Work) -> None:
    """And nothing else, wherever it was."""
    for number in range(30):
        bus = aembus.connect(echo)
        worker = Worker(bus, work, 1 + number % 10)
        assert worker.begun.wait(LIMIT_S)
        bus.close()
        worker.thread.join()
        assert isinstance(worker.ended_by, aembus.BusClosed), repr(worker.ended_by)


def call_for_ever(point: aembus.ActivationPoint) -> None:
    """Call until that raises."""
    while True:
        point.call(1, timeout=LIMIT_S)


@both_lanes
def test_a_signal_handler_closes_while_threads_wait(echo: str) -> None:
    """Wherever in a call it comes: the thread that runs the bus, which it waits for, ends."""
    before = signal.signal(signal.SIGALRM, lambda *_: bus.close())
    try:
        for number in range(24):
            bus = aembus.connect(echo)
            bus.register("own", print)
            bus.run_in_thread()
            point = bus.point("echo")
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (1 + number % 8))
            with pytest.raises(aembus.BusClosed):
                call_for_ever(point)
            bus.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("way", ["run", "poll", "interrupt"])
def test_a_signal_handler_closes_the_bus_that_its_thread_runs(
    bus: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Where it looks for more jobs: it ends as if it had been stopped, and the bus is closed."""
    before = signal.signal(signal.SIGUSR1, lambda *_: runner.close())
    delivery: Any = "interrupt" if way == "interrupt" else "run"
    with aembus.connect(bus, delivery=delivery) as runner, aembus.connect(bus) as other:
        has_records = runner._inbox.has_records
        came: list[int] = []

        def is_interrupted() -> bool:
            if not came and threading.current_thread() is threading.main_thread():
                came.append(1)
                signal.raise_signal(signal.SIGUSR1)
            return has_records()

        monkeypatch.setattr(runner._inbox, "has_records", is_interrupted)
        runner.register("p", print)
        if way == "interrupt":
            other.activate("p")
        elif way == "run":
            runner.run()
        else:
            runner.poll(LIMIT_S)
        until("it came", lambda: came)
        with pytest.raises(aembus.BusClosed):
            runner.activate("p")
    signal.signal(signal.SIGUSR1, before)


class Interrupted:
    """A socket with which a signal comes right behind what is sent first."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._sent = False

    def sendall(self, frame: bytes) -> None:
        """Send."""
        self._real.sendall(frame)
        if not self._sent:
            self._sent = True
            signal.raise_signal(signal.SIGUSR1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def member(bus: str) -> Iterator[aembus.Bus]:
    """A member that is closed by SIGUSR1."""
    member = aembus.connect(bus)
    before = signal.signal(signal.SIGUSR1, lambda *_: member.close())
    yield member
    signal.signal(signal.SIGUSR1, before)
    member.close()


def test_a_signal_handler_closes_while_a_request_is_sent(
    member: aembus.Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may ask the supervisor for something itself, in the middle of that."""
    control = member._membership.control
    monkeypatch.setattr(control, "_socket", Interrupted(control._socket))
    with pytest.raises(aembus.BusClosed):
        member.register("p", print)


def test_a_signal_handler_closes_in_the_middle_of_an_activation(
    bus: str, member: aembus.Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The activation is made; then the bus is closed."""
    with aembus.connect(bus) as other:
        other.register("p", lambda event: None)
        picker = member._sender._picker
        real = picker.next

        def pick(route: Any, key_hash: int) -> Any:
            signal.raise_signal(signal.SIGUSR1)
            return real(route, key_hash)

        monkeypatch.setattr(picker, "next", pick)
        assert member.activate("p") == 1
        with pytest.raises(aembus.BusClosed):
            member.activate("p")
        assert other.poll(LIMIT_S) == 1


def test_counters_are_refused_after_the_end_and_in_a_child(bus: str) -> None:
    """A forked child does not add to its parent's; who counts on a closed bus is told."""
    with aembus.connect(bus) as member:
        counter = member.counter("c")
        counter.add(1)
        child = os.fork()
        if not child:
            try:
                counter.add(100)
            except aembus.ForkedBusError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert counter.value == 1
    with pytest.raises(aembus.BusClosed):
        counter.add(1)
    with pytest.raises(aembus.BusClosed):
        counter.value  # noqa: B018


def test_an_event_that_its_handler_closes_has_had_its_job(bus: str) -> None:
    """It counts among what the process has delivered, on any way."""
    with aembus.connect(bus) as member:
        events: list[aembus.Event] = []

        def handler(event: aembus.Event) -> None:
            event.close()

        for name in ("one", "two"):
            events.append(member.register(name, handler))
            member.activate(name)
        assert member.poll(LIMIT_S) == 2
        statistics = member.statistics().event_struct
        assert (statistics.events, statistics.delivered) == (0, 2)
