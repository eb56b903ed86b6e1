"""The timing wheel against a sorted list, and its promises one by one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aembus.services import wheel
from aembus.services.wheel import TimingWheel

MS = 1_000_000
SECOND = 1000 * MS
HOUR = 3600 * SECOND


class Model:
    """What the wheel promises, in the plainest way: a dict that is sorted at each advance."""

    def __init__(self, now_ns: int, tick_ns: int) -> None:
        self.tick_ns = tick_ns
        self.now_tick = self.reached_tick = now_ns // tick_ns
        self.running: dict[int, tuple[int, int, str]] = {}  # id -> tick, count of starts, entry
        self.starts = 0

    def start(self, timer_id: int, due_ns: int, entry: str) -> None:
        tick = max(-(-due_ns // self.tick_ns), self.reached_tick)
        self.starts += 1
        self.running[timer_id] = tick, self.starts, entry

    def cancel(self, timer_id: int) -> str | None:
        _, _, entry = self.running.pop(timer_id, (0, 0, None))
        return entry

    def in_order(self) -> list[int]:
        return sorted(self.running, key=self.running.__getitem__)

    def advance(self, now_ns: int, limit: int | None) -> list[tuple[int, str]]:
        self.now_tick = max(self.now_tick, now_ns // self.tick_ns)
        due = [i for i in self.in_order() if self.running[i][0] <= self.now_tick]
        cut = len(due) if limit is None else limit
        rest = due[cut:]
        self.reached_tick = self.running[rest[0]][0] if rest else self.now_tick
        return [(timer_id, self.running.pop(timer_id)[2]) for timer_id in due[:cut]]

    def next_due_ns(self) -> int:
        return min(tick for tick, _, _ in self.running.values()) * self.tick_ns


TIMER_IDS = st.integers(0, 40)
LIMITS = st.one_of(st.none(), st.integers(0, 5))


class WheelMachine(RuleBasedStateMachine):
    """Tiny blocks, one timer brought down a tick, and slots that are written anew all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = mock.patch.multiple(wheel, MOVES_PER_TICK=1, DEAD_KEPT=1)
        self.patches.start()

    def teardown(self) -> None:
        self.patches.stop()

    @initialize(
        now_ns=st.integers(-50, 10**6),
        tick_ns=st.sampled_from([1, 7, 1000]),
        slot_bits=st.sampled_from([1, 2, 3]),
    )
    def begin(self, now_ns: int, tick_ns: int, slot_bits: int) -> None:
        self.now_ns = now_ns
        self.reach_ticks = 1 << 8 * slot_bits
        self.wheel: TimingWheel[str] = TimingWheel(now_ns, tick_ns=tick_ns, slot_bits=slot_bits)
        self.model = Model(now_ns, tick_ns)

    def start(self, timer_id: int, due_ns: int) -> None:
        due_ns = min(due_ns, (self.model.reached_tick + self.reach_ticks) * self.model.tick_ns)
        entry = f"{timer_id} started as number {self.model.starts}"
        self.wheel.start(timer_id, due_ns, entry)
        self.model.start(timer_id, due_ns, entry)

    @rule(timer_id=TIMER_IDS, delay_ns=st.integers(-20, 40))
    def start_near(self, timer_id: int, delay_ns: int) -> None:
        self.start(timer_id, self.now_ns + delay_ns)

    @rule(timer_id=TIMER_IDS, fraction=st.floats(0, 1))
    def start_far(self, timer_id: int, fraction: float) -> None:
        delay_ns = int(fraction**4 * self.reach_ticks) * self.model.tick_ns
        self.start(timer_id, self.now_ns + delay_ns)

    @rule(timer_ids=st.lists(TIMER_IDS, max_size=12), blocks=st.integers(0, 40))
    def start_together(self, timer_ids: list[int], blocks: int) -> None:
        for timer_id in timer_ids:
            self.start(timer_id, self.now_ns + blocks * 5 * self.model.tick_ns)

    @rule(timer_ids=st.lists(TIMER_IDS, max_size=12))
    def cancel(self, timer_ids: list[int]) -> None:
        for timer_id in timer_ids:
            assert self.wheel.cancel(timer_id) == self.model.cancel(timer_id)

    def advance(self, now_ns: int, limit: int | None) -> None:
        assert self.wheel.advance(now_ns, limit) == self.model.advance(now_ns, limit)
        self.now_ns = max(self.now_ns, now_ns)

    @rule(ticks=st.integers(0, 12), limit=LIMITS)
    def advance_little(self, ticks: int, limit: int | None) -> None:
        self.advance(self.now_ns + ticks * self.model.tick_ns + 1, limit)

    @rule(count=st.integers(1, 20))
    def advance_tick_by_tick(self, count: int) -> None:
        for _ in range(count):
            self.advance(self.now_ns + self.model.tick_ns, None)

    @rule(fraction=st.floats(0, 2), limit=LIMITS)
    def advance_far(self, fraction: float, limit: int | None) -> None:
        ticks = int(fraction * self.reach_ticks)
        self.advance(self.now_ns + ticks * self.model.tick_ns, limit)

    @rule(hours=st.integers(1, 10**6))
    def jump_hours(self, hours: int) -> None:
        self.advance(self.now_ns + hours * HOUR, None)

    @rule(back_ns=st.integers(1, 10**9), limit=LIMITS)
    def go_back(self, back_ns: int, limit: int | None) -> None:
        self.advance(self.now_ns - back_ns, limit)

    @rule(limit=LIMITS)
    def advance_when_told(self, limit: int | None) -> None:
        now_ns = self.wheel.next_due_ns()
        if now_ns is not None:
            self.advance(now_ns, limit)

    @rule()
    def follow_to_the_end(self) -> None:
        calls_left = 10 + 20 * len(self.wheel)
        while (now_ns := self.wheel.next_due_ns()) is not None:
            self.advance(now_ns, None)
            calls_left -= 1
            assert calls_left > 0, "each call has to bring something nearer"

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "wheel"):
            return
        assert len(self.wheel) == len(self.model.running)
        due_ns = self.wheel.next_due_ns()
        if not self.model.running:
            assert due_ns is None
        else:
            assert due_ns is not None
            assert due_ns <= self.model.next_due_ns()

    @invariant()
    def lists_what_runs(self) -> None:
        if not hasattr(self, "wheel"):
            return
        listed = sorted(self.wheel.running(), key=lambda timer: timer[1])  # stable
        running = self.model.running
        assert listed == [
            (i, running[i][0] * self.model.tick_ns, running[i][2]) for i in self.model.in_order()
        ]


