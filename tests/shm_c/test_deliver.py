"""`LaneConsumer.deliver` promises the same in every implementation of the lane."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import pytest

from aembus.codec import decode, encode
from aembus.shm import layout
from aembus.shm.lane import Record
from tests.support.delivery import EVENT, OTHER, Bench, Event
from tests.support.lanes import implementations

pytestmark = pytest.mark.usefixtures("event_kind")

# --- plain jobs -----------------------------------------------------------------------------------


def test_plain_jobs_are_run_in_order_and_done(lane_module: ModuleType) -> None:
    """Each job's handler gets its event and the data, once, in the order of the lane."""
    bench = Bench(lane_module)
    wanted = [(n, "text", b"bytes", [n, None], {"k": True, 1: 2.5}) for n in range(10)]
    for data in wanted:
        assert bench.send(*data)
    assert bench.deliver() == 10
    assert bench.event.seen == wanted
    assert bench.event.delivered == bench.consumer.delivered == 10
    counts = bench.memory.counts()
    assert (counts.sent, counts.delivered, counts.queued, counts.dead_lettered) == (10, 10, 0, 0)
    assert bench.deliver() == 0
    assert bench.consumer.take() is None


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100])
def test_any_number_of_arguments(lane_module: ModuleType, size: int) -> None:
    """Handlers get as many arguments as the activation had."""
    bench = Bench(lane_module)
    assert bench.send(*range(size))
    assert bench.deliver() == 1
    assert bench.event.seen == [tuple(range(size))]


@pytest.mark.parametrize("make", [tuple, list, dict.fromkeys, iter, "".join, lambda data: data])
def test_what_is_decoded_need_not_be_a_list(
    lane_module: ModuleType, make: Callable[[Any], Any]
) -> None:
    """Whatever can be spread into arguments will do."""
    bench = Bench(lane_module)
    assert bench.send()
    assert bench.deliver(decoder=lambda payload: make(("1", "2"))) == 1
    assert [tuple(map(int, seen)) for seen in bench.event.seen] == [(1, 2)]


def test_arguments_live_as_long_as_the_handler(lane_module: ModuleType) -> None:
    """A decoder that keeps its list may empty it while the handler works with its arguments."""
    bench = Bench(lane_module)
    kept: list[Any] = []

    def decoder(payload: bytes) -> list[Any]:
        kept[:] = [bytearray(b"a" * 1000), bytearray(b"b" * 1000)]
        return kept

    def handler(event: Event, *data: bytearray) -> None:
        kept.clear()
        gc.collect()
        event.seen.append(tuple(bytes(item[:2]) for item in data))

    bench.event.handler = handler
    assert bench.send()
    assert bench.deliver(decoder=decoder) == 1
    assert bench.event.seen == [(b"aa", b"bb")]


class Holder:
    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def method(self, event: Event, *data: Any) -> None:
        self._function(event, *data)


class Caller(Holder):
    def __call__(self, event: Event, *data: Any) -> None:
        self._function(event, *data)


@pytest.mark.parametrize("make", [lambda f: f, lambda f: Holder(f).method, Caller])
def test_any_callable_is_a_handler(lane_module: ModuleType, make: Callable[..., Any]) -> None:
    """Functions, bound methods and objects with `__call__` are called alike."""
    bench = Bench(lane_module)
    bench.event.handler = make(Event._record)
    for number in range(3):
        assert bench.send(number, "x")
    assert bench.deliver() == 3
    assert bench.event.seen == [(0, "x"), (1, "x"), (2, "x")]


def test_a_budget_ends_the_run(lane_module: ModuleType) -> None:
    """No more than the budget are run, and none with a budget of nothing."""
    bench = Bench(lane_module)
    for number in range(5):
        assert bench.send(number)
    assert bench.deliver(0) == bench.deliver(-1) == 0
    assert bench.deliver(2) == 2
    assert bench.deliver(2) == 2
    assert bench.queued == 1
    assert bench.deliver(2) == 1
    assert bench.event.seen == [(n,) for n in range(5)]


def test_stopping_ends_the_run_after_the_handler(lane_module: ModuleType) -> None:
    """The job whose handler stops is done; those behind it wait."""
    bench = Bench(lane_module)

    def handler(event: Event, number: int) -> None:
        event.seen.append((number,))
        if number == 1:
            bench.stopping[0] = 1

    bench.event.handler = handler
    for number in range(4):
        assert bench.send(number)
    assert bench.deliver() == 2
    assert bench.queued == 2
    assert bench.deliver() == 0
    bench.stopping[0] = 0
    assert bench.deliver() == 2
    assert bench.event.seen == [(n,) for n in range(4)]


