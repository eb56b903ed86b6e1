"""A hierarchical timing wheel: which timers are due.  Pure: `now_ns` is always an argument.

The timer service, in whichever process hosts it, owns one wheel and is the only one to touch it.

```
               current block            next block
level 0   |..|..|..|..|..|..|..|   |..|..|..|..|..|..|..|    a slot holds one tick (1 ms)
level 1   |....................|   |....................|    a slot holds a block of level 0
```

A timer lies in the lowest level whose open blocks reach its tick.  A slot is a list of pairs (id,
entry) in the order of their starts; a dict says where each id lies.  Before a block becomes the
current one, the slot above that covers it is brought down, some timers at each `advance`, so that
no single call has to move them all; what is left when its time has come moves then.  Timers of
one tick always lie in the same slot, or move in their order.

Guarantees:

- no timer expires before its due time; each does in the first `advance` whose `now_ns` has reached
  its due time rounded up to the tick (or in a later one, if `limit` cut that one short);
- what expires comes in the order of the ticks, and within a tick in the order of the starts; a
  timer that is started when it is due already counts as due at the tick reached;
- starting and cancelling cost at 2,000,000 timers what they cost at 10,000, if what is cancelled
  was started near in time; in random order the processor's cache misses come on top;
- a running timer takes less than 110 bytes beside its id and entry (16 more beyond 99 days of
  1 ms ticks); a cancelled one leaves 16, until half of its slot is dead and is written anew.

Not here: clocks, periods, handlers, names (the timer service); threads (one owner, no locks).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

Entry = TypeVar("Entry")

TICK_NS: Final = 1_000_000
SLOT_BITS: Final = 8

# Where a timer lies, in one int: its tick, its level, its position in the slot's list.
POSITION_BITS: Final = 24
POSITION_MASK: Final = (1 << POSITION_BITS) - 1
LEVELS_MAX: Final = 8
LEVEL_MASK: Final = LEVELS_MAX - 1
TICK_SHIFT: Final = POSITION_BITS + LEVEL_MASK.bit_length()

DEAD_KEPT: Final = 64  # with fewer dead pairs a slot that has living ones is not written anew
MOVES_PER_TICK: Final = 512  # timers that a level brings down ahead of time, a quarter of a ms
TICKS_MADE_UP_MAX: Final = 16  # for so many ticks a late `advance` makes up


class _Level:
    """A ring of slots that has room for two blocks of them."""

    __slots__ = ("block_shift", "dead", "end", "mask", "occupied", "shift", "slots", "tag", "taken")

    def __init__(self, depth: int, slot_bits: int, tick: int) -> None:
        self.tag = depth << POSITION_BITS
        self.shift = depth * slot_bits  # from ticks to slot numbers
        self.block_shift = self.shift + slot_bits  # from ticks to blocks
        self.mask = (2 << slot_bits) - 1
        # Blocks before this tick are open; two at first, as nothing can lie in the level above.
        self.end = (tick >> self.block_shift) + 2 << self.block_shift
        self.occupied = 0  # a bit for the index of each slot that has pairs
        self.slots: list[list[Any]] = [[] for _ in range(2 << slot_bits)]
        self.dead = [0] * len(self.slots)  # how many of a slot's pairs are (None, None)
        self.taken: dict[int, int] = {}  # index of a slot -> position before which pairs are gone

    def first_begin(self, tick: int) -> int | None:
        """Return when the first slot that has pairs begins, from the one of `tick` on."""
        if not self.occupied:
            return None
        present = tick >> self.shift
        index = present & self.mask
        ahead = self.occupied >> index or self.occupied << self.mask + 1 - index
        return present + (ahead & -ahead).bit_length() - 1 << self.shift

    def empty(self, index: int) -> None:
        """Let go of all pairs of a slot."""
        if self.slots[index]:
            self.slots[index] = []
            self.dead[index] = 0
            self.taken.pop(index, None)
            self.occupied &= ~(1 << index)


class TimingWheel(Generic[Entry]):
    """Running timers by id, each with an entry that says what to do when it expires.

    Args:
        now_ns: the present, on the clock that all later times are on.
        tick_ns: the resolution.
        slot_bits: 2 to the power of this slots are a block; small ones are for tests.
    """

    def __init__(self, now_ns: int, *, tick_ns: int = TICK_NS, slot_bits: int = SLOT_BITS) -> None:
        if tick_ns < 1 or slot_bits < 1:
            raise ValueError(f"no such wheel, tick_ns={tick_ns}, slot_bits={slot_bits}")
        self._tick_ns = tick_ns
        self._origin_ns = now_ns - now_ns % tick_ns  # tick 0
        self._slot_bits = slot_bits
        self._now = 0  # the latest tick that `advance` was told
        self._tick = 0  # the tick reached: every earlier one is done with
        self._where: dict[int, int] = {}
        self._levels = [_Level(0, slot_bits, 0)]  # more are added when a timer needs them

    def __len__(self) -> int:
        return len(self._where)

    def start(self, timer_id: int, due_ns: int, entry: Entry) -> None:
        """Let `timer_id` run until `due_ns`; if it runs already, this replaces it.

        Raises:
            OverflowError: `due_ns` is beyond the highest level, or 8 million timers are in one
                slot.  Nothing was started, and what ran under this id was cancelled.
        """
        where = self._where
        if timer_id in where:
            self.cancel(timer_id)
        tick = -((self._origin_ns - due_ns) // self._tick_ns)  # rounded up
        if tick < self._tick:
            tick = self._tick
        for level in self._levels:
            if tick < level.end:
                break
        else:
            level = self._level_above(tick)
        index = tick >> level.shift & level.mask
        slot = level.slots[index]
        position = len(slot)
        if not position:
            level.occupied |= 1 << index
        elif position > POSITION_MASK:
            raise OverflowError(f"too many timers in one slot, pairs={position >> 1}")
        where[timer_id] = tick << TICK_SHIFT | level.tag | position
        slot.append(timer_id)
        slot.append(entry)

    def cancel(self, timer_id: int) -> Entry | None:
        """Stop `timer_id` and return its entry, or None if it does not run (any more)."""
        place = self._where.pop(timer_id, None)
        if place is None:
            return None
        level = self._levels[place >> POSITION_BITS & LEVEL_MASK]
        index = place >> TICK_SHIFT >> level.shift & level.mask
        slot = level.slots[index]
        position = place & POSITION_MASK
        entry: Entry = slot[position + 1]
        slot[position] = slot[position + 1] = None
        dead = level.dead[index] = level.dead[index] + 1
        if dead * 4 >= len(slot) and (dead > DEAD_KEPT or dead * 2 == len(slot)):
            self._remove_dead(level, index)
        return entry

    def advance(self, now_ns: int, limit: int | None = None) -> list[tuple[int, Entry]]:
        """Go on to `now_ns` and return what has expired on the way, in order.

        A `now_ns` before an earlier one counts as that earlier one.

        Args:
            limit: return at most so many; the next call, due at once, goes on from there.
        """
        before = self._tick
        now = self._now = max(self._now, (now_ns - self._origin_ns) // self._tick_ns)
        expired: list[tuple[int, Entry]] = []
        tick: int | None = before
        while tick is not None and tick <= now:
            self._enter(tick)
            if not self._expire(expired, limit):
                return expired
            tick = self._next_tick()
        self._enter(now)
        moves_max = MOVES_PER_TICK * min(now - before, TICKS_MADE_UP_MAX)
        for depth in reversed(range(len(self._levels))):
            self._open_next_block(depth, moves_max)
        if expired and not self._where:
            self._where.clear()  # gives back the memory of those that were
        return expired

    def next_due_ns(self) -> int | None:
        """Return when to call `advance` next; None without timers.

        Never too late, but early if timers have to be brought down, or some were cancelled.
        """
        if not self._where:
            return None
        ticks = []
        for level in self._levels:
            if (begin := level.first_begin(self._tick)) is not None:
                # What lies higher is brought down during the block before its own.
                early = max(begin - (1 << level.shift), self._tick + 1)
                ticks.append(early if level.shift else begin)
        return self._origin_ns + min(ticks) * self._tick_ns

    def running(self) -> Iterator[tuple[int, int, Entry]]:
        """Iterate over (timer_id, due_ns rounded up, entry), those of a tick in their order.

        No other call may come between.  Another wheel can start them from this.
        """
        for level in self._levels:
            for index, slot in enumerate(level.slots):
                for position in range(level.taken.get(index, 0), len(slot), 2):
                    if (timer_id := slot[position]) is not None:
                        tick = self._where[timer_id] >> TICK_SHIFT
                        yield timer_id, self._origin_ns + tick * self._tick_ns, slot[position + 1]

    def _level_above(self, tick: int) -> _Level:
        """Add levels until one reaches `tick`, and return that."""
        levels = self._levels
        self._open_next_block(len(levels) - 1, 0)
        while tick >= levels[-1].end:
            if len(levels) == LEVELS_MAX:
                ticks, ticks_max = tick - self._tick, levels[-1].end - self._tick - 1
                raise OverflowError(f"due time is out of reach, {ticks=}, {ticks_max=}")
            levels.append(_Level(len(levels), self._slot_bits, self._tick))
        return levels[-1]

    def _next_tick(self) -> int | None:
        """Return the first tick at which a slot begins that has pairs, of whatever level."""
        begins = [level.first_begin(self._tick) for level in self._levels]
        return min((begin for begin in begins if begin is not None), default=None)

    def _enter(self, tick: int) -> None:
        """Make `tick` the tick reached.  No slot that began before it may have pairs."""
        self._tick = tick
        for depth in reversed(range(len(self._levels))):
            level = self._levels[depth]
            if tick >= level.end:
                block = tick >> level.block_shift
                self._bring_down(depth, block, None)
                level.end = block + 1 << level.block_shift

    def _open_next_block(self, depth: int, moves_max: int) -> None:
        """Go on opening the block after the current one, at the cost of `moves_max` timers."""
        level = self._levels[depth]
        block = level.end >> level.block_shift
        if block > (self._tick >> level.block_shift) + 1:
            return  # it is open
        if depth + 1 < len(self._levels) and level.end == self._levels[depth + 1].end:
            return  # first the level above has to open its own next block
        if self._bring_down(depth, block, moves_max):
            level.end += 1 << level.block_shift

    def _bring_down(self, depth: int, block: int, moves_max: int | None) -> bool:
        """Move the timers of `block` down to the level at `depth`; say whether that was all."""
        if depth + 1 == len(self._levels):
            return True
        level, above = self._levels[depth : depth + 2]
        source_index = block & above.mask
        source = above.slots[source_index]
        begin = above.taken.get(source_index, 0)
        end = len(source) if moves_max is None else min(begin + 2 * moves_max, len(source))
        where = self._where
        for position in range(begin, end, 2):
            if (timer_id := source[position]) is not None:
                tick = where[timer_id] >> TICK_SHIFT
                index = tick >> level.shift & level.mask
                slot = level.slots[index]
                level.occupied |= 1 << index
                assert len(slot) <= POSITION_MASK, f"pairs={len(slot) >> 1}"
                where[timer_id] = tick << TICK_SHIFT | level.tag | len(slot)
                slot.append(timer_id)
                slot.append(source[position + 1])
        if end < len(source):
            above.taken[source_index] = end
            return False
        above.empty(source_index)
        return True

    def _expire(self, expired: list[tuple[int, Entry]], limit: int | None) -> bool:
        """Take what is due at the tick reached; False if `limit` ended it."""
        level = self._levels[0]
        index = self._tick & level.mask
        slot = level.slots[index]
        for position in range(level.taken.get(index, 0), len(slot), 2):
            if (timer_id := slot[position]) is not None:
                if len(expired) == limit:
                    level.taken[index] = position
                    return False
                del self._where[timer_id]
                expired.append((timer_id, slot[position + 1]))
        level.empty(index)
        return True

    def _remove_dead(self, level: _Level, index: int) -> None:
        """Write a slot anew, without its dead pairs."""
        slot = level.slots[index]
        kept: list[Any] = []
        for position in range(level.taken.get(index, 0), len(slot), 2):
            if (timer_id := slot[position]) is not None:
                self._where[timer_id] += len(kept) - position
                kept += slot[position : position + 2]
        level.empty(index)
        if kept:
            level.slots[index] = kept
            level.occupied |= 1 << index
