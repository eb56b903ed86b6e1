"""Whatever is done with the lane in C, and however it fails, no reference is lost or left over."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest

from aembus.shm import layout
from tests.support.c_lane import lane_in_c
from tests.support.lanes import LaneMemory

lane_c = lane_in_c()

TIMES: Final = 400
EVENT: Final = 0x9000_0001
LARGE: Final = 1 << 40  # no number that Python keeps anyway
SLACK: Final = 40  # what the interpreter itself may keep; a lost reference shows TIMES times


class Event:
    __slots__ = ("__dict__", "delivered", "handler", "lane", "once")

    def __init__(self) -> None:
        self.handler: Callable[..., Any] = lambda event, *data: data
        self.once = False
        self.lane: Any = None
        self.delivered = LARGE


class WithoutSlots:
    def __init__(self) -> None:
        self.handler: Callable[..., Any] = lambda event, *data: data
        self.once = False
        self.lane: Any = None
        self.delivered = LARGE


class Incomplete:
    __slots__ = ("delivered", "handler", "once")


class World:
    """A lane with all that is done to it, made once."""

    def __init__(self) -> None:
        self.memory = LaneMemory(lane_c, 4096)
        self.producer: Any = self.memory.producer()
        self.consumer: Any = self.memory.consumer()
        self.event = Event()
        self.events: dict[int, Any] = {EVENT: self.event}
        self.decode: Callable[[bytes], Any] = lambda payload: [LARGE, payload]
        self.stopping = bytearray(1)
        self.payload = b"payload" * 10
        self.inbox = memoryview(bytearray(512))
        self.registry = memoryview(bytearray(layout.REGISTRY_HALVES))
        self.publisher = lane_c.Publisher(
            self.registry, layout.GENERATION, 0, 0, [[self.destination], [self.destination]]
        )
        self.on_ring: Callable[[], object] = lambda: None

    @property
    def destination(self) -> tuple[Any, ...]:
        return (self.producer, self, self.inbox, layout.SLEEPING, EVENT, False)

    def ring(self) -> None:
        self.on_ring()

    def claim(self, *, event_id: int = EVENT, kind: int = layout.KIND_JOB) -> None:
        self.producer.claim(self.payload, kind, 0, event_id, LARGE >> 9, LARGE, LARGE, 0, LARGE)

    def send(self, number: int = 1, **fields: int) -> None:
        for _ in range(number):
            self.claim(**fields)
            self.producer.commit()

    def deliver(self) -> None:
        self.consumer.deliver(self.events, self.decode, 100, self.stopping)

    def fail(self, *arguments: Any) -> None:
        raise LookupError(arguments)


def plain(world: World) -> None:
    """Deliver plain jobs, by two kinds of decoders."""
    world.send(3)
    world.deliver()
    world.decode = tuple
    world.send(1)
    world.deliver()
    world.decode = list
    world.events[EVENT] = WithoutSlots()
    world.send(3)
    world.deliver()


def other_records(world: World) -> None:
    """Take, look at and finish records out of order."""
    world.send(5, kind=layout.KIND_TIMER)
    world.deliver()
    records = [world.consumer.take() for _ in range(5)]
    for finish, record in zip(("done", "dead", "forwarded", "done"), records[1:], strict=True):
        world.consumer.start(record)
        getattr(world.consumer, finish)(record)
        for name in dir(record):
            getattr(record, name)
    world.consumer.done(records[0])
    world.consumer.has_records()
    world.consumer.wants_post()
    assert world.consumer.take() is None


def unknown_event(world: World) -> None:
    """Leave a record to `take`."""
    world.send(1, event_id=5)
    world.deliver()
    world.consumer.done(world.consumer.take())


def raising_handler(world: World) -> None:
    """Fail in the handler, the decoder, and each attribute."""
    world.event.handler = world.fail
    world.send()
    with contextlib.suppress(LookupError):
        world.deliver()
    world.consumer.done(world.consumer.in_hand)
    world.event = world.events[EVENT] = Event()
    world.decode = world.fail
    world.send()
    with contextlib.suppress(LookupError):
        world.deliver()
    world.consumer.done(world.consumer.in_hand)
    for decoded in (5, [1] * 20, iter([1])):
        world.decode = lambda payload, decoded=decoded: decoded  # type: ignore[misc]
        world.send()
        with contextlib.suppress(TypeError):
            world.deliver()
            continue
        world.consumer.done(world.consumer.in_hand)
    world.decode = list
    for missing in ("handler", "once", "delivered", "lane"):
        world.events[EVENT] = Incomplete()
        for name in {"handler", "once", "delivered"} - {missing}:
            setattr(world.events[EVENT], name, getattr(world.event, name))
        world.send()
        with contextlib.suppress(AttributeError):
            world.deliver()
        if world.consumer.in_hand is not None:
            world.consumer.done(world.consumer.in_hand)
    world.consumer = world.memory.consumer()  # some are neither in hand nor finished
    while (record := world.consumer.take()) is not None:
        world.consumer.done(record)


def taken_away(world: World) -> None:
    """Remove the event, and nest, in its handler."""
    event = Event()
    event.handler = lambda event, *data: world.events.clear()
    world.events[EVENT] = event
    world.send(2)
    world.deliver()
    world.consumer.done(world.consumer.take())
    world.events[EVENT] = event
    event.handler = lambda event, *data: world.deliver()
    world.send(3)
    world.deliver()


def corrupt(world: World) -> None:
    """Meet a record and a tail that make no sense."""
    tail = (world.memory.control + layout.LANE_TAIL) // layout.WORD
    world.send()
    good = world.memory.words[tail]
    for value in (good + 1, layout.CURSOR_OFFSET_MASK, 0):
        world.memory.words[tail] = value
        for method in (world.deliver, world.consumer.take):
            with contextlib.suppress(lane_c.CorruptLane):
                method()
        world.consumer.skip_to_tail()
    world.memory.words[tail] = good
    world.deliver()


def nonsense(world: World) -> None:
    """Call everything with what it does not take."""
    attempts: list[Callable[[], Any]] = [
        lambda: world.consumer.deliver({}, None, 1),
        lambda: world.consumer.deliver({}, None, "1", world.stopping),
        lambda: world.consumer.deliver({}, None, 1 << 80, world.stopping),
        lambda: world.consumer.start(None),
        lambda: world.consumer.done(world),
        lambda: world.producer.claim(b""),
        lambda: world.producer.claim(b"", "kind", 0, 0, 0, 0, 0, 0, 0),
        lambda: world.producer.claim(b"", 256, 0, 0, 0, 0, 0, 0, 0),
        lambda: world.producer.claim(b"", 2, 0, -1, 0, 0, 0, 0, 0),
        lambda: world.producer.claim(b"", 2, 0, 0, 0, 0, 0, 0, 1 << 64),
        lambda: world.producer.claim("text", 2, 0, 0, 0, 0, 0, 0, 0),
        lambda: world.producer.claim(bytes(4000), 2, 0, 0, 0, 0, 0, 0, 0),
        lambda: world.producer.put(b"", 1, 1 << 40, 1),
        lambda: world.producer.put("text", 1, 1, 1),
        lambda: lane_c.LaneConsumer(world.memory.memory, 8, 0, 512),
        lambda: lane_c.LaneConsumer(b"read only", 0, 0, 512),
        lambda: lane_c.LaneConsumer(None),
        lambda: lane_c.LaneProducer(world.memory.memory, 0, 0, 512, -1, 1),
        lambda: lane_c.LaneProducer(world.memory.memory, 1 << 40, 0, 512, 1, 1),
        lambda: lane_c.Publisher(world.registry, 64, 0, 0, [[world.destination], [None]]),
        lambda: lane_c.Publisher(world.registry, 64, 0, 0, [[world.destination[:4]]]),
        lambda: lane_c.Publisher(world.registry, 64, 0, 0, [[(world, *world.destination[1:])]]),
        lambda: lane_c.Publisher(world.registry, 7, 0, 0, [[world.destination]]),
        lambda: world.publisher.publish(b"", "key"),
        lane_c.Record,
    ]
    for attempt in attempts:
        with contextlib.suppress(TypeError, ValueError, OverflowError, BufferError):
            attempt()
            raise AssertionError(attempt)


def publishing(world: World) -> None:
    """Publish, ring, fail to ring, and find the lane full."""
    sleeping = world.inbox.cast("Q")
    for on_ring in (lambda: None, world.fail):
        world.on_ring = on_ring
        for asleep in (0, 5):
            sleeping[layout.SLEEPING // layout.WORD] = asleep
            with contextlib.suppress(LookupError):
                world.publisher.publish(world.payload, -1)
        world.deliver()
    world.on_ring = lambda: None
    while world.publisher.publish(world.payload, 7):
        pass
    world.publisher.publish(bytearray(), 7)
    world.deliver()
    world.producer.put(world.payload, EVENT, 5, LARGE)
    world.claim()
    world.producer.put(world.payload, EVENT, 5, LARGE)
    world.producer.abort()
    world.deliver()


def coming_and_going(world: World) -> None:
    """Make and drop ends, publishers and records, in cycles too."""
    world.send()
    consumer, producer = world.memory.consumer(), world.memory.producer()
    record: Any = consumer.take()
    cycle: list[Any] = [record, producer]
    cycle.append(cycle)
    other: Any = world.memory.consumer()
    other.deliver({}, list, 1, world.stopping)  # keeps the record that it returns: a cycle
    peer = World()
    peer.event.lane = lane_c.Publisher(
        world.registry, layout.GENERATION, 0, 0, [[peer.destination, world.destination]]
    )
    del peer, cycle, other, record
    consumer.close()
    producer.close()
    producer.close()
    world.deliver()


@pytest.mark.parametrize(
    "work",
    [
        plain,
        other_records,
        unknown_event,
        raising_handler,
        taken_away,
        corrupt,
        nonsense,
        publishing,
        coming_and_going,
    ],
    ids=lambda work: work.__name__,
)
def test_references_are_kept_in_order(work: Callable[[World], None]) -> None:
    """After many repetitions there are as many objects as before, and as many references."""
    times = TIMES // 10 if work in {coming_and_going, raising_handler} else TIMES
    slack = SLACK // 4 if times < TIMES else SLACK

    def count(world: World) -> list[int]:
        watched = (None, True, False, world, world.payload, world.memory.memory, world.stopping)
        more = (
            world.producer,
            world.consumer,
            world.events,
            world.inbox,
            world.registry,
            (),
            LARGE,
        )
        gc.collect()
        references = [sys.getrefcount(thing) for thing in (*watched, *more)]
        return [sys.getallocatedblocks(), *references]

    def repeat(world: World, times: int) -> None:
        for _ in range(times):
            work(world)
            world.events = {EVENT: world.event}
            world.decode = list
            world.event.handler = int  # until the next round
            world.event.handler = lambda event, *data: data
            world.event.lane = None
            world.event.delivered = LARGE

    world = World()
    repeat(world, 20)
    for _ in range(5):  # what is lost is lost each time; what the interpreter tidies up is not
        before = count(world)
        repeat(world, times)
        grown = [b - a for a, b in zip(before, count(world), strict=True)]
        if all(abs(more) < slack for more in grown):
            break
    else:
        pytest.fail(f"{times} times, growth={grown}")
    assert world.memory.gaps_are_whole()
