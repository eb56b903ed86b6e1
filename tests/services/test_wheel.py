"""The timing wheel's promises, one by one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aembus.services import wheel
from aembus.services.wheel import TimingWheel
from tests.support.timer_ids import HOUR, MINUTE, ids, indices, number


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
