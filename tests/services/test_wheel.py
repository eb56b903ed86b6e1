"""The timing wheel against a sorted list, and its promises one by one."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from unittest import mock

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aembus.services import wheel
from aembus.services.wheel import TimingWheel

MINUTE = 60_000  # of ticks that are milliseconds
HOUR = 60 * MINUTE


def number(index: int, generation: int = 1) -> int:
    """Return a timer's id."""
    return wheel.timer_id(index, generation)


def ids(batches: list[tuple[int, list[int]]]) -> list[int]:
    """Return the ids that `advance` has returned, in order."""
    return [expired for _, batch in batches for expired in batch]


def indices(batches: list[tuple[int, list[int]]]) -> list[int]:
    """Return the indices of the ids that `advance` has returned, in order."""
    return [expired >> wheel.GENERATION_BITS for expired in ids(batches)]


class Model:
    """What the wheel promises, in the plainest way: a dict that is sorted at each advance."""

    def __init__(self, now: int) -> None:
        self.now = self.reached = now
        self.running: dict[int, tuple[int, int, int]] = {}  # index -> tick, count of starts, id
        self.starts = 0

    def start(self, timer_id: int, tick: int) -> None:
        self.starts += 1
        index = timer_id >> wheel.GENERATION_BITS
        self.running[index] = max(tick, self.reached), self.starts, timer_id

    def cancel(self, timer_id: int) -> bool:
        index = timer_id >> wheel.GENERATION_BITS
        if self.running.get(index, (0, 0, 0))[2] != timer_id:
            return False
        del self.running[index]
        return True

    def in_order(self) -> list[int]:
        return sorted(self.running, key=self.running.__getitem__)

    def advance(self, now: int, limit: int) -> list[tuple[int, list[int]]]:
        self.now = max(self.now, now)
        due = [i for i in self.in_order() if self.running[i][0] <= self.now]
        rest = due[limit:]
        self.reached = self.running[rest[0]][0] if rest else self.now
        expired: dict[int, list[int]] = {}
        for index in due[:limit]:
            tick, _, timer_id = self.running.pop(index)
            expired.setdefault(tick, []).append(timer_id)
        return list(expired.items())

    def next_due(self) -> int:
        return min(tick for tick, _, _ in self.running.values())


INDICES = st.integers(0, 40)
LIMITS = st.one_of(st.just(sys.maxsize), st.integers(0, 5))


