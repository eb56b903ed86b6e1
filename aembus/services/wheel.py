"""A hierarchical timing wheel: which timers are due.  Pure: the present is always an argument.

The timer service, in whichever process hosts it, owns its wheels and is the only one to touch them.
Times are ticks, whole numbers on whatever clock the owner reads.

```
               current block            next block
level 0   |..|..|..|..|..|..|..|   |..|..|..|..|..|..|..|    a slot holds one tick
level 1   |....................|   |....................|    a slot holds a block of level 0
```

A timer is its id, a number of two parts: an *index*, dense from 0 on, and a *generation* that
tells it from those that had its index before.  `_words` has a word for each index: the tick of the
timer that runs under it, and its generation.  A timer lies in the lowest level whose open blocks
reach its tick.  A slot is an array of ids in the order of their starts.  Cancelling clears the word
and leaves the id in its slot, where it is dead: nothing there matches its generation.

Before a block becomes the current one, the slot above that covers it is brought down, some timers
at each `advance`, so that no single call has to move them all; what is left when its time has come
moves then.  Timers of one tick always lie in the same slot, or move in their order.

Guarantees:

- no timer expires before its tick; each does in the first `advance` that has reached its tick (or
  in a later one, if `limit` cut that one short);
- what expires comes in the order of the ticks, and within a tick in the order of the starts; a
  timer that is started when it is due already counts as due at the tick reached;
- starting and cancelling touch one word and one slot, whatever runs beside them;
- a running timer takes 16 bytes, and what arrays keep to grow; a cancelled one leaves 8, until
  three of four in its slot are dead and that is written anew.

Not here: clocks, periods, handlers, names (the timer service); threads (one owner, no locks).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final

SLOT_BITS: Final = 8
GENERATION_BITS: Final = 22
GENERATION_MASK: Final = (1 << GENERATION_BITS) - 1
TICK_MAX: Final = (1 << 64 - GENERATION_BITS) - 1  # 139 years of milliseconds
INDEX_AHEAD_MAX: Final = 1 << 16  # indices are dense: one further ahead is somebody's mistake
LEVELS_MAX: Final = 8

DEAD_KEPT: Final = 64  # with fewer dead ids a slot that has living ones is not written anew
MOVES_PER_TICK: Final = 1024  # timers that a level brings down ahead of time, a quarter of a ms
TICKS_MADE_UP_MAX: Final = 16  # for so many ticks a late `advance` makes up


def timer_id(index: int, generation: int) -> int:
    """Return the id of the timer with this index and generation, which is 1 or more."""
    return index << GENERATION_BITS | generation


def next_id(used_id: int) -> int:
    """Return the id that follows an id of the same index, once that one runs no longer."""
    following = used_id + 1
    return following if following & GENERATION_MASK else following - GENERATION_MASK


class _Level:
    """A ring of slots that has room for two blocks of them."""

    __slots__ = ("block_shift", "dead", "end", "mask", "occupied", "shift", "slots", "taken")

    def __init__(self, depth: int, slot_bits: int, tick: int) -> None:
        self.shift = depth * slot_bits  # from ticks to slot numbers
        self.block_shift = self.shift + slot_bits  # from ticks to blocks
        self.mask = (2 << slot_bits) - 1
        # Blocks before this tick are open; two at first, as nothing can lie in the level above.
        self.end = (tick >> self.block_shift) + 2 << self.block_shift
        self.occupied = 0  # a bit for the index of each slot that has ids
        self.slots: list[array[int] | None] = [None] * (2 << slot_bits)
        self.dead = [0] * len(self.slots)  # how many of a slot's ids are dead, at least
        self.taken: dict[int, int] = {}  # index of a slot -> position before which ids are gone

    def first_begin(self, tick: int) -> int | None:
        """Return when the first slot that has ids begins, from the one of `tick` on."""
        if not self.occupied:
            return None
        present = tick >> self.shift
        index = present & self.mask
        ahead = self.occupied >> index or self.occupied << self.mask + 1 - index
        return present + (ahead & -ahead).bit_length() - 1 << self.shift

    def fill(self, index: int, ids: array[int]) -> None:
        """Put ids into an empty slot."""
        self.slots[index] = ids
        self.occupied |= 1 << index

    def empty(self, index: int) -> None:
        """Let go of all ids of a slot."""
        if self.slots[index] is not None:
            self.slots[index] = None
            self.dead[index] = 0
            self.taken.pop(index, None)
            self.occupied &= ~(1 << index)


class TimingWheel:
    """Running timers.

    Args:
        now: the present, in ticks.
        slot_bits: 2 to the power of this slots are a block; small ones are for tests.
    """

    def __init__(self, now: int, *, slot_bits: int = SLOT_BITS) -> None:
        if slot_bits < 1:
            raise ValueError(f"no such wheel, slot_bits={slot_bits}")
        self._slot_bits = slot_bits
        self._now = now  # the latest tick that `advance` was told
        self._tick = now  # the tick reached: every earlier one is done with
        self._words: array[int] = array("Q")
        self._running = 0
        self._levels = [_Level(0, slot_bits, now)]  # more are added when a timer needs them

    def __len__(self) -> int:
        return self._running

    def start(self, started_id: int, tick: int) -> None:
        """Let a timer run until `tick`; what ran under its index is cancelled.

        Raises: as `set_all`.
        """
        self.set_all((started_id, max(tick, 1)))

    def cancel(self, cancelled_id: int) -> bool:
        """Stop a timer; False if it does not run (any more)."""
        running = self._running
        self.set_all((cancelled_id, 0))
        return self._running < running

    def set_all(self, numbers: Sequence[int]) -> None:
        """Start and cancel timers, one after the other.

        Args:
            numbers: pairs of an id and its tick; 0 for the tick cancels.

        Raises:
            ValueError: an index is far ahead of all others.
            OverflowError: a tick is beyond the highest level.
            The pairs in front of it are done then, and those behind it are not.
        """
        words, levels, reached = self._words, self._levels, self._tick
        running = self._running
        pairs = iter(numbers)
        try:
            for number, tick in zip(pairs, pairs, strict=True):
                at = number >> GENERATION_BITS
                generation = number & GENERATION_MASK
                if at >= len(words) or not generation:
                    self._make_word(at, generation)
                if word := words[at]:
                    if tick or word & GENERATION_MASK == generation:
                        words[at] = 0
                        running -= 1
                        self._bury(word >> GENERATION_BITS)
                if not tick:
                    continue
                if tick < reached:
                    tick = reached
                for level in levels:
                    if tick < level.end:
                        break
                else:
                    level = self._level_above(tick)
                words[at] = tick << GENERATION_BITS | generation
                running += 1
                index = tick >> level.shift & level.mask
                slot = level.slots[index]
                if slot is None:
                    level.fill(index, array("Q", (number,)))
                else:
                    slot.append(number)
        finally:
            self._running = running

    @property
    def now(self) -> int:
        """The latest tick that `advance` was told."""
        return self._now

    def advance(self, now: int, limit: int = sys.maxsize) -> list[tuple[int, list[int]]]:
        """Go on to the tick `now`; return the ticks with what has expired there, all in order.

        A `now` before an earlier one counts as that earlier one.

        Args:
            limit: return at most so many ids; the next call, due at once, goes on from there.
        """
        before = self._tick
        now = self._now = max(self._now, now)
        expired: list[tuple[int, list[int]]] = []
        tick: int | None = before
        while tick is not None and tick <= now:
            self._enter(tick)
            ids: list[int] = []
            done = self._expire(ids, limit)
            if ids:
                expired.append((tick, ids))
                limit -= len(ids)
            if not done:
                return expired
            tick = self._next_tick()
        self._enter(now)
        moves_max = MOVES_PER_TICK * min(now - before, TICKS_MADE_UP_MAX)
        for depth in reversed(range(len(self._levels))):
            self._open_next_block(depth, moves_max)
        return expired

    def next_due(self) -> int | None:
        """Return the tick at which to call `advance` next; None without timers.

        Never too late, but early if timers have to be brought down, or some were cancelled.
        """
        if not self._running:
            return None
        ticks = []
        for level in self._levels:
            if (begin := level.first_begin(self._tick)) is not None:
                # What lies higher is brought down during the block before its own.
                early = max(begin - (1 << level.shift), self._tick + 1)
                ticks.append(early if level.shift else begin)
        return min(ticks)

    def running(self) -> Iterator[tuple[int, int]]:
        """Iterate over (id, tick), those of a tick in their order.  No other call may come between.

        Another wheel can start them from this.
        """
        words = self._words
        for level in self._levels:
            for index, slot in enumerate(level.slots):
                for number in (slot or ())[level.taken.get(index, 0) :]:
                    word = words[number >> GENERATION_BITS]
                    if not (word ^ number) & GENERATION_MASK:
                        yield number, word >> GENERATION_BITS

    # --- as data ----------------------------------------------------------------------------------

    def to_data(self) -> list[Any]:
        """Return the wheel as what fits msgpack; its arrays are copied and nothing is looked at."""
        levels = [
            [
                level.end,
                [
                    [index, level.taken.get(index, 0), level.dead[index], slot.tobytes()]
                    for index, slot in enumerate(level.slots)
                    if slot is not None
                ],
            ]
            for level in self._levels
        ]
        words = self._words.tobytes()
        return [self._slot_bits, self._now, self._tick, self._running, words, levels]

    @classmethod
    def from_data(cls, data: list[Any]) -> TimingWheel:
        """Return the wheel that `to_data` was asked of."""
        slot_bits, now, tick, running, words, levels = data
        wheel = cls(now, slot_bits=slot_bits)
        wheel._tick = tick
        wheel._running = running
        wheel._words.frombytes(words)
        wheel._levels = []
        for depth, (end, slots) in enumerate(levels):
            level = _Level(depth, slot_bits, tick)
            level.end = end
            for index, taken, dead, ids in slots:
                level.fill(index, array("Q", ids))
                level.dead[index] = dead
                if taken:
                    level.taken[index] = taken
            wheel._levels.append(level)
        return wheel

    # --- words and levels -------------------------------------------------------------------------

    def _make_word(self, index: int, generation: int) -> None:
        """Have a word for `index`; refuse what is no id."""
        if not generation:
            raise ValueError(f"timer id has no generation, {index=}")
        words = self._words
        missing = index + 1 - len(words)
        if missing > INDEX_AHEAD_MAX:
            raise ValueError(f"timer index is not the next one, {index=}, indices={len(words)}")
        words.frombytes(bytes(words.itemsize * max(missing, 64)))

    def _level_above(self, tick: int) -> _Level:
        """Add levels until one reaches `tick`, and return that."""
        levels = self._levels
        self._open_next_block(len(levels) - 1, 0)
        while tick >= levels[-1].end:
            if len(levels) == LEVELS_MAX or tick > TICK_MAX:
                ticks_max = min(levels[-1].end - 1, TICK_MAX) - self._tick
                raise OverflowError(
                    f"due time is out of reach, ticks={tick - self._tick}, {ticks_max=}"
                )
            levels.append(_Level(len(levels), self._slot_bits, self._tick))
        return levels[-1]

    def _bury(self, tick: int) -> None:
        """Count one more dead id in the slot of a timer that was due at `tick`."""
        # While its slot is being brought down it may lie in the one above: the count is a hint.
        for level in self._levels:
            if tick < level.end:
                break
        index = tick >> level.shift & level.mask
        slot = level.slots[index]
        if slot is None:
            return
        dead = level.dead[index] = level.dead[index] + 1
        if dead * 4 >= len(slot) * 3 and (dead > DEAD_KEPT or dead >= len(slot)):
            self._remove_dead(level, index, slot)

    def _remove_dead(self, level: _Level, index: int, slot: array[int]) -> None:
        """Write a slot anew, without its dead ids."""
        words = self._words
        begin = level.taken.get(index, 0)
        kept = [
            number
            for number in (slot[begin:] if begin else slot)
            if not (words[number >> GENERATION_BITS] ^ number) & GENERATION_MASK
        ]
        level.empty(index)
        if kept:
            level.fill(index, array("Q", kept))

    # --- time passes ------------------------------------------------------------------------------

    def _next_tick(self) -> int | None:
        """Return the first tick at which a slot begins that has ids, of whatever level."""
        begins = [level.first_begin(self._tick) for level in self._levels]
        return min((begin for begin in begins if begin is not None), default=None)

    def _enter(self, tick: int) -> None:
        """Make `tick` the tick reached.  No slot that began before it may have ids."""
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
        if source is None:
            return True
        begin = above.taken.get(source_index, 0)
        end = len(source) if moves_max is None else min(begin + moves_max, len(source))
        words, slots, mask = self._words, level.slots, level.mask
        shift = GENERATION_BITS + level.shift
        for number in source[begin:end]:
            word = words[number >> GENERATION_BITS]
            if not (word ^ number) & GENERATION_MASK:
                index = word >> shift & mask
                slot = slots[index]
                if slot is None:
                    level.fill(index, array("Q", (number,)))
                else:
                    slot.append(number)
        if end < len(source):
            above.taken[source_index] = end
            return False
        above.empty(source_index)
        return True

    def _expire(self, expired: list[int], limit: int) -> bool:
        """Take what is due at the tick reached; False if `limit` ended it."""
        level = self._levels[0]
        index = self._tick & level.mask
        slot = level.slots[index]
        if slot is None:
            return True
        words = self._words
        due = self._tick << GENERATION_BITS
        position = level.taken.get(index, 0)
        for number in slot[position:] if position else slot:
            at = number >> GENERATION_BITS
            if words[at] == due | number & GENERATION_MASK:
                if len(expired) == limit:
                    level.taken[index] = position
                    self._running -= len(expired)
                    return False
                words[at] = 0
                expired.append(number)
            position += 1
        self._running -= len(expired)
        level.empty(index)
        return True
