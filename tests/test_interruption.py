from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import aembus
from tests.support.interruption import (
    Arrival,
    At,
    every_bytecode,
    every_ctrl_c,
    handler,
    interrupt,
    numbers,
)
from tests.support.running import adds_up, statistics, until

SENDER = """
import sys, aembus
with aembus.connect(sys.argv[1]) as bus:
    point = bus.point("p")
    for number in range(int(sys.argv[2])):
        point.activate(number, timeout=30.0)
"""


@pytest.fixture
def bus_options() -> dict[str, Any]:
    """See tests/conftest.py."""
    return {"services": ["timer"]}


def sender(bus: str, jobs: int) -> subprocess.Popen[bytes]:
    """Start a process that activates the point "p" so many times."""
    return subprocess.Popen([sys.executable, "-c", SENDER, bus, str(jobs)])


def compute_until(done: threading.Event) -> int:
    """Be a program that computes and never waits; return how many steps it took."""
    steps = 0
    deadline = time.monotonic() + 60.0
    while not done.is_set():
        steps += 1
        assert steps % 4096 or time.monotonic() < deadline
    return steps


def test_a_computation_is_interrupted_and_goes_on_unharmed(bus: str) -> None:
    """Jobs of another process arrive, in order, none lost, while a checksum is made of steps."""
    jobs, steps = 5000, 1_000_000
    with aembus.connect(bus, delivery="interrupt") as receiver:
        seen: list[int] = []
        done = threading.Event()

        def collect(event: aembus.Event, number: int) -> None:
            seen.append(number)
            if number == jobs - 1:
                done.set()

        receiver.register("p", collect)
        with sender(bus, jobs) as process:
            checksum = 0
            for step in range(steps):
                checksum = (31 * checksum + step) & 0xFFFFFFFF
            compute_until(done)
            assert process.wait(30) == 0
        again = 0
        for step in range(steps):
            again = (31 * again + step) & 0xFFFFFFFF
        assert checksum == again
        assert seen == list(range(jobs))
        assert adds_up(statistics(bus)["totals"])