class WheelMachine(RuleBasedStateMachine):
    """Tiny blocks, one timer brought down a tick, and slots that are written anew all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = mock.patch.multiple(wheel, MOVES_PER_TICK=1, DEAD_KEPT=1)
        self.patches.start()

    def teardown(self) -> None:
        self.patches.stop()

    @initialize(now=st.integers(1, 10**6), slot_bits=st.sampled_from([1, 2, 3]))
    def begin(self, now: int, slot_bits: int) -> None:
        self.now = now
        self.reach = 1 << 8 * slot_bits
        self.wheel = TimingWheel(now, slot_bits=slot_bits)
        self.model = Model(now)
        self.last_ids: dict[int, int] = {}

    def new_id(self, index: int) -> int:
        last = self.last_ids.get(index)
        new = number(index) if last is None else wheel.next_id(last)
        self.last_ids[index] = new
        return new

    def pair(self, index: int, tick: int) -> tuple[int, int]:
        tick = max(min(tick, self.model.reached + self.reach), 1)
        started = self.new_id(index)
        self.model.start(started, tick)
        return started, tick

    @rule(index=INDICES, delay=st.integers(-20, 40))
    def start_near(self, index: int, delay: int) -> None:
        self.wheel.start(*self.pair(index, self.now + delay))

    @rule(index=INDICES, fraction=st.floats(0, 1))
    def start_far(self, index: int, fraction: float) -> None:
        self.wheel.start(*self.pair(index, self.now + int(fraction**4 * self.reach)))

    @rule(indices=st.lists(INDICES, max_size=12), blocks=st.integers(0, 40))
    def start_together(self, indices: list[int], blocks: int) -> None:
        pairs = [self.pair(index, self.now + blocks * 5) for index in indices]
        self.wheel.set_all([word for pair in pairs for word in pair])

    @rule(indices=st.lists(INDICES, max_size=12))
    def cancel(self, indices: list[int]) -> None:
        for index in indices:
            last = self.last_ids.get(index, number(index))
            assert self.wheel.cancel(last) == self.model.cancel(last)

    @rule(changes=st.lists(st.tuples(INDICES, st.integers(0, 40), st.booleans()), max_size=20))
    def start_and_cancel_in_one_step(self, changes: list[tuple[int, int, bool]]) -> None:
        numbers: list[int] = []
        for index, delay, cancels in changes:
            if cancels:
                last = self.last_ids.get(index, number(index))
                self.model.cancel(last)
                numbers += (last, 0)
            else:
                numbers += self.pair(index, self.now + delay)
        self.wheel.set_all(numbers)

    @rule(index=INDICES)
    def cancel_what_had_the_index_before(self, index: int) -> None:
        last = self.last_ids.get(index)
        if last is not None and last & wheel.GENERATION_MASK > 1:
            assert not self.wheel.cancel(last - 1)

    @rule()
    def go_on_from_data(self) -> None:
        self.wheel = TimingWheel.from_data(msgpack.unpackb(msgpack.packb(self.wheel.to_data())))

    def advance(self, now: int, limit: int) -> None:
        assert self.wheel.advance(now, limit) == self.model.advance(now, limit)
        self.now = max(self.now, now)

    @rule(ticks=st.integers(0, 12), limit=LIMITS)
    def advance_little(self, ticks: int, limit: int) -> None:
        self.advance(self.now + ticks, limit)

    @rule(count=st.integers(1, 20))
    def advance_tick_by_tick(self, count: int) -> None:
        for _ in range(count):
            self.advance(self.now + 1, sys.maxsize)

    @rule(fraction=st.floats(0, 2), limit=LIMITS)
    def advance_far(self, fraction: float, limit: int) -> None:
        self.advance(self.now + int(fraction * self.reach), limit)

    @rule(hours=st.integers(1, 10**4))
    def jump_hours(self, hours: int) -> None:
        self.advance(self.now + hours * HOUR, sys.maxsize)

    @rule(back=st.integers(1, 10**5), limit=LIMITS)
    def go_back(self, back: int, limit: int) -> None:
        self.advance(self.now - back, limit)

    @rule(limit=LIMITS)
    def advance_when_told(self, limit: int) -> None:
        now = self.wheel.next_due()
        if now is not None:
            self.advance(now, limit)

    @rule()
    def follow_to_the_end(self) -> None:
        calls_left = 10 + 20 * len(self.wheel)
        while (now := self.wheel.next_due()) is not None:
            self.advance(now, sys.maxsize)
            calls_left -= 1
            assert calls_left > 0, "each call has to bring something nearer"

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "wheel"):
            return
        assert len(self.wheel) == len(self.model.running)
        due = self.wheel.next_due()
        if not self.model.running:
            assert due is None
        else:
            assert due is not None
            assert due <= self.model.next_due()

    @invariant()
    def lists_what_runs(self) -> None:
        if not hasattr(self, "wheel"):
            return
        listed = sorted(self.wheel.running(), key=lambda timer: timer[1])  # stable
        running = self.model.running
        assert listed == [(running[i][2], running[i][0]) for i in self.model.in_order()]


TestWheelMachine = WheelMachine.TestCase
TestWheelMachine.settings = settings(stateful_step_count=40)


def follow(timers: TimingWheel) -> Iterator[tuple[int, list[tuple[int, list[int]]]]]:
    """Advance at each time that the wheel asks for, until no timer runs."""
    while (now := timers.next_due()) is not None:
        yield now, timers.advance(now)


@given(st.lists(st.integers(0, 20 * HOUR), max_size=30))
def test_following_next_due_expires_each_timer_at_its_tick(delays: list[int]) -> None:
    """Who sleeps until `next_due` sees each timer at its tick."""
    timers = TimingWheel(5)
    for index, delay in enumerate(delays):
        timers.start(number(index), 5 + delay)
    expired = [(now, tick, batch) for now, batches in follow(timers) for tick, batch in batches]
    assert all(now == tick for now, tick, _ in expired)
    assert all(
        tick == 5 + delays[expired_id >> wheel.GENERATION_BITS]
        for _, tick, batch in expired
        for expired_id in batch
    )
    assert sum(len(batch) for _, _, batch in expired) == len(delays)


def test_a_far_timer_costs_one_early_wake_up_per_level() -> None:
    """A lone timer wakes its owner once when it is due, and once for each level it comes down."""
    timers = TimingWheel(0)
    timers.start(number(0), 30 * HOUR + 12_345)
    calls = [batches for _, batches in follow(timers)]
    assert calls[-1] == [(30 * HOUR + 12_345, [number(0)])]
    assert len(calls) <= 4


@pytest.mark.parametrize("moves_per_tick", [1, 4, 512])
def test_one_tick_keeps_the_order_of_starts_through_all_levels(
    moves_per_tick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers of one tick expire as they were started, wherever they were put at that time."""
    monkeypatch.setattr(wheel, "MOVES_PER_TICK", moves_per_tick)
    timers = TimingWheel(0, slot_bits=2)
    due = 1024  # where blocks of several levels begin
    for now, index in enumerate(range(1022, -1, -1)):
        timers.start(number(index), due)
        assert timers.advance(now) == []
    assert indices(timers.advance(due)) == [*range(1022, -1, -1)]


