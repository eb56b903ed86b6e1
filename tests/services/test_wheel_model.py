"""The timing wheel against a sorted list: any calls in any order."""

from __future__ import annotations

import sys
from unittest import mock

import msgpack
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aembus.services import wheel
from aembus.services.wheel import TimingWheel
from tests.support.timer_ids import HOUR, number


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
