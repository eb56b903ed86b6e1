"""Ctrl-C, and signal handlers that take replies, at every bytecode of calls."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

import aembus
from aembus.calls import Waiting
from aembus.codec import encode
from aembus.picking import IN_TURN
from aembus.shm import layout
from tests.support.calling import LONG_S
from tests.support.interruption import (
    Arrival,
    At,
    every_bytecode,
    every_ctrl_c,
    handler,
    interrupt,
    untraced,
)
from tests.support.lanes import implementations, use


class Caller:
    """A member with two calls under way whose answers lie in its inbox."""

    def __init__(self, bus: str, stack: contextlib.ExitStack) -> None:
        self._callee = stack.enter_context(aembus.connect(bus))
        self._bus = stack.enter_context(aembus.connect(bus))
        self._callee.register("p", lambda event, number: number)
        self._calls = self._bus._membership.calls
        self._wait = self._bus._inbox.wait
        self._bus._inbox.wait = self._answer_and_wait  # type: ignore[method-assign]
        self._point = self._bus.point("p")
        self.call(0)  # opens the lanes

    def _answer_and_wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        with untraced():
            self._callee.poll()
        return self._wait(ready, timeout_s)

    def call(self, number: int) -> object:
        """Call by the long way, and return the answer."""
        self._bus._sender.routes.drop_publishers()
        return self._point.call(number, timeout=LONG_S)

    def call_all(self, number: int) -> list[aembus.Answer]:
        """Call all, of whom there is one."""
        return self._point.call_all(number, timeout=LONG_S)

    def clear_up(self) -> None:
        """Have what was sent answered, and take that."""
        self._callee.poll()
        self.take()

    @property
    def under_way(self) -> int:
        """How many calls wait for answers."""
        return len(self._calls._waiting)

    def _ask(self) -> list[Waiting]:
        calls, deadline = self._calls, time.monotonic() + LONG_S
        asked = []
        for number in range(2):
            target = calls.the_one("p", IN_TURN)
            waiting = calls.begin()
            data = encode((number,))
            job = calls.request(waiting, target, "p", data, IN_TURN, 0, deadline)
            assert self._bus._sender.send(target, job, LONG_S, "p") == 1
            asked.append(waiting)
        assert self._callee.poll() == 2
        return asked

    def take(self) -> None:
        """Take the replies that are there."""
        self._calls.take_replies()

    def run(self, at: At) -> None:
        """Take replies, with what happens meanwhile, and then what there may be left."""
        asked = self._ask()
        with contextlib.suppress(KeyboardInterrupt), at:
            self.take()
        assert not self._calls._handing_over, at.where
        self.take()
        assert [waiting.result()[0] for waiting in asked] == [0, 1], at.where
        for waiting in asked:
            self._calls.end(waiting)
        assert not self._unfinished(), at.where
        assert not self._bus._inbox._words[layout.CORRUPTED // layout.WORD], at.where

    @property
    def late_replies(self) -> int:
        """How many replies were handed over to nobody."""
        return self._calls.late_replies

    def _unfinished(self) -> int:
        inbox = self._bus._inbox
        return sum(inbox._counts(number).queued for number in inbox.backlog())


@pytest.fixture(params=implementations(), ids=lambda module: module.IMPLEMENTATION)
def caller(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, bus_name: str
) -> Iterator[Caller]:
    """A caller, and who answers it."""
    module: ModuleType = request.param
    use(monkeypatch, module)
    with contextlib.ExitStack() as stack:
        stack.enter_context(aembus.Supervisor(bus_name))
        yield Caller(bus_name, stack)


def test_ctrl_c_costs_no_answer(caller: Caller) -> None:
    """Wherever Ctrl-C falls, each call gets its answer, and no reply keeps its room."""
    assert every_ctrl_c(caller.run) > 50


def at_signal(number: int) -> At:
    """Let the signal arrive; Python runs its handler when it next looks for signals."""
    return At({number: Arrival(signal.SIGUSR1)})


def test_a_handler_may_take_replies(caller: Caller) -> None:
    """Wherever a signal handler takes replies itself, each call gets its answer, once."""
    with handler(signal.SIGUSR1, caller.take):
        assert every_bytecode(at_signal, caller.run) > 50
    assert caller.late_replies == 0


def test_a_handler_may_take_replies_and_raise(caller: Caller) -> None:
    """Both at once: the same."""

    def take_and_raise() -> None:
        caller.take()
        interrupt()

    with handler(signal.SIGUSR1, take_and_raise):
        assert every_bytecode(at_signal, caller.run) > 50


def test_ctrl_c_leaves_no_call_behind(caller: Caller) -> None:
    """Wherever Ctrl-C falls in a call, nobody waits for its answer, and the next one is looked for.

    A process with another call under way does not look for answers before it sleeps.
    """

    def run(at: At) -> None:
        with contextlib.suppress(KeyboardInterrupt), at:
            assert caller.call(3) == 3
        caller.clear_up()
        assert not caller.under_way, at.where
        assert caller.call(4) == 4

    assert every_ctrl_c(run) > 200


def test_ctrl_c_leaves_none_of_several_calls_behind(caller: Caller) -> None:
    """The same for all that are called at once."""

    def run(at: At) -> None:
        with contextlib.suppress(KeyboardInterrupt), at:
            assert [answer.value for answer in caller.call_all(3)] == [3]
        caller.clear_up()
        assert not caller.under_way, at.where

    assert every_ctrl_c(run) > 200


def test_an_answer_in_the_middle_of_an_activation_finds_a_caller_who_has_just_come(
    bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that interrupts may answer somebody of whom its process has not heard yet."""
    with (
        aembus.Supervisor(bus_name),
        aembus.connect(bus_name) as callee,
        aembus.connect(bus_name) as receiver,
    ):
        receiver.register("p", lambda event: None)
        answers = callee.event_struct._answers
        header: list[int] = [0] * 12

        def answer() -> None:
            assert answers.result(header, 42, "e")

        def run(at: At) -> None:
            with untraced(), aembus.connect(bus_name) as caller:
                calls = caller._membership.calls
                waiting = calls.begin()
                caller._inbox.reserve_reply_lane(callee.slot)
                header[2:4] = layout.FLAG_WANTS_REPLY, caller.slot
                header[7:10] = time.monotonic_ns() + 10**10, waiting.reply_id, caller.incarnation
                with at:
                    callee.activate("p")
                receiver.poll()
                calls.take_replies()
                assert not at.happened or waiting.answer is not None, at.where
                calls.end(waiting)

        with handler(signal.SIGUSR1, answer):
            assert every_bytecode(lambda number: at_signal(4 * number), run) > 50
