"""Whatever handlers do, `LaneConsumer.deliver` keeps its promises in every implementation."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from aembus.codec import decode
from aembus.shm import layout
from tests.support.delivery import EVENT, OTHER, Bench, Event

pytestmark = pytest.mark.usefixtures("event_kind")


class Trouble(Exception):
    pass


class Quit(BaseException):
    pass


@pytest.mark.parametrize("error", [Trouble, Quit, KeyboardInterrupt, StopIteration, MemoryError])
def test_what_a_handler_raises_comes_through(
    lane_module: ModuleType, error: type[BaseException]
) -> None:
    """The record is in hand then, started and not finished; those before it are done."""
    bench = Bench(lane_module)
    raised = error("sorry")

    def handler(event: Event, number: int) -> None:
        if number == 2:
            raise raised
        event.seen.append((number,))

    bench.event.handler = handler
    for number in range(4):
        assert bench.send(number)
    with pytest.raises(error) as caught:
        bench.deliver()
    assert caught.value is raised
    assert bench.event.delivered == bench.consumer.delivered == 2
    assert bench.event.lane is bench.consumer
    record = bench.consumer.in_hand
    assert record is not None
    assert decode(record.payload) == [2]
    assert (record.sequence, record.attempts, bench.queued) == (3, 1, 2)
    assert bench.state(2) == layout.STATE_STARTED | 1 << layout.STATE_ATTEMPT_SHIFT
    bench.consumer.dead(record)
    assert bench.deliver() == 1
    assert bench.consumer.in_hand is None
    assert bench.event.seen == [(0,), (1,), (3,)]
    counts = bench.memory.counts()
    assert (counts.delivered, counts.dead_lettered, counts.queued) == (3, 1, 0)


def test_what_cannot_be_decoded_is_in_hand(lane_module: ModuleType) -> None:
    """What the decoder raises comes through as if from the handler, and so does nonsense of it."""
    bench = Bench(lane_module)

    def fail(payload: bytes) -> list[Any]:
        raise Trouble

    assert bench.send(1)
    with pytest.raises(Trouble):
        bench.deliver(decoder=fail)
    assert bench.consumer.in_hand is not None
    bench.consumer.done(bench.consumer.in_hand)
    assert bench.send(2)
    with pytest.raises(TypeError):
        bench.deliver(decoder=lambda payload: 5)
    assert bench.consumer.in_hand is not None
    bench.consumer.done(bench.consumer.in_hand)
    assert (bench.event.seen, bench.queued, bench.event.delivered) == ([], 0, 0)


def test_a_handler_that_takes_something_else(lane_module: ModuleType) -> None:
    """A handler whose arguments do not fit fails like one that raises."""
    bench = Bench(lane_module)
    bench.event.handler = lambda event: None
    assert bench.send(1, 2)
    with pytest.raises(TypeError, match="positional argument"):
        bench.deliver()
    assert bench.consumer.in_hand is not None


def test_the_job_is_in_hand_for_its_handler_alone(lane_module: ModuleType) -> None:
    """In a handler `lane.in_hand` is its record, with the header as it was taken; else None."""
    bench = Bench(lane_module)
    seen = []

    def handler(event: Event, number: int) -> None:
        assert event.lane is bench.consumer
        record = event.lane.in_hand
        assert record is not None
        seen.append((number, decode(record.payload), record.sequence, record.attempts))
        assert (event is bench.other) == (bench.event.lane is None)
        assert (event is bench.event) == (bench.other.lane is None)

    bench.event.handler = bench.other.handler = handler
    for number, event_id in enumerate((EVENT, EVENT, OTHER, EVENT, OTHER)):
        assert bench.send(number, event_id=event_id)
    assert bench.consumer.in_hand is None
    assert bench.deliver() == 5
    assert seen == [(n, [n], n + 1, 1) for n in range(5)]
    assert bench.consumer.in_hand is None
    assert bench.event.lane is bench.other.lane is None


def test_the_count_is_right_whenever_somebody_looks(lane_module: ModuleType) -> None:
    """A handler sees in `delivered` all jobs of its event before this one."""
    bench = Bench(lane_module)
    counts: dict[Event, list[int]] = {bench.event: [], bench.other: []}
    bench.event.handler = bench.other.handler = lambda event: counts[event].append(event.delivered)
    for event_id in (EVENT, EVENT, OTHER, OTHER, OTHER, EVENT):
        assert bench.send(event_id=event_id)
    bench.event.delivered = 1000
    assert bench.deliver() == 6
    assert counts == {bench.event: [1000, 1001, 1002], bench.other: [0, 1, 2]}
    assert (bench.event.delivered, bench.other.delivered) == (1003, 3)


def test_a_handler_may_take_its_event_away(lane_module: ModuleType) -> None:
    """The job of an event that its own handler removes is done; the next one is left to `take`."""
    bench = Bench(lane_module)
    seen = []

    class Context:
        pass

    def handler(event: Event, number: int) -> None:
        seen.append(number)
        if number == 1:
            bench.events.clear()
            bench.events[OTHER] = bench.other

    event: Any = bench.make_event(handler)
    event.context = Context()
    gone = weakref.ref(event.context)
    bench.events[EVENT] = event
    bench.event = bench.make_event()
    del event
    for number in range(3):
        assert bench.send(number)
    assert bench.deliver() == 2
    gc.collect()
    assert gone() is None
    record = bench.consumer.take()
    assert record is not None
    assert (decode(record.payload), seen, bench.queued) == ([2], [0, 1], 1)


def test_a_handler_may_put_another_event_in_place(lane_module: ModuleType) -> None:
    """The next job goes to the event that has the id then."""
    bench = Bench(lane_module)
    second = bench.make_event()
    bench.event.handler = lambda event, number: bench.events.update({EVENT: second})
    for number in range(3):
        assert bench.send(number)
    assert bench.deliver() == 3
    assert second.seen == [(1,), (2,)]
    assert (bench.event.delivered, second.delivered) == (1, 2)
    assert bench.event.lane is second.lane is None


def test_classes_of_events_may_come_and_go(lane_module: ModuleType) -> None:
    """What is known of one class is not taken for true of the next, which may lie in its place."""
    bench = Bench(lane_module)
    seen = []

    def handler(event: Any, number: int) -> None:
        seen.append((number, event.delivered, event.lane is bench.consumer))
        names = [f"x{n}" for n in range(number % 5)]
        slots = (*names, "handler", "delivered", *names[1:2], "once", "lane")
        another: Any = type("Another", (), {"__slots__": tuple(dict.fromkeys(slots))})()
        another.handler, another.once, another.lane = handler, False, None
        another.delivered = 100 + number
        bench.events[EVENT] = another
        if number % 3:
            del event
            gc.collect()

    bench.event.handler = handler
    for number in range(30):
        assert bench.send(number)
    assert bench.deliver() == 30
    assert seen == [(0, 0, True), *((n, 99 + n, True) for n in range(1, 30))]
    assert bench.events[EVENT].delivered == 129


def test_a_handler_may_turn_its_event_into_one_for_one_job(lane_module: ModuleType) -> None:
    """`once` is looked at anew for each job."""
    bench = Bench(lane_module)

    def handler(event: Event, number: int) -> None:
        event.once = True

    bench.event.handler = handler
    for number in range(2):
        assert bench.send(number)
    assert bench.deliver() == 1
    record = bench.consumer.take()
    assert record is not None
    assert decode(record.payload) == [1]


@pytest.mark.parametrize("more", [0, 1])
def test_a_handler_may_close_the_lane(lane_module: ModuleType, more: int) -> None:
    """Closed inside a handler the lane is left as it is, with the job started, and says so."""
    bench = Bench(lane_module)
    bench.event.handler = lambda event, number: bench.consumer.close()
    for number in range(1 + more):
        assert bench.send(number)
    with pytest.raises(ValueError, match=r"closed|released"):
        bench.deliver()
    assert bench.queued == 1 + more
    assert bench.consumer.in_hand is None
    assert bench.event.lane is None
    assert bench.state(0) == layout.STATE_STARTED | 1 << layout.STATE_ATTEMPT_SHIFT
    with pytest.raises(ValueError, match=r"closed|released"):
        bench.deliver()
    replacement = bench.memory.consumer()
    record = replacement.take()
    assert record is not None
    assert (decode(record.payload), record.attempts) == ([0], 1)


def test_a_result_may_close_the_lane(lane_module: ModuleType) -> None:
    """What a handler returns may run code when it goes; a lane closed there is left as it is."""
    bench = Bench(lane_module)

    class Result:
        def __del__(self) -> None:
            bench.consumer.close()

    bench.event.handler = lambda event, number: Result()
    for number in range(2):
        assert bench.send(number)
    with pytest.raises(ValueError, match=r"closed|released"):
        bench.deliver()
    assert bench.queued == 2
    assert bench.consumer.in_hand is None
    assert bench.event.lane is None
    assert bench.state(0) == layout.STATE_STARTED | 1 << layout.STATE_ATTEMPT_SHIFT


def test_a_deliver_inside_a_handler_confuses_no_job(lane_module: ModuleType) -> None:
    """Whoever calls it nests his handlers; yet each job is run and finished once."""
    bench = Bench(lane_module)

    def handler(event: Event, number: int) -> None:
        event.seen.append((number,))
        if number in {1, 3}:
            assert bench.deliver(2) == 2
            event.seen.append(("after", number))

    bench.event.handler = handler
    for number in range(7):
        assert bench.send(number)
    bench.deliver()
    bench.deliver()
    first = [(0,), (1,), (2,), (3,)]
    assert bench.event.seen == [*first, (4,), (5,), ("after", 3), ("after", 1), (6,)]
    assert bench.event.delivered == bench.consumer.delivered == 7
    counts = bench.memory.counts()
    assert (counts.delivered, counts.queued) == (7, 0)
    assert bench.consumer.in_hand is None
    assert [bench.state(n) for n in range(7)] == [layout.STATE_DONE] * 7


def test_a_deliver_inside_a_handler_without_an_end(lane_module: ModuleType) -> None:
    """Handlers that nest without an end end in a RecursionError, and all jobs can be told apart."""
    bench = Bench(lane_module, 1 << 20)
    bench.event.handler = lambda event: bench.deliver()
    sent = 0
    while sent < 2000:
        assert bench.send()
        sent += 1
    with pytest.raises(RecursionError):
        bench.deliver()
    replacement = bench.memory.consumer()
    records = [*iter(replacement.take, None)]
    started = [record for record in records if record is not None and record.attempts]
    assert len(records) + bench.memory.counts().delivered == sent
    assert 0 < len(started) < sent


def test_a_handler_may_take_from_its_lane(lane_module: ModuleType) -> None:
    """What the handler takes and finishes itself is not run again."""
    bench = Bench(lane_module)

    def handler(event: Event, number: int) -> None:
        event.seen.append((number,))
        record = bench.consumer.take()
        if record is not None:
            bench.consumer.start(record)
            bench.consumer.done(record)

    bench.event.handler = handler
    for number in range(4):
        assert bench.send(number)
    assert bench.deliver() == 2
    assert bench.event.seen == [(0,), (2,)]
    assert (bench.queued, bench.memory.counts().delivered) == (0, 4)


def test_a_handler_may_skip_the_lane(lane_module: ModuleType) -> None:
    """`skip_to_tail` inside a handler gives up what is behind its job; the lane goes on."""
    bench = Bench(lane_module)
    bench.event.handler = lambda event, number: bench.consumer.skip_to_tail()
    for number in range(4):
        assert bench.send(number)
    assert bench.deliver() == 1
    assert bench.queued == 0
    assert bench.memory.counts().dead_lettered == 3
    bench.event.handler = Event._record
    assert bench.send(4)
    assert bench.deliver() == 1
    assert (bench.event.seen, bench.queued) == ([(4,)], 0)


class Watched(Event):
    """An event whose attributes call back."""

    def __init__(self, name: str, act: Callable[[], object]) -> None:
        self._name = ""
        super().__init__()
        self._act = act
        self._name = name

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "_name"):
            object.__getattribute__(self, "_act")()
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_name" and name == self._name:
            self._act()
        object.__setattr__(self, name, value)


@pytest.mark.parametrize("name", ["handler", "once", "lane", "delivered"])
def test_an_attribute_may_close_the_lane(lane_module: ModuleType, name: str) -> None:
    """Wherever Python code of an event runs, the lane may be closed there, and is not touched."""
    bench = Bench(lane_module)
    bench.events[EVENT] = Watched(name, bench.consumer.close)
    for number in range(2):
        assert bench.send(number)
    with pytest.raises(ValueError, match=r"closed|released"):
        bench.deliver()
    bench.producer.close()
    bench.memory.words.release()
    bench.memory.memory.release()  # nobody has a view of it any more
    del bench.events[EVENT]


@pytest.mark.parametrize("name", ["handler", "once", "lane", "delivered"])
def test_an_attribute_may_raise(lane_module: ModuleType, name: str) -> None:
    """What an attribute of an event raises comes through, and nothing is lost."""
    bench = Bench(lane_module)

    def fail() -> None:
        raise Trouble

    bench.events[EVENT] = Watched(name, fail)
    assert bench.send(1)
    with pytest.raises(Trouble):
        bench.deliver()
    record = bench.memory.consumer().take()
    if name == "delivered":  # counted after the job was done
        assert record is None
    else:
        assert record is not None
        assert decode(record.payload) == [1]