def test_room_is_given_back_job_by_job(lane_module: ModuleType) -> None:
    """A handler sees the room of the jobs before its own: `head` moves after each."""
    bench = Bench(lane_module, 512)
    sent = 0
    while bench.send(sent):
        sent += 1
    queued = []
    bench.event.handler = lambda event, number: queued.append(bench.queued)
    assert bench.deliver() == sent
    assert queued == list(range(sent, 0, -1))


def test_the_state_is_started_in_the_handler_and_done_after_it(lane_module: ModuleType) -> None:
    """A kill inside a handler finds its record STARTED once, and those before it DONE."""
    bench = Bench(lane_module)
    started = layout.STATE_STARTED | 1 << layout.STATE_ATTEMPT_SHIFT
    states = []
    bench.event.handler = lambda event, *data: states.append([bench.state(n) for n in range(3)])
    for number in range(3):
        assert bench.send(number)
    assert bench.deliver() == 3
    new, done = layout.STATE_NEW, layout.STATE_DONE
    assert states == [[started, new, new], [done, started, new], [done, done, started]]
    assert [bench.state(n) for n in range(3)] == [done] * 3


def test_wraps_and_pads_are_passed(lane_module: ModuleType) -> None:
    """Jobs of any size pass the ring's end, with pads and without, for many rounds."""
    chance = random.Random(7)
    bench = Bench(lane_module, 1024)
    sent: list[tuple[Any, ...]] = []
    while len(sent) < 1000:
        data = (len(sent), "x" * chance.choice((0, 1, 40, 59, 60, 61, 120, 200, 400)))
        if bench.send(*data):
            sent.append(data)
        else:
            assert bench.deliver(chance.randint(1, 4)) > 0
    bench.deliver()
    assert bench.event.seen == sent
    assert bench.memory.gaps_are_whole()


@pytest.mark.parametrize("records", [(1 << 32) - 3, (1 << 33) - 1, layout.CURSOR_COUNT_MAX - 40])
def test_a_lane_of_any_age(lane_module: ModuleType, records: int) -> None:
    """Sequence numbers beyond 32 bits are followed, up to the last ones that there are."""
    bench = Bench(lane_module, 512, records << layout.CURSOR_OFFSET_BITS)
    for number in range(30):
        assert bench.send(number)
        assert bench.deliver() == 1
    assert bench.memory.counts().sent == records + 30
    assert bench.event.seen == [(n,) for n in range(30)]


def test_a_lane_ends_where_cursors_cannot_count_further(lane_module: ModuleType) -> None:
    """The last sequence number is delivered; then the lane is full for good, and not corrupt."""
    last = layout.CURSOR_COUNT_MAX
    bench = Bench(lane_module, 512, (last - 5) << layout.CURSOR_OFFSET_BITS)
    for _ in range(5):
        assert bench.producer.claim(b"", layout.KIND_JOB, 0, EVENT, 0, 0, 0, 0, 0)
        bench.producer.commit()
        assert bench.deliver(decoder=lambda payload: [len(payload)]) == 1
    for size in (0, 1, 100):
        assert not bench.producer.claim(bytes(size), layout.KIND_JOB, 0, EVENT, 0, 0, 0, 0, 0)
        assert not bench.producer.put(bytes(size), EVENT, 0, 0)
    assert bench.deliver() == 0
    assert bench.consumer.take() is None
    assert (bench.memory.counts().sent, bench.producer.sent()) == (last, last)
    assert bench.event.seen == [(0,)] * 5


@pytest.mark.parametrize("left", range(12))
def test_what_the_last_producer_may_send_its_consumer_follows(
    lane_module: ModuleType, left: int
) -> None:
    """However near the end, what was claimed at once is delivered at once."""
    start = layout.CURSOR_COUNT_MAX - left
    for offset in range(8):
        bench = Bench(lane_module, 512, start << layout.CURSOR_OFFSET_BITS | offset)
        sent = 0
        while bench.producer.claim(encode((sent,)), layout.KIND_JOB, 0, EVENT, 0, 0, 0, 0, 0):
            sent += 1
        bench.producer.commit()
        assert bench.deliver() == sent
        assert bench.event.seen == [(n,) for n in range(sent)]
        assert start + sent <= layout.CURSOR_COUNT_MAX


