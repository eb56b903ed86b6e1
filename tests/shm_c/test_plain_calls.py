"""Calls in C: a call and its answer are one step each, and what is not plain is left to Python."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
from types import SimpleNamespace
from typing import Any, Final

import pytest

from aembus.callchain import wrap
from aembus.codec import decode, encode
from aembus.shm import layout
from aembus.shm.layout import KIND_CALL, KIND_REPLY
from tests.support.c_lane import lane_in_c
from tests.support.delivery import EVENT, Bench
from tests.support.delivery import Event as PlainEvent
from tests.support.lanes import INCARNATION, LaneMemory

lane_c = lane_in_c()

REPLY_ID: Final = INCARNATION << 32 | 5
DEADLINE_NS: Final = 1 << 62
GENERATION: Final = 7
LONG_NS: Final = 60_000_000_000  # that no test looks for
NOT_ANSWERED: Final = SimpleNamespace(answer=None)


class Event(PlainEvent):
    name = "double"


class Way:
    """A lane with both its ends, and a Publisher of records of one kind by it."""

    def __init__(self, kind: int, members: int = 1) -> None:
        self.lanes = [LaneMemory(lane_c, 4096) for _ in range(members)]
        self.producers: list[Any] = [lane.producer() for lane in self.lanes]
        self.consumers: list[Any] = [lane.consumer() for lane in self.lanes]
        self.registry = memoryview(bytearray(layout.REGISTRY_HALVES))
        self.registry.cast("Q")[layout.GENERATION // layout.WORD] = GENERATION
        inbox = memoryview(bytearray(512))
        self.group = [
            (producer, self, inbox, layout.SLEEPING, EVENT + n, False)
            for n, producer in enumerate(self.producers)
        ]
        self.publisher = self.publisher_of(kind, self.group)

    def publisher_of(self, kind: int, *groups: list[tuple[Any, ...]]) -> Any:
        arguments = (self.registry, layout.GENERATION, GENERATION, 0, list(groups))
        flags = layout.FLAG_WANTS_REPLY if kind == KIND_CALL else 0
        return lane_c.Publisher(*arguments, kind, flags)

    def call(
        self,
        *data: Any,
        key_hash: int = -1,
        lanes: list[Any] | None = None,
        moment_ns: int = LONG_NS,
        waiting: Any = NOT_ANSWERED,
    ) -> Any:
        lanes = lanes or [None] * len(self.group)
        return self.publisher.call(data, key_hash, DEADLINE_NS, REPLY_ID, waiting, lanes, moment_ns)

    def ring(self) -> None:
        raise AssertionError("nobody sleeps")


class Callee(Bench):
    """A bench whose jobs are calls, and the way back to who calls."""

    make_event = Event

    def __init__(self) -> None:
        super().__init__(lane_c)
        self.back = Way(KIND_REPLY)
        self.publishers: dict[int, Any] = {INCARNATION: self.back.publisher}
        self.answers: list[tuple[Any, ...]] = []
        self.event.handler = lambda event, number: 2 * number

    def call(self, *data: Any, chain: tuple[int, ...] = (), flags: int = 1) -> None:
        payload = wrap(chain, encode(data))
        fields = (KIND_CALL, flags, EVENT, 0, DEADLINE_NS, REPLY_ID, 0, 0)
        assert self.producer.claim(payload, *fields)
        self.producer.commit()

    def run(self) -> int:
        events, stopping = self.events, self.stopping
        return self.consumer.deliver(events, decode, 100, stopping, self.publishers, self._answer)

    def _answer(self, record: Any, result: Any, event: Any) -> bool:
        self.answers.append((record.payload, record.reply_id, result, event))
        return True

    def sent(self) -> list[tuple[int, list[Any]]]:
        """Take what went back: each answer's reply id and data."""
        found = []
        while (record := self.back.consumers[0].take()) is not None:
            assert record.kind == KIND_REPLY
            found.append((record.reply_id, decode(record.payload)))
            self.back.consumers[0].done(record)
        return found


# --- calling --------------------------------------------------------------------------------------


def test_a_call_has_all_that_a_call_has() -> None:
    """Kind, flag, deadline, reply id, key, event, and the data behind a chain of nobody."""
    way = Way(KIND_CALL)
    assert way.call("text", 5, key_hash=9) == 1
    record = way.consumers[0].take()
    assert (record.kind, record.flags) == (KIND_CALL, layout.FLAG_WANTS_REPLY)
    assert (record.deadline_ns, record.reply_id) == (DEADLINE_NS, REPLY_ID)
    assert (record.event_id, record.key_hash) == (EVENT, 9)
    assert record.payload == wrap((), encode(("text", 5)))