def test_a_block_opens_only_after_those_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """A late start overtakes none that still waits two levels higher behind many others."""
    monkeypatch.setattr(wheel, "MOVES_PER_TICK", 1)
    timers = TimingWheel(0, slot_bits=2)
    for index in range(2000):
        timers.start(number(index), 1024 + 128)  # ahead of it in its slot
    timers.start(number(2000), 1024)
    for tick in range(1024):
        assert timers.advance(tick) == []
    timers.start(number(2001), 1024)
    assert indices(timers.advance(1024)) == [2000, 2001]


def test_a_restart_replaces_and_goes_to_the_end() -> None:
    """An index that is started again expires once, with its new id and in its new turn."""
    timers = TimingWheel(0)
    timers.start(number(1), 5)
    timers.start(number(2), 5)
    timers.start(number(1, 2), 5)
    assert len(timers) == 2
    assert ids(timers.advance(HOUR)) == [number(2), number(1, 2)]


def test_an_index_may_be_used_again() -> None:
    """The index of a timer that was cancelled or has expired is free for the next generation."""
    timers = TimingWheel(0)
    timers.start(number(1), 5)
    assert timers.cancel(number(1))
    timers.start(number(1, 2), 5)
    assert ids(timers.advance(5)) == [number(1, 2)]
    timers.start(number(1, 3), 6)
    assert ids(timers.advance(6)) == [number(1, 3)]


def test_generations_begin_anew_at_their_end() -> None:
    """The id after the last generation is the first one of the same index."""
    assert wheel.next_id(number(7, wheel.GENERATION_MASK)) == number(7)
    assert wheel.next_id(number(7)) == number(7, 2)


def test_the_same_id_started_twice_expires_once() -> None:
    """Whoever uses an id again while it is dead in a slot gets one expiry, not before its time."""
    timers = TimingWheel(0)
    for tick in (300, 500, 400):
        timers.start(number(0), tick)
    assert [(tick, batch) for _, batches in follow(timers) for tick, batch in batches] == [
        (400, [number(0)])
    ]


def test_cancelling_what_does_not_run_changes_nothing() -> None:
    """`cancel` is False for an id that never ran, was cancelled, expired, or is of another time."""
    timers = TimingWheel(0)
    timers.start(number(1), 1)
    timers.start(number(2), 1)
    timers.start(number(4, 7), 9)
    timers.cancel(number(1))
    timers.advance(1)
    assert not any(timers.cancel(number(index)) for index in (1, 2, 3, 4))
    assert len(timers) == 1