@pytest.mark.parametrize("ring_bytes", [layout.LANE_BYTES_MIN, 1 << 20, layout.LANE_BYTES_MAX])
def test_rings_of_any_size(lane_module: ModuleType, ring_bytes: int) -> None:
    """The smallest and the largest ring take the largest job, at their ends too."""
    bench = Bench(lane_module, ring_bytes)
    size = bench.producer.payload_bytes_max
    assert size == ring_bytes // 2 - 64
    sizes = []
    bench.event.handler = lambda event, data: sizes.append((len(data), data[:1], data[-1:]))
    payloads = [b"%d" % n + bytes(size - 2) + b"e" for n in range(3)]
    for payload in payloads:
        assert bench.producer.claim(payload, layout.KIND_JOB, 0, EVENT, 0, 0, 0, 0, 0)
        bench.producer.commit()
        assert bench.deliver(decoder=lambda payload: [payload]) == 1
    assert sizes == [(size, b"%d" % n, b"e") for n in range(3)]
    assert bench.memory.gaps_are_whole()


# --- what is not plain ----------------------------------------------------------------------------


def once(bench: Bench) -> None:
    """Make the event one for a single job."""
    bench.event.once = True


def unknown(bench: Bench) -> None:
    """Take the event away."""
    del bench.events[EVENT]


def nothing(bench: Bench) -> None:
    """Leave the event as it is."""


def test_calls_without_an_answer_are_plain_in_a_host(lane_module: ModuleType) -> None:
    """They are run as jobs are; where calls are answered they are left to `take`."""
    bench = Bench(lane_module)
    assert bench.send(1, kind=layout.KIND_CALL)
    assert bench.send(2)
    assert bench.send(3, kind=layout.KIND_CALL)
    assert bench.deliver() == 3
    assert bench.event.seen == [(1,), (2,), (3,)]
    assert bench.queued == 0

    assert bench.send(4, kind=layout.KIND_CALL)
    answers: list[object] = []

    def answer(record: Record, result: object, event: object) -> bool:
        answers.append(result)
        return True

    events, stopping = bench.events, bench.stopping
    assert bench.consumer.deliver(events, decode, 1, stopping, {}, answer) == 0
    record = bench.consumer.take()
    assert record is not None
    assert (record.kind, decode(record.payload), answers) == (layout.KIND_CALL, [4], [])


NOT_PLAIN: Final = [
    pytest.param(once, layout.KIND_JOB, 0, id="once"),
    pytest.param(unknown, layout.KIND_JOB, 0, id="unknown event"),
    pytest.param(nothing, layout.KIND_TIMER, 0, id="timer"),
    pytest.param(nothing, layout.KIND_CALL, 0, id="call"),
    pytest.param(nothing, layout.KIND_REPLY, 0, id="reply"),
    pytest.param(nothing, layout.KIND_JOB, 1, id="started before"),
    pytest.param(nothing, layout.KIND_JOB, 3, id="started three times"),
]


@pytest.mark.parametrize(("change", "kind", "attempts"), NOT_PLAIN)
@pytest.mark.parametrize("offset", [0, 58])
def test_what_is_not_plain_is_left_to_take(
    lane_module: ModuleType,
    change: Callable[[Bench], None],
    kind: int,
    attempts: int,
    offset: int,
) -> None:
    """The run ends before it, untouched; `take` returns it next, and then the run goes on."""
    bench = Bench(lane_module, cursor=offset)
    change(bench)
    for number in range(2):
        assert bench.send(number, event_id=OTHER)
    flags = layout.FLAG_WANTS_REPLY if kind == layout.KIND_CALL else 0
    assert bench.send("special", kind=kind, flags=flags)
    assert bench.send(3, event_id=OTHER)
    for _ in range(attempts):
        consumer = bench.memory.consumer()
        while (record := consumer.take()) is not None:
            if record.event_id == EVENT:
                consumer.start(record)
    assert bench.deliver() == 2
    assert bench.deliver() == 0
    assert bench.consumer.has_records()
    assert (bench.other.seen, bench.event.seen) == ([(0,), (1,)], [])
    assert bench.other.lane is None
    assert bench.consumer.in_hand is None
    record = bench.consumer.take()
    assert record is not None
    assert (record.kind, record.event_id, record.attempts) == (kind, EVENT, attempts)
    assert decode(record.payload) == ["special"]
    assert bench.consumer.start(record) == attempts + 1
    assert bench.deliver() == 1
    assert bench.queued == 2  # what was left and what came behind it, until that is done
    bench.consumer.done(record)
    assert bench.queued == 0
    assert bench.other.delivered == bench.consumer.delivered == 3