TestWheelMachine = WheelMachine.TestCase
TestWheelMachine.settings = settings(stateful_step_count=40)


def follow(timers: TimingWheel[int]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Advance at each time that the wheel asks for, until no timer runs."""
    while (now_ns := timers.next_due_ns()) is not None:
        yield now_ns, timers.advance(now_ns)


@given(st.lists(st.integers(0, 20 * HOUR), max_size=30))
def test_following_next_due_expires_each_timer_at_its_tick(delays_ns: list[int]) -> None:
    """Who sleeps until `next_due_ns` sees each timer at its due time rounded up to the tick."""
    timers: TimingWheel[int] = TimingWheel(5)
    for timer_id, delay_ns in enumerate(delays_ns):
        timers.start(timer_id, 5 + delay_ns, -(-(5 + delay_ns) // MS) * MS)
    expired = [(now_ns, entry) for now_ns, batch in follow(timers) for _, entry in batch]
    assert [now_ns for now_ns, _ in expired] == [entry for _, entry in expired]
    assert len(expired) == len(delays_ns)


def test_a_far_timer_costs_one_early_wake_up_per_level() -> None:
    """A lone timer wakes its owner once when it is due, and once for each level it comes down."""
    timers: TimingWheel[int] = TimingWheel(0)
    timers.start(1, 30 * HOUR + 12_345 * MS, 0)
    calls = [batch for _, batch in follow(timers)]
    assert calls[-1] == [(1, 0)]
    assert len(calls) <= 4


def test_nothing_expires_before_its_due_time() -> None:
    """A due time between two ticks is rounded up."""
    timers: TimingWheel[str] = TimingWheel(0)
    timers.start(1, 3 * MS + 1, "a")
    assert timers.advance(4 * MS - 1) == []
    assert timers.advance(4 * MS) == [(1, "a")]


@pytest.mark.parametrize("moves_per_tick", [1, 4, 512])
def test_one_tick_keeps_the_order_of_starts_through_all_levels(
    moves_per_tick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers of one tick expire as they were started, wherever they were put at that time."""
    monkeypatch.setattr(wheel, "MOVES_PER_TICK", moves_per_tick)
    timers: TimingWheel[int] = TimingWheel(0, slot_bits=2)
    now_ns, due_ns = 0, 1024 * MS  # where blocks of several levels begin
    for timer_id in range(1023, 0, -1):
        timers.start(timer_id, due_ns - timer_id % 2, timer_id)
        now_ns += MS - 1
        assert timers.advance(now_ns) == []
    assert timers.advance(due_ns) == [(i, i) for i in range(1023, 0, -1)]


def test_a_block_opens_only_after_those_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """A late start overtakes none that still waits two levels higher behind many others."""
    monkeypatch.setattr(wheel, "MOVES_PER_TICK", 1)
    timers: TimingWheel[str] = TimingWheel(0, slot_bits=2)
    for timer_id in range(2000):
        timers.start(timer_id, (1024 + 128) * MS, "ahead of it in its slot")
    timers.start(2000, 1024 * MS, "early start")
    for tick in range(1024):
        assert timers.advance(tick * MS) == []
    timers.start(2001, 1024 * MS, "late start")
    assert timers.advance(1024 * MS) == [(2000, "early start"), (2001, "late start")]


def test_a_restart_replaces_and_goes_to_the_end() -> None:
    """A running id that is started again expires once, with its new entry and in its new turn."""
    timers: TimingWheel[str] = TimingWheel(0)
    timers.start(1, 5 * MS, "old")
    timers.start(2, 5 * MS, "b")
    timers.start(1, 5 * MS, "new")
    assert len(timers) == 2
    assert timers.advance(HOUR) == [(2, "b"), (1, "new")]


def test_an_id_may_be_used_again() -> None:
    """An id that was cancelled or has expired is free for another timer."""
    timers: TimingWheel[str] = TimingWheel(0)
    timers.start(1, 5 * MS, "a")
    assert timers.cancel(1) == "a"
    timers.start(1, 5 * MS, "b")
    assert timers.advance(5 * MS) == [(1, "b")]
    timers.start(1, 6 * MS, "c")
    assert timers.advance(6 * MS) == [(1, "c")]


def test_cancelling_what_does_not_run_says_none() -> None:
    """`cancel` returns None for an id that never ran, was cancelled or has expired."""
    timers: TimingWheel[str] = TimingWheel(0)
    timers.start(1, MS, "a")
    timers.start(2, MS, "b")
    timers.cancel(1)
    timers.advance(MS)
    assert [timers.cancel(timer_id) for timer_id in (1, 2, 3)] == [None, None, None]


def test_what_is_due_already_expires_at_the_next_advance() -> None:
    """A timer started late expires even if the time has not moved since."""
    timers: TimingWheel[str] = TimingWheel(0)
    timers.advance(HOUR)
    timers.start(1, HOUR, "now")
    timers.start(2, 0, "long ago")
    assert timers.next_due_ns() == HOUR
    assert timers.advance(HOUR) == [(1, "now"), (2, "long ago")]


def test_a_limit_splits_a_batch_and_keeps_its_order() -> None:
    """With a limit the rest comes at the next calls, and `next_due_ns` asks for them at once."""
    timers: TimingWheel[int] = TimingWheel(0)
    for timer_id in range(10):
        timers.start(timer_id, (10 - timer_id) // 2 * MS, timer_id)
    whole = [(9, 9), (7, 7), (8, 8), (5, 5), (6, 6), (3, 3), (4, 4), (1, 1), (2, 2), (0, 0)]
    got = []
    while len(timers):
        due_ns = timers.next_due_ns()
        assert due_ns is not None
        assert due_ns <= HOUR
        batch = timers.advance(HOUR, limit=3)
        assert 0 < len(batch) <= 3
        got += batch
    assert got == whole


def test_what_waits_behind_a_limit_can_be_cancelled() -> None:
    """A timer that is due but was not returned yet is still running."""
    timers: TimingWheel[int] = TimingWheel(0)
    for timer_id in range(400):
        timers.start(timer_id, MS, timer_id)
    assert timers.advance(MS, limit=100) == [(i, i) for i in range(100)]
    assert [timers.cancel(timer_id) for timer_id in range(350)] == [None] * 100 + [*range(100, 350)]
    assert timers.advance(MS) == [(i, i) for i in range(350, 400)]


def test_what_is_half_brought_down_can_be_cancelled() -> None:
    """Timers of a slot that is being brought down are running, moved already or not."""
    timers: TimingWheel[int] = TimingWheel(0)
    for timer_id in range(2000):
        timers.start(timer_id, 1024 * MS, timer_id)
    timers.advance(767 * MS)
    timers.advance(769 * MS)  # two ticks' share of the block before
    assert sum(bool(level.taken) for level in timers._levels) == 1
    assert [timers.cancel(timer_id) for timer_id in range(200, 1900)] == [*range(200, 1900)]
    assert timers.advance(HOUR) == [(i, i) for i in [*range(200), *range(1900, 2000)]]


def test_a_cancelled_rest_does_not_hide_what_lies_higher() -> None:
    """After a limit, what lies higher is asked for at once, even if the rest was cancelled."""
    timers: TimingWheel[str] = TimingWheel(0)
    timers.start(1, MS, "a")
    timers.start(2, MS, "b")
    timers.start(3, 30 * SECOND, "c")
    assert timers.advance(HOUR, limit=1) == [(1, "a")]
    timers.cancel(2)
    due_ns = timers.next_due_ns()
    assert due_ns is not None
    assert due_ns <= HOUR
    assert timers.advance(HOUR) == [(3, "c")]


def test_a_step_back_of_now_is_ignored() -> None:
    """After a step back nothing happens until the time is where it was."""
    timers: TimingWheel[str] = TimingWheel(HOUR)
    timers.start(1, HOUR + 2 * MS, "a")
    assert timers.advance(HOUR + MS) == []
    assert timers.advance(0) == []
    assert timers.advance(HOUR + 2 * MS) == [(1, "a")]


def test_the_next_block_is_brought_down_before_it_begins() -> None:
    """Advanced when it asks for it, the wheel moves no more at a time than a few ticks' share."""
    with mock.patch.object(wheel, "MOVES_PER_TICK", 4):
        timers: TimingWheel[int] = TimingWheel(0)
        for timer_id in range(1000):
            timers.start(timer_id, (1024 + timer_id % 256) * MS, timer_id)
        moved = []
        bring_down = TimingWheel._bring_down

        def counting(self: TimingWheel[int], depth: int, block: int, most: int | None) -> bool:
            before = dict(self._where)
            done = bring_down(self, depth, block, most)
            moved.append(sum(before[timer_id] != at for timer_id, at in self._where.items()))
            return done

        with mock.patch.object(TimingWheel, "_bring_down", counting):
            expired = [timer for _, batch in follow(timers) for timer in batch]
    assert len(expired) == sum(moved) == 1000
    assert max(moved) <= 4 * wheel.TICKS_MADE_UP_MAX
    assert sorted(moved)[-2] <= 4  # after the first call, which came after a long sleep


def test_starting_and_cancelling_for_ever_keeps_nothing() -> None:
    """What was cancelled is removed from the slots, not only when its time would have come."""
    timers: TimingWheel[int] = TimingWheel(0)
    timers.start(0, 32 * SECOND, 0)
    for timer_id in range(1, 10_000):
        timers.start(timer_id, 32 * SECOND, 0)
        timers.cancel(timer_id)
    kept = sum(len(slot) for level in timers._levels for slot in level.slots)
    assert kept <= 2 * 3 * wheel.DEAD_KEPT


def test_a_cancelled_timer_wakes_nobody() -> None:
    """When all timers of a slot were cancelled, `next_due_ns` does not ask for it."""
    timers: TimingWheel[int] = TimingWheel(0)
    timers.start(1, 10 * MS, 0)
    timers.start(2, 20 * MS, 0)
    timers.cancel(1)
    assert timers.next_due_ns() == 20 * MS
    timers.cancel(2)
    assert timers.next_due_ns() is None


def test_what_runs_moves_to_another_wheel() -> None:
    """Started from `running`, another wheel expires the same timers in the same order."""
    old: TimingWheel[int] = TimingWheel(3)
    for timer_id in range(500):
        old.start(timer_id, timer_id * 7919 % 90_000 // 3 * 3 * MS, timer_id)
    old.advance(20 * SECOND, limit=60)
    new: TimingWheel[int] = TimingWheel(20 * SECOND)
    for timer_id, due_ns, entry in old.running():
        new.start(timer_id, due_ns, entry)
    late = old.advance(20 * SECOND)
    assert sorted(new.advance(20 * SECOND)) == sorted(late)
    assert new.advance(HOUR) == old.advance(HOUR)


def test_a_timer_takes_less_than_110_bytes() -> None:
    """Memory per timer, without its id and entry, at the load that the dict has at 2,000,000."""
    count = 2_000_000 // 32
    ids = [(7 << 44) + i for i in range(count)]
    tracemalloc.start()
    try:
        timers: TimingWheel[None] = TimingWheel(0)
        for timer_id in ids:
            timers.start(timer_id, 5 * SECOND + timer_id * 7919 % 3_600_000 * MS, None)
        size_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    fixed_bytes = len(timers._levels) * (2 << wheel.SLOT_BITS) * 72  # an empty wheel's slots
    assert (size_bytes - fixed_bytes) / count < 110


def test_a_due_time_out_of_reach_is_refused() -> None:
    """More ticks than the highest level has are an error with the values, not a wrong time."""
    timers: TimingWheel[int] = TimingWheel(0, slot_bits=1)
    timers.start(1, 255 * MS, 0)
    with pytest.raises(OverflowError, match=r"ticks=512, ticks_max=511$"):
        timers.start(2, 512 * MS, 0)
    assert timers.advance(HOUR) == [(1, 0)]


def test_the_reach_does_not_shrink_when_a_limit_cuts_short() -> None:
    """A block of the highest level is in reach of the tick reached, however often that is cut."""
    timers: TimingWheel[int] = TimingWheel(0, slot_bits=1)
    timers.start(1, 511 * MS, 0)
    assert timers.advance(HOUR, limit=0) == []
    timers.start(2, (511 + 256) * MS, 0)
    assert timers.advance(HOUR) == [(1, 0), (2, 0)]


def test_too_many_timers_in_one_slot_are_refused() -> None:
    """A position that does not fit is an error with the values, not another timer's place."""
    timers: TimingWheel[int] = TimingWheel(0)
    with mock.patch.object(wheel, "POSITION_MASK", 5):
        for timer_id in range(3):
            timers.start(timer_id, MS, 0)
        with pytest.raises(OverflowError, match=r"pairs=3$"):
            timers.start(3, MS, 0)
    assert len(timers.advance(MS)) == 3


@pytest.mark.parametrize(("tick_ns", "slot_bits"), [(0, 8), (-1, 8), (1, 0)])
def test_a_wheel_needs_ticks_and_slots(tick_ns: int, slot_bits: int) -> None:
    """Sizes that make no wheel are refused, with the values."""
    with pytest.raises(ValueError, match=f"tick_ns={tick_ns}, slot_bits={slot_bits}$"):
        TimingWheel(0, tick_ns=tick_ns, slot_bits=slot_bits)