def test_it_says_who_got_the_call() -> None:
    """The place in the group, from 1 on, by key or in turn; 0 and no turn taken if nobody did."""
    way = Way(KIND_CALL, members=3)
    assert [way.call(key_hash=key) for key in (0, 1, 2, 5)] == [1, 2, 3, 3]
    assert [way.call() for _ in range(4)] == [2, 3, 1, 2]
    way.registry.cast("Q")[layout.GENERATION // layout.WORD] = GENERATION + 1
    assert way.call() == 0
    way.registry.cast("Q")[layout.GENERATION // layout.WORD] = GENERATION
    assert way.call() == 3


def test_a_call_concerns_one_group() -> None:
    """Of several, or none, nothing is sent."""
    way = Way(KIND_CALL, members=2)
    for groups in ([], [way.group[:1], way.group[1:]]):
        way.publisher = way.publisher_of(KIND_CALL, *groups)
        assert way.call() == 0
    assert [consumer.take() for consumer in way.consumers] == [None, None]


@pytest.mark.parametrize("data", [{1}, "\ud800", b"x" * 5000, 1 << 70])
def test_data_that_are_not_plain_are_left_to_python(data: object) -> None:
    """Nothing is sent; Python encodes them, or says what is wrong with them."""
    way = Way(KIND_CALL)
    assert way.call(data) == 0
    assert way.consumers[0].take() is None


# --- answering ------------------------------------------------------------------------------------


def test_a_call_is_answered_before_it_is_done() -> None:
    """With the result and the event's name; a kill in between leaves no caller waiting."""
    callee = Callee()
    callee.call(21)
    assert callee.run() == 1
    assert callee.sent() == [(REPLY_ID, [42, "double"])]
    assert (callee.answers, callee.queued, callee.event.delivered) == ([], 0, 1)
    callee.publishers.clear()
    states: list[int] = []

    def answer(record: Any, result: Any, event: Any) -> bool:
        states.append(callee.state(1))
        return True

    callee._answer = answer  # type: ignore[method-assign]
    callee.call(21)
    assert callee.run() == 1
    assert [state & layout.STATE_MASK for state in states] == [layout.STATE_STARTED]
    assert callee.queued == 0


def test_a_call_whose_answer_cannot_be_sent_stays_in_hand() -> None:
    """Its state says so to whoever takes the inbox over; what is behind it is delivered."""
    callee = Callee()
    callee.publishers.clear()
    callee._answer = lambda *_: False  # type: ignore[method-assign]
    callee.call(21)
    assert callee.run() == 1
    assert callee.state(0) & layout.STATE_MASK == layout.STATE_STARTED
    assert (callee.queued, callee.event.delivered) == (1, 0)


@pytest.mark.parametrize("result", [{1, 2}, "\ud800", b"x" * 5000, 1 << 70])
def test_a_result_that_is_not_plain_is_left_to_python(result: object) -> None:
    """As is one that its caller's lane has no room for, or that has no way back yet."""
    callee = Callee()
    callee.event.handler = lambda event, number: result
    callee.call(1)
    assert callee.run() == 1
    assert callee.sent() == []
    assert callee.answers == [(wrap((), encode((1,))), REPLY_ID, result, callee.event)]
    callee.event.handler = lambda event, number: number
    while callee.back.producers[0].claim(b"", KIND_REPLY, 0, 0, 0, 0, 0, 0, 0):
        pass
    callee.back.producers[0].commit()
    callee.call(2)
    callee.publishers[INCARNATION + 1] = callee.back.publisher
    assert callee.run() == 1
    del callee.publishers[INCARNATION]
    callee.call(3)
    assert callee.run() == 1
    assert [answer[2] for answer in callee.answers[1:]] == [2, 3]
    assert callee.queued == 0


def test_which_calls_are_left_to_take() -> None:
    """One with a chain, without an answer, or damaged; all of them if none can be sent."""
    callee = Callee()
    consumer: Any = callee.consumer
    callee.call(1, chain=(5,))
    callee.call(1, flags=0)
    for _ in range(2):
        assert callee.run() == 0
        consumer.done(consumer.take())
    assert callee.producer.claim(b"xy", KIND_CALL, 1, EVENT, 0, 0, 0, 0, 0)
    callee.producer.commit()
    assert callee.run() == 0
    consumer.done(consumer.take())
    callee.call(1)
    assert callee.deliver() == 0
    assert consumer.take().kind == KIND_CALL


def test_a_call_that_is_held_is_not_answered() -> None:
    """It stays HELD, for whoever completes it."""
    callee = Callee()
    held: list[Any] = []

    def hold(event: Any, number: int) -> str:
        record = event.lane.in_hand
        assert decode(record.payload[4:]) == [number]
        event.lane.hold(record)
        held.append(record)
        return "not this"

    callee.event.handler = hold
    callee.call(1)
    assert callee.run() == 1
    assert (callee.sent(), callee.answers, callee.queued) == ([], [], 1)
    callee.consumer.done(held.pop())
    assert callee.queued == 0


def test_a_call_whose_handler_raises_is_in_hand() -> None:
    """Nothing is sent: whoever delivers knows what becomes of it."""
    callee = Callee()
    callee.call("text", "more")
    with pytest.raises(TypeError):
        callee.run()
    record = callee.consumer.in_hand
    assert record is not None
    assert (record.kind, record.reply_id) == (KIND_CALL, REPLY_ID)
    assert (callee.sent(), callee.answers) == ([], [])


def test_a_handler_that_closes_the_lane_answers_nobody() -> None:
    """Nothing of the closed memory is touched."""
    callee = Callee()
    callee.event.handler = lambda event, number: callee.consumer.close()
    callee.call(1)
    with pytest.raises(ValueError, match="closed"):
        callee.run()
    assert (callee.sent(), callee.answers) == ([], [])


# --- looking for the answer -----------------------------------------------------------------------


class Caller(Way):
    """A way of calls, and the lane by which the answers come."""

    def __init__(self) -> None:
        super().__init__(KIND_CALL)
        self.lane = LaneMemory(lane_c, 4096)
        self.producer: Any = self.lane.producer()
        self.replies: Any = self.lane.consumer()

    def answer(
        self, payload: bytes, reply_id: int = REPLY_ID, kind: int = KIND_REPLY, flags: int = 0
    ) -> None:
        assert self.producer.claim(payload, kind, flags, 0, 0, 0, reply_id, 0, 0)
        self.producer.commit()

    def look(self, moment_ns: int = LONG_NS, waiting: Any = NOT_ANSWERED) -> Any:
        return self.call(lanes=[self.replies], moment_ns=moment_ns, waiting=waiting)


def test_an_answer_is_finished_when_it_is_returned() -> None:
    """The result alone if it is plain; else flags and payload, for Python to decode."""
    caller = Caller()
    caller.answer(encode(({"a": [1]}, "event")))
    assert caller.look() == ({"a": [1]},)
    rich = encode(({5}, "event"))
    caller.answer(rich)
    assert caller.look() == (0, rich)
    for flag in (layout.FLAG_FAILED, layout.FLAG_RETURNED):
        caller.answer(encode(()), flags=flag)
        assert caller.look() == (flag, encode(()))
    assert caller.lane.counts().queued == 0


def test_what_is_not_ones_own_answer_is_left_to_take() -> None:
    """In its order, and not finished; the call is still to be awaited then."""
    caller = Caller()
    caller.answer(b"late", REPLY_ID - 1)
    caller.answer(encode(("mine", "")))
    assert caller.look() == 1
    assert caller.look() == 1
    late = caller.replies.take()
    assert late.payload == b"late"
    assert caller.look() == ("mine",)
    assert caller.lane.counts().queued == 2  # the late one is not finished
    caller.replies.done(late)
    assert caller.lane.counts().queued == 0
    caller.answer(b"", kind=KIND_CALL)
    assert caller.look() == 1
    assert caller.replies.take().kind == KIND_CALL


def test_looking_ends() -> None:
    """With the moment; when another thread has the answer; where the callee waits for room."""
    caller = Caller()
    assert caller.look(moment_ns=1000) == 1
    assert caller.look(waiting=SimpleNamespace(answer=(0, b""))) == 1
    caller.answer(encode(("mine", "")))
    caller.producer.want_room(True)
    assert caller.look() == 1
    caller.producer.want_room(False)
    assert caller.look(moment_ns=0) == 1
    assert caller.look() == ("mine",)
    caller.replies.close()
    assert caller.look() == 1


def test_what_cannot_be_followed_is_left_to_take() -> None:
    """It raises there, and not here."""
    caller = Caller()
    caller.answer(b"x", kind=99)
    for _ in range(2):
        assert caller.look() == 1
    with pytest.raises(lane_c.CorruptLane):
        caller.replies.take()


def test_what_a_signal_handler_raises_ends_looking() -> None:
    """It comes through; the call was published."""
    caller = Caller()

    def stop(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        with pytest.raises(InterruptedError):
            caller.look()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caller.consumers[0].take() is not None


def test_no_reference_is_lost_or_left_over() -> None:
    """Neither on the short way nor on the others."""

    def everything() -> None:
        callee = Callee()
        for handler in (lambda event, *data: data, lambda event, *data: {5}):
            callee.event.handler = handler
            callee.call(1, "x")
            callee.run()
        callee.call(1, chain=(5,))
        callee.run()
        caller = Caller()
        for payload in (encode(([1 << 60], "")), encode(({5}, "")), b"", encode(())):
            caller.answer(payload)
            with contextlib.suppress(ValueError):
                caller.look()
        caller.answer(b"late", 5)
        caller.look()
        caller.look(moment_ns=1)
        with contextlib.suppress(TypeError):
            caller.publisher.call(5)

    for _ in range(20):
        everything()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(200):
        everything()
    gc.collect()
    assert sys.getallocatedblocks() - before < 100
