"""The timers that the timer service has to know more of than when they are due.  Pure.

Periodic ones, those that name a point, those of the wall clock: each is an entry here, beside the
wheel that says when.  A process's plain timers, of which there may be millions, are not: see
`timer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from aembus.services.base import Caller

from .wheel import GENERATION_BITS, TimingWheel, next_id, timer_id

TICK_NS: Final = 1_000_000
CARRIED: Final = 10  # so many of an entry's fields pass to another version


def tick_of(due_ns: int) -> int:
    """Return the first tick that is not before `due_ns`."""
    return -(-due_ns // TICK_NS)


@dataclass(slots=True)
class Entry:
    """One timer.

    slot, incarnation: whose process started it.
    starter_id: what that process calls it.
    due_ns: on CLOCK_MONOTONIC, or on the wall clock.
    period_ns: 0: it fires once.
    wall: due on the wall clock.
    point: what it activates; None: a handler of its starter.
    payload, key_hash: of the activation.
    name: there is one of this name on the bus.
    source: the host's number for it, once it has activated its point; 0 if it does not repeat.
    owed_until: it has expired and is not paid while its owner has been paid less than that.
    """

    slot: int
    incarnation: int
    starter_id: int
    due_ns: int
    period_ns: int
    wall: bool
    point: str | None = None
    payload: bytes = b""
    key_hash: int | None = None
    name: str | None = None
    source: int = 0
    owed_until: int = 0

    @property
    def starter(self) -> Caller:
        """Who started it."""
        return Caller(self.slot, self.incarnation)

    def to_data(self) -> list[Any]:
        """Return what another version makes it of: the arguments in front of `source`."""
        return [getattr(self, name) for name in self.__slots__[:CARRIED]]


class TimerBook:
    """Entries, found by their wheel's id, by their starter's id, and by name.

    Args:
        now: on CLOCK_MONOTONIC, in ticks.
        wall_now: on the wall clock, in ticks.
    """

    def __init__(self, now: int, wall_now: int) -> None:
        self._wheel = TimingWheel(now)
        self._wall_wheel = TimingWheel(wall_now)
        self._entries: dict[int, Entry] = {}
        self._by_starter: dict[tuple[int, int, int], int] = {}
        self._named: dict[str, int] = {}
        self._free: list[int] = []
        self._indices = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> bool:
        """Start a timer; False, and nothing done, if one of its name runs.

        Raises: OverflowError if it is due too far ahead; nothing has changed then.
        """
        if entry.name is not None and entry.name in self._named:
            return False
        number = self._free.pop() if self._free else timer_id(self._indices, 1)
        try:
            self._wheel_of(entry).start(number, tick_of(entry.due_ns))
        except OverflowError:
            self._free.append(number)
            raise
        finally:
            self._indices = max(self._indices, (number >> GENERATION_BITS) + 1)
        self._entries[number] = entry
        self._by_starter[entry.slot, entry.incarnation, entry.starter_id] = number
        if entry.name is not None:
            self._named[entry.name] = number
        return True

    def cancel(self, starter: Caller, starter_id: int, name: str | None) -> bool:
        """Stop a timer, whoever started it if it has a name; False if none runs."""
        if name is not None:
            number = self._named.get(name)
        else:
            number = self._by_starter.get((*starter, starter_id))
        if number is None:
            return False
        self._wheel_of(self._entries[number]).cancel(number)
        self._remove(number)
        return True

    def drop_handlers(self, starter: Caller) -> int:
        """Stop the timers that name handlers of a process which is gone; return how many."""
        gone = [
            number
            for number, entry in self._entries.items()
            if entry.point is None and entry.starter == starter
        ]
        for number in gone:
            self._wheel_of(self._entries[number]).cancel(number)
            self._remove(number)
        return len(gone)

    def expire(self, now: int, wall_now: int, limit: int) -> Iterator[tuple[int, Entry]]:
        """Take what is due; each with the tick at which it was.

        A periodic one is started again, from when it was due and not from now: no drift.  What
        was missed meanwhile is not made up for.
        """
        if wall_now < self._wall_wheel.now:
            self._wind_back(wall_now)
        for wheel, present in ((self._wheel, now), (self._wall_wheel, wall_now)):
            if not len(wheel):
                continue
            for tick, numbers in wheel.advance(present, limit):
                for number in numbers:
                    entry = self._entries[number]
                    if entry.period_ns:
                        missed = max(present * TICK_NS - entry.due_ns, 0) // entry.period_ns
                        entry.due_ns += entry.period_ns * (missed + 1)
                        wheel.start(number, tick_of(entry.due_ns))
                    else:
                        self._remove(number)
                    yield tick, entry

    def next_due(self) -> int | None:
        """Return the tick of CLOCK_MONOTONIC at which something is due there."""
        return self._wheel.next_due()

    def next_wall_due(self) -> int | None:
        """Return the tick of the wall clock at which something is due there."""
        return self._wall_wheel.next_due()

    def _wheel_of(self, entry: Entry) -> TimingWheel:
        return self._wall_wheel if entry.wall else self._wheel

    def _remove(self, number: int) -> None:
        entry = self._entries.pop(number)
        self._by_starter.pop((entry.slot, entry.incarnation, entry.starter_id), None)
        if entry.name is not None:
            self._named.pop(entry.name, None)
        self._free.append(next_id(number))

    def _wind_back(self, wall_now: int) -> None:
        # A wheel does not turn back: a new one takes its timers.
        old, self._wall_wheel = self._wall_wheel, TimingWheel(wall_now)
        for number, _ in old.running():
            self._wall_wheel.start(number, tick_of(self._entries[number].due_ns))

    # --- as data ----------------------------------------------------------------------------------

    def to_data(self) -> list[Any]:
        """Return the book as what fits msgpack."""
        return [self._entries[number].to_data() for number in self._in_order()]

    def _in_order(self) -> Iterator[int]:
        for wheel in (self._wheel, self._wall_wheel):
            for number, _ in wheel.running():
                yield number

    @classmethod
    def from_data(cls, now: int, wall_now: int, data: list[Any]) -> TimerBook:
        """Return the book that `to_data` was asked of; what is due since fires at once."""
        book = cls(now, wall_now)
        for entry in data:
            book.add(Entry(*entry))
        return book