def test_a_replacement_passes_what_is_done(lane_module: ModuleType) -> None:
    """Records that an earlier incarnation finished out of order are not run again."""
    bench = Bench(lane_module)
    for number in range(6):
        assert bench.send(number)
    records = [bench.consumer.take() for _ in range(6)]
    for number in (1, 2, 4):
        record = records[number]
        assert record is not None
        bench.consumer.done(record)
    bench.consumer = bench.memory.consumer()
    assert bench.deliver() == 3
    assert bench.event.seen == [(0,), (3,), (5,)]
    assert bench.queued == 0


# --- corrupt lanes --------------------------------------------------------------------------------


def spoil_kind(bench: Bench, at: int) -> None:
    """Make the record at `at` one of an unknown kind."""
    bench.memory.memory[at + 4] = 99


def spoil_length(bench: Bench, at: int) -> None:
    """Make the record at `at` as long as can be."""
    bench.memory.memory[at : at + 4] = b"\xff" * 4


def spoil_sequence(bench: Bench, at: int) -> None:
    """Give the record at `at` another number."""
    bench.memory.memory[at + 16] ^= 1


def spoil_tail(bench: Bench) -> None:
    """Move the tail to outside the ring."""
    bench.memory.words[(bench.memory.control + layout.LANE_TAIL) // 8] = 0x7FFF


@pytest.mark.parametrize("spoil", [spoil_kind, spoil_length, spoil_sequence])
def test_a_corrupt_record_ends_the_run(
    lane_module: ModuleType, spoil: Callable[[Bench, int], None]
) -> None:
    """The jobs before it are done, nothing is in hand, and `skip_to_tail` goes on behind it."""
    bench = Bench(lane_module)
    for number in range(4):
        assert bench.send(number)
    spoil(bench, bench.memory.ring + 2 * 2 * layout.UNIT)
    for attempt in range(2):
        with pytest.raises(bench.corrupt, match="cannot be followed"):
            bench.deliver()
        assert bench.event.delivered == bench.consumer.delivered == 2, attempt
        assert bench.consumer.in_hand is None
        assert bench.event.lane is None
    assert bench.consumer.skip_to_tail() == 2
    assert bench.send(4)
    assert bench.deliver() == 1
    assert bench.event.seen == [(0,), (1,), (4,)]
    assert bench.memory.counts().dead_lettered == 2


def test_a_tail_that_makes_no_sense_ends_the_run(lane_module: ModuleType) -> None:
    """It is refused, and the lane goes on with the next tail that does make sense."""
    bench = Bench(lane_module)
    for number in range(2):
        assert bench.send(number)

    def handler(event: Event, number: int) -> None:
        event.seen.append((number,))
        if number == 1:
            spoil_tail(bench)

    bench.event.handler = handler
    with pytest.raises(bench.corrupt, match="tail makes no sense"):
        bench.deliver()
    assert bench.consumer.in_hand is None
    assert bench.event.lane is None
    assert bench.consumer.skip_to_tail() == 0
    assert bench.deliver() == 0
    assert not bench.consumer.has_records()
    assert bench.send(2)
    assert bench.deliver() == 1
    assert bench.event.seen == [(0,), (1,), (2,)]


def test_attempts_beyond_what_can_be_counted(lane_module: ModuleType) -> None:
    """A producer that writes a state of its own cannot make the count of attempts overflow."""
    bench = Bench(lane_module)
    assert bench.send(1)
    state = layout.STATE_ATTEMPT_MAX << layout.STATE_ATTEMPT_SHIFT | layout.STATE_STARTED
    bench.memory.words[(bench.memory.ring + layout.RECORD_STATE) // 8] = state
    assert bench.deliver() == 0
    record = bench.consumer.take()
    assert record is not None
    assert record.attempts == bench.consumer.start(record) == layout.STATE_ATTEMPT_MAX
    assert bench.state(0) == state


# --- calls that make no sense ---------------------------------------------------------------------


def test_a_record_of_another_lane_is_refused_in_c() -> None:
    """What is not a record of this lane cannot be started or finished by it."""
    for module in implementations():
        if module.IMPLEMENTATION != "c":
            continue
        one, two = Bench(module), Bench(module)
        assert one.send(1)
        record = one.consumer.take()
        assert record is not None
        for method in (two.consumer.start, two.consumer.done, two.consumer.dead):
            with pytest.raises(TypeError):
                method(record)
            with pytest.raises(TypeError):
                method(None)  # type: ignore[arg-type]