def test_what_is_due_already_expires_at_the_next_advance() -> None:
    """A timer started late expires even if the time has not moved since."""
    timers = TimingWheel(0)
    timers.advance(HOUR)
    timers.start(number(1), HOUR)
    timers.start(number(2), 0)
    assert timers.next_due() == HOUR
    assert indices(timers.advance(HOUR)) == [1, 2]


def test_a_limit_splits_a_batch_and_keeps_its_order() -> None:
    """With a limit the rest comes at the next calls, and `next_due` asks for them at once."""
    timers = TimingWheel(0)
    for index in range(10):
        timers.start(number(index), (10 - index) // 2 + 1)
    got = []
    while len(timers):
        due = timers.next_due()
        assert due is not None
        assert due <= HOUR
        batch = indices(timers.advance(HOUR, limit=3))
        assert 0 < len(batch) <= 3
        got += batch
    assert got == [9, 7, 8, 5, 6, 3, 4, 1, 2, 0]


def test_what_waits_behind_a_limit_can_be_cancelled() -> None:
    """A timer that is due but was not returned yet is still running."""
    timers = TimingWheel(0)
    for index in range(400):
        timers.start(number(index), 1)
    assert indices(timers.advance(1, limit=100)) == [*range(100)]
    cancelled = [timers.cancel(number(index)) for index in range(350)]
    assert cancelled == [False] * 100 + [True] * 250
    assert indices(timers.advance(1)) == [*range(350, 400)]


def test_what_is_half_brought_down_can_be_cancelled() -> None:
    """Timers of a slot that is being brought down are running, moved already or not."""
    timers = TimingWheel(0)
    for index in range(4000):
        timers.start(number(index), 1024)
    timers.advance(767)
    timers.advance(769)  # two ticks' share of the block before
    assert sum(bool(level.taken) for level in timers._levels) == 1
    assert all(timers.cancel(number(index)) for index in range(200, 3900))
    assert indices(timers.advance(HOUR)) == [*range(200), *range(3900, 4000)]


def test_a_cancelled_rest_does_not_hide_what_lies_higher() -> None:
    """After a limit, what lies higher is asked for at once, even if the rest was cancelled."""
    timers = TimingWheel(0)
    timers.start(number(1), 1)
    timers.start(number(2), 2)
    timers.start(number(3), MINUTE // 2)
    assert indices(timers.advance(HOUR, limit=1)) == [1]
    timers.cancel(number(2))
    due = timers.next_due()
    assert due is not None
    assert due <= HOUR
    assert indices(timers.advance(HOUR)) == [3]


def test_a_step_back_of_now_is_ignored() -> None:
    """After a step back nothing happens until the time is where it was."""
    timers = TimingWheel(HOUR)
    timers.start(number(1), HOUR + 2)
    assert timers.advance(HOUR + 1) == []
    assert timers.advance(0) == []
    assert timers.now == HOUR + 1
    assert indices(timers.advance(HOUR + 2)) == [1]


def test_the_next_block_is_brought_down_before_it_begins() -> None:
    """Advanced when it asks for it, the wheel moves no more at a time than a few ticks' share."""
    with mock.patch.object(wheel, "MOVES_PER_TICK", 4):
        timers = TimingWheel(0)
        for index in range(1000):
            timers.start(number(index), 1024 + index % 256)
        looked_at: list[int] = []
        bring_down = TimingWheel._bring_down

        def counting(self: TimingWheel, depth: int, block: int, most: int | None) -> bool:
            source = self._levels[depth + 1].slots[block & 511] if depth == 0 else None
            before = self._levels[1].taken.get(block & 511, 0) if depth == 0 else 0
            done = bring_down(self, depth, block, most)
            if source is not None:
                after = len(source) if done else self._levels[1].taken[block & 511]
                looked_at.append(after - before)
            return done

        with mock.patch.object(TimingWheel, "_bring_down", counting):
            expired = [timer for _, batches in follow(timers) for timer in ids(batches)]
    assert len(expired) == sum(looked_at) == 1000
    assert max(looked_at) <= 4 * wheel.TICKS_MADE_UP_MAX
    assert sorted(looked_at)[-2] <= 4  # after the first call, which came after a long sleep


def kept(timers: TimingWheel) -> int:
    """Return how many ids lie in slots, dead ones counted."""
    return sum(len(slot) for level in timers._levels for slot in level.slots if slot is not None)


def test_starting_and_cancelling_for_ever_keeps_nothing() -> None:
    """What was cancelled is removed from the slots, not only when its time would have come."""
    timers = TimingWheel(0)
    timers.start(number(0), MINUTE)
    for generation in range(1, 10_000):
        timers.start(number(1, generation), MINUTE)
        timers.cancel(number(1, generation))
    assert kept(timers) <= 2 * wheel.DEAD_KEPT


def test_a_cancelled_timer_wakes_nobody() -> None:
    """When all timers of a slot were cancelled, `next_due` does not ask for it."""
    timers = TimingWheel(0)
    timers.start(number(1), 10)
    timers.start(number(2), 20)
    timers.cancel(number(1))
    assert timers.next_due() == 20
    timers.cancel(number(2))
    assert timers.next_due() is None
    assert kept(timers) == 0


def test_what_runs_moves_to_another_wheel() -> None:
    """Started from `running`, another wheel expires the same timers in the same order."""
    old = TimingWheel(3)
    for index in range(500):
        old.start(number(index), index * 7919 % 90_000 // 3 * 3)
    old.advance(MINUTE // 3, limit=60)
    new = TimingWheel(MINUTE // 3)
    for timer_id, tick in old.running():
        new.start(timer_id, tick)
    assert sorted(ids(new.advance(MINUTE // 3))) == sorted(ids(old.advance(MINUTE // 3)))
    assert new.advance(HOUR) == old.advance(HOUR)


def test_a_timer_takes_less_than_24_bytes() -> None:
    """Memory per timer: a word, its id in a slot, and what arrays keep to grow."""
    count = 2_000_000 // 32
    tracemalloc.start()
    try:
        timers = TimingWheel(0)
        for index in range(count):
            timers.start(number(index), 5000 + index * 7919 % HOUR)
        size_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    slots = sum(slot is not None for level in timers._levels for slot in level.slots)
    fixed_bytes = slots * 80 + len(timers._levels) * 16 * (2 << wheel.SLOT_BITS)
    assert (size_bytes - fixed_bytes) / count < 24


def test_a_due_time_out_of_reach_is_refused() -> None:
    """More ticks than the highest level has are an error with the values, not a wrong time."""
    timers = TimingWheel(0, slot_bits=1)
    timers.start(number(1), 255)
    with pytest.raises(OverflowError, match=r"ticks=512, ticks_max=511$"):
        timers.start(number(2), 512)
    with pytest.raises(OverflowError, match=r"ticks=4398046511104, "):
        TimingWheel(0).start(number(1), 1 << 42)
    assert indices(timers.advance(HOUR)) == [1]


def test_the_reach_does_not_shrink_when_a_limit_cuts_short() -> None:
    """A block of the highest level is in reach of the tick reached, however often that is cut."""
    timers = TimingWheel(0, slot_bits=1)
    timers.start(number(1), 511)
    assert timers.advance(HOUR, limit=0) == []
    timers.start(number(2), 511 + 256)
    assert indices(timers.advance(HOUR)) == [1, 2]


def test_what_is_no_id_is_refused_and_the_others_are_kept() -> None:
    """An index far ahead, or no generation, is an error with the values; those in front are set."""
    timers = TimingWheel(0)
    ahead = wheel.INDEX_AHEAD_MAX + 64
    with pytest.raises(ValueError, match=rf"index={ahead}, indices=64$"):
        timers.set_all([number(0), 5, number(ahead), 5, number(1), 5])
    with pytest.raises(ValueError, match=r"index=3$"):
        timers.start(number(3, 0), 5)
    assert len(timers) == 1
    assert indices(timers.advance(5)) == [0]


@pytest.mark.parametrize("slot_bits", [0, -1])
def test_a_wheel_needs_slots(slot_bits: int) -> None:
    """A size that makes no wheel is refused, with the value."""
    with pytest.raises(ValueError, match=f"slot_bits={slot_bits}$"):
        TimingWheel(0, slot_bits=slot_bits)