def test_jobs_that_come_while_the_main_thread_is_awake_need_no_post(
    bus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher, however often it looks, takes none of them for a wake-up by the bound."""
    jobs = 1000
    monkeypatch.setattr("aembus.interruption.SLEEP_S_MAX", 0.001)
    monkeypatch.setattr("aembus.shm.sleeper.LATE_POST_S", 0.05)
    with aembus.connect(bus, delivery="interrupt") as receiver:
        done = threading.Event()

        def work(event: aembus.Event, number: int) -> None:
            time.sleep(0.0005)  # the watcher gets its turn
            if number == jobs - 1:
                done.set()

        receiver.register("p", work)
        with sender(bus, jobs) as process:
            compute_until(done)
            assert process.wait(30) == 0
        assert all(m["rescued_wakeups"] == 0 for m in statistics(bus)["members"])


def test_ctrl_c_leaves_no_mask_behind(bus: str) -> None:
    """Wherever it comes in entering or leaving one, the next job is delivered."""
    with aembus.connect(bus, delivery="interrupt") as member, aembus.connect(bus) as producer:
        seen: list[int] = []
        member.register("p", lambda event, n: seen.append(n))

        def mask(inside: Callable[[], None]) -> None:
            with member.masked():
                inside()

        def run(at: At) -> None:
            with contextlib.suppress(KeyboardInterrupt), at:
                mask(lambda: mask(lambda: None))
            sent = len(seen)
            producer.activate("p", sent)
            until("the job", lambda: seen[-1:] == [sent])

        assert every_ctrl_c(run) > 50


def test_a_loop_that_catches_ctrl_c_is_not_masked_for_ever(bus: str) -> None:
    """What was left behind in the frame that goes on ends with the next block there."""
    with aembus.connect(bus, delivery="interrupt") as member, aembus.connect(bus) as producer:
        seen: list[int] = []
        member.register("p", lambda event, n: seen.append(n))
        with handler(signal.SIGUSR1, interrupt):
            for number in numbers():
                at = At({number: Arrival(signal.SIGUSR1)})
                for once in (at, contextlib.nullcontext()):
                    with contextlib.suppress(KeyboardInterrupt), once, member.masked():
                        pass
                producer.activate("p", number)
                until("the job", lambda: seen[-1:] == [number])  # noqa: B023
                if not at.happened:
                    break


@pytest.mark.parametrize("way", ["sleep", "recv", "lock"])
def test_a_call_that_blocks_is_interrupted_and_resumed(bus: str, way: str) -> None:
    """The handler runs while the program blocks, and what it waited for comes all the same."""
    near, far = socket.socketpair()
    lock = threading.Lock()
    lock.acquire()
    seen: list[str] = []

    def release(event: aembus.Event) -> None:
        seen.append("handler")
        far.send(b"x")
        if lock.locked():
            lock.release()

    with near, far, aembus.connect(bus, delivery="interrupt") as receiver:
        receiver.register("p", release)
        with _activate_from_a_thread(bus):
            began = time.monotonic()
            if way == "recv":
                assert near.recv(1) == b"x"
            elif way == "lock":
                assert lock.acquire(timeout=30.0)
            else:
                time.sleep(0.5)
                assert time.monotonic() - began >= 0.5
        assert seen == ["handler"]


class _activate_from_a_thread:
    def __init__(self, bus: str) -> None:
        self._thread = threading.Thread(target=self._run, args=(bus,))

    def _run(self, bus: str) -> None:
        with aembus.connect(bus) as producer:
            producer.activate("p")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def test_handlers_never_nest(bus: str) -> None:
    """What a handler activates comes after it has returned, and after what came before."""
    with aembus.connect(bus, delivery="interrupt") as member:
        seen: list[str] = []
        done = threading.Event()

        def handler(event: aembus.Event, depth: int) -> None:
            seen.append(f"begin {depth}")
            if depth < 3:
                member.activate("p", depth + 1)
            seen.append(f"end {depth}")
            if depth == 3:
                done.set()

        member.register("p", handler)
        member.activate("p", 0)
        compute_until(done)
        assert seen == [f"{word} {depth}" for depth in range(4) for word in ("begin", "end")]


def test_masked_holds_off_and_delivers_on_leaving(bus: str) -> None:
    """Nothing is delivered inside the block, also a nested one, and all of it at its end."""
    with aembus.connect(bus, delivery="interrupt") as member, aembus.connect(bus) as producer:
        seen: list[int] = []
        member.register("p", lambda event, n: seen.append(n))
        with member.masked():
            with member.masked():
                for number in range(20):
                    producer.activate("p", number)
            for _ in range(10000):
                assert seen == []
        assert seen == list(range(20))
        producer.activate("p", 20)  # and it goes on
        until("the next job", lambda: len(seen) == 21)


def test_what_is_there_before_is_delivered(bus: str) -> None:
    """A member with a name finds what was queued, once its registrations are published."""
    with aembus.connect(bus, name="m") as first:
        first.register("p", print, name="h")
        first.publish_registrations()
        with aembus.connect(bus) as producer:
            assert producer.activate("p", 1) == 1
        first.close(keep=True)
    seen: list[int] = []
    with aembus.connect(bus, name="m", delivery="interrupt") as member:
        member.register("p", lambda event, n: seen.append(n), name="h")
        assert seen == []
        member.publish_registrations()
        until("the job", lambda: seen == [1])


def test_activations_that_are_interrupted_by_handlers_that_activate(bus: str) -> None:
    """The program activates in a loop, so do the handlers that interrupt it: nothing is lost."""
    jobs = 3000
    with aembus.connect(bus, delivery="interrupt") as member, aembus.connect(bus) as other:
        got: list[tuple[str, int]] = []
        done = threading.Event()
        answers = member.point("q")

        def answer(event: aembus.Event, number: int) -> None:
            answers.activate("handler", number, timeout=30.0)
            if number == jobs - 1:
                done.set()

        def collect(event: aembus.Event, who: str, number: int) -> None:
            got.append((who, number))

        member.register("p", answer)
        other.register("q", collect)
        other.run_in_thread()
        with sender(bus, jobs):
            sent = 0
            while not done.is_set():
                answers.activate("program", sent, timeout=30.0)
                sent += 1
        until("all of them", lambda: len(got) == sent + jobs)
        assert [n for who, n in got if who == "program"] == list(range(sent))
        assert [n for who, n in got if who == "handler"] == list(range(jobs))


def test_the_supervisor_answers_while_an_activation_is_interrupted(bus: str) -> None:
    """A handler that interrupts an activation may ask the supervisor, also while somebody leaves.

    The supervisor wants to know then whether the activation is through: it cannot be.
    """
    with aembus.connect(bus) as member, aembus.connect(bus) as other:
        before = member._membership.reader.generation
        leaving = threading.Thread(target=other.close)
        with member._sender._gate.lock:  # as it is in such a handler
            leaving.start()
            until("it leaves", lambda: member._membership.reader.generation > before)
            counters = [member.counter(f"counter {number}") for number in range(8)]
        leaving.join()
        assert len(counters) == 8


def test_a_timer_interrupts(bus: str) -> None:
    """A timer's handler comes as any other."""
    with aembus.connect(bus, delivery="interrupt") as member:
        seen: list[str] = []
        timer = member.service("timer")
        timer.after(0.001, lambda event: seen.append("fired"))
        until("the timer", lambda: seen == ["fired"])


def test_a_handler_that_raises_is_tried_again_and_then_a_dead_letter(bus: str) -> None:
    """An exception does not reach the program; a retry comes without any post."""
    with aembus.connect(bus, delivery="interrupt") as member:
        attempts: list[int] = []

        def fail(event: aembus.Event) -> None:
            assert event.job is not None
            attempts.append(event.job.attempt)
            raise RuntimeError("on purpose")

        member.register("p", fail, retries=2, backoff=0.01)
        member.activate("p")
        until("the dead letter", lambda: statistics(bus)["totals"]["dead_lettered"] == 1)
        assert attempts == [1, 2, 3]


def test_what_is_no_exception_passes_into_the_program(bus: str) -> None:
    """SystemExit ends the program where it is, and those behind it come if it goes on."""
    with aembus.connect(bus, delivery="interrupt") as member, aembus.connect(bus) as producer:
        seen: list[int] = []

        def leave(event: aembus.Event, number: int) -> None:
            if number == 0:
                raise SystemExit(7)
            seen.append(number)

        member.register("p", leave)
        with pytest.raises(SystemExit), member.masked():  # noqa: PT012  # raised on leaving
            producer.activate("p", 0)
            producer.activate("p", 1)
        until("the other job", lambda: seen == [1])


def test_run_and_poll_deliver_as_ever(bus: str) -> None:
    """A program that has nothing else to do may run the bus; a handler may stop it, or close it."""
    with aembus.connect(bus, delivery="interrupt") as member, aembus.connect(bus) as producer:
        seen: list[int] = []

        def handler(event: aembus.Event, number: int) -> None:
            seen.append(number)
            if number == 2:
                member.close()

        member.register("p", handler)
        with member.masked():
            producer.activate("p", 1)
            assert member.poll() == 1
        threading.Timer(0.05, lambda: producer.activate("p", 2)).start()
        member.run()
        assert seen == [1, 2]
        with pytest.raises(aembus.BusClosed):
            member.activate("p", 3)


def test_refusals(bus: str) -> None:
    """A second one, another thread, a signal that is used: each is told, and nothing is left."""
    with aembus.connect(bus, delivery="interrupt") as member:
        with pytest.raises(aembus.AembusError, match="one bus object"):
            aembus.connect(bus, delivery="interrupt")
        with pytest.raises(aembus.AembusError, match="no thread"):
            member.run_in_thread()
    caught: list[BaseException] = []

    def elsewhere() -> None:
        try:
            aembus.connect(bus, delivery="interrupt")
        except aembus.AembusError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
    before = signal.signal(signal.SIGURG, lambda *_: None)
    try:
        with pytest.raises(aembus.AembusError, match="SIGURG"):
            aembus.connect(bus, delivery="interrupt")
    finally:
        signal.signal(signal.SIGURG, before)
    with pytest.raises(ValueError, match="reconnect"):
        aembus.connect(bus, delivery="interrupt", reconnect=True)
    with aembus.connect(bus, delivery="interrupt"):
        pass
    assert signal.getsignal(signal.SIGURG) == before


def test_a_killed_member_with_a_pipe_for_a_bell_disturbs_no_producer(bus: str) -> None:
    """Who posts a bell that nobody has open any more, before its owner has left, goes on."""
    script = (
        "import sys, time, aembus; bus = aembus.connect(sys.argv[1], name='m', "
        "delivery='interrupt'); bus.register('p', lambda event, n: print(n, flush=True), "
        "name='h'); bus.publish_registrations(); time.sleep(60)"
    )
    with aembus.connect(bus) as producer:
        with subprocess.Popen(
            [sys.executable, "-c", script, bus], stdout=subprocess.PIPE, text=True
        ) as process:
            until("the registration", lambda: producer.activate("p", 1))
            assert process.stdout is not None
            assert process.stdout.readline() == "1\n"
            process.kill()
            process.wait()
        for number in range(5):
            assert producer.activate("p", number) == 1
        seen: list[int] = []
        with aembus.connect(bus, name="m") as successor:
            successor.register("p", lambda event, n: seen.append(n), name="h")
            while successor.poll(0.1):
                pass
        assert seen[-5:] == list(range(5))


def test_a_forked_child_is_not_interrupted(bus: str) -> None:
    """The child's copy does nothing; the parent's goes on."""
    with aembus.connect(bus, delivery="interrupt") as member, aembus.connect(bus) as producer:
        seen: list[int] = []
        member.register("p", lambda event, n: seen.append(n))
        child = os.fork()
        if not child:
            os._exit(0 if signal.getsignal(signal.SIGURG) is signal.SIG_DFL else 1)
        assert os.waitpid(child, 0)[1] == 0
        producer.activate("p", 1)
        until("the job", lambda: seen == [1])


def test_what_another_thread_has_closed_may_be_connected_again(bus: str) -> None:
    """That thread cannot give the signal back; the next one finds what was there before."""
    for _ in range(2):
        member = aembus.connect(bus, delivery="interrupt")
        thread = threading.Thread(target=member.close)
        thread.start()
        thread.join()
    with aembus.connect(bus, delivery="interrupt") as member:
        seen: list[int] = []
        member.register("p", lambda event, n: seen.append(n))
        member.activate("p", 1)
        until("the job", lambda: seen == [1])
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL


def test_a_handler_may_call_whatever_it_interrupts(bus: str) -> None:
    """In the middle of an activation it would wait for what that keeps from being sent."""
    with (
        aembus.connect(bus, delivery="interrupt") as member,
        aembus.connect(bus) as callee,
        aembus.connect(bus) as producer,
    ):
        callee.register("ask", lambda event, n: 2 * n)
        callee.run_in_thread()
        sent: list[int] = []
        seen: list[int] = []
        point = member.point("ask")
        member.register("job", lambda event, n: seen.append(point.call(n, timeout=1.0)))
        member.activate("nobody")

        def run(at: At) -> None:
            member._sender.routes.drop_publishers()
            with at:
                member.activate("nobody")
            until("the answer", lambda: seen == [2 * n for n in sent])

        def send() -> None:
            sent.append(len(sent))
            producer.activate("job", sent[-1])

        def make(number: int) -> At:
            return At({number: send})

        assert every_bytecode(make, run) > 100
