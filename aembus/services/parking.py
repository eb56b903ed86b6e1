"""Where messages wait whose destination has no room, and who has to stop sending meanwhile.  Pure.

Whoever hosts services (the supervisor, a service host) keeps one parking for all of them: a queue
of items for each destination slot.  It decides nothing about lanes: `flush` is handed the function
that tries to send.  A *source* is a number that the service chose, a connection for instance.

Guarantees:

- what was parked comes out once, by `flush` or by `take_all`, in the order it was parked in (by
  slot); it is never dropped, even if its source is forgotten;
- a full or dead destination holds up nothing that is parked for others;
- a slot that comes to hold more than `bytes_max` makes every source with items in it congested,
  and every source that parks there afterwards, until a `flush` finds it down to half of that.  So
  it holds at most `bytes_max` and what each source sends before it looks at `congested`; and as
  the new ones have to wait too, they cannot keep the slot full and the old ones waiting for ever;
- a source is congested until a `flush` has named it, and is named once each time.

Not here: the bytes of an item are what the caller says; one that says 0 is not bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ParkingStatistics:
    """What is parked now: items, their bytes, the slots they wait for; `peak`: most bytes ever."""

    items: int
    bytes: int
    slots: int
    peak: int


class _Source:
    """Where messages come from; not its number, which may be used again once it is forgotten."""

    __slots__ = ("forgotten", "held_by", "items", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.items = 0
        self.held_by: set[int] = set()  # slots that are not down to half again
        self.forgotten = False


class _Queue:
    """What is parked for one slot, and which sources it holds back."""

    __slots__ = ("entries", "held", "size_bytes")

    def __init__(self) -> None:
        self.entries: deque[tuple[Any, int, _Source]] = deque()
        self.size_bytes = 0
        self.held: set[_Source] = set()  # none: the slot has not been over its bound of late


class Parking:
    """A queue of parked items for each destination slot.

    Args:
        bytes_max: a slot that holds more makes its sources congested.
    """

    def __init__(self, bytes_max: int) -> None:
        if bytes_max < 1:
            raise ValueError(f"parking needs room, bytes_max={bytes_max}")
        self._bytes_max = bytes_max
        self._queues: dict[int, _Queue] = {}
        self._sources: dict[int, _Source] = {}  # those with items, and those that are held
        self._items = 0
        self._bytes = 0
        self._peak = 0

    def __len__(self) -> int:
        """Return how many items are parked."""
        return self._items

    def slots(self) -> list[int]:
        """Return the slots to flush: items wait for them, or sources wait to hear of room there."""
        return list(self._queues)

    def waits(self) -> bool:
        """Say whether `slots` lists any."""
        return bool(self._queues)

    def is_parked(self, slot: int) -> bool:
        """Say whether items wait for `slot`; later ones then have to queue behind them."""
        queue = self._queues.get(slot)
        return queue is not None and bool(queue.entries)

    def waits_for(self, slot: int, source: int) -> bool:
        """Say whether items of `source` wait for `slot`."""
        origin = self._sources.get(source)
        if origin is None or not origin.items:
            return False
        queue = self._queues.get(slot)
        return queue is not None and any(parked_by is origin for _, _, parked_by in queue.entries)

    def park(self, slot: int, item: Any, size_bytes: int, source: int) -> None:
        """Put an item of `size_bytes` at the end of the queue for `slot`."""
        assert size_bytes >= 0, f"size_bytes={size_bytes}"
        queue = self._queues.get(slot)
        if queue is None:
            queue = self._queues[slot] = _Queue()
        origin = self._sources.get(source)
        if origin is None:
            origin = self._sources[source] = _Source(source)
        queue.entries.append((item, size_bytes, origin))
        queue.size_bytes += size_bytes
        origin.items += 1
        self._items += 1
        self._bytes += size_bytes
        self._peak = max(self._peak, self._bytes)
        if queue.held:
            self._hold(slot, queue, origin)
        elif queue.size_bytes > self._bytes_max:
            for _, _, parked_by in queue.entries:
                self._hold(slot, queue, parked_by)

    def flush(self, slot: int, try_send: Callable[[Any], bool]) -> list[int]:
        """Send what is parked for `slot`, in order, until `try_send` returns False.

        `try_send` may park items; those for the same slot stay until the next flush.  If it
        raises, the item it was called with stays the first one.

        Returns:
            The sources that were congested and are not any more: they may send again.
        """
        queue = self._queues.get(slot)
        if queue is None:
            return []
        for _ in range(len(queue.entries)):
            if not try_send(queue.entries[0][0]):
                break
            self._take_first(queue)
        if queue.size_bytes * 2 > self._bytes_max:
            return []
        if not queue.entries:
            del self._queues[slot]
        return self._release(slot, queue)

    def take_all(self, slot: int) -> list[Any]:
        """Return all that is parked for `slot`, in order: its destination has gone.

        The sources that it held back are named by the next flush of `slot`; `slots` lists it.
        """
        queue = self._queues.get(slot)
        if queue is None:
            return []
        items = [entry[0] for entry in queue.entries]
        while queue.entries:
            self._take_first(queue)
        if not queue.held:
            del self._queues[slot]
        return items

    def congested(self, source: int) -> bool:
        """Say whether `source` has to stop sending until a flush names it."""
        origin = self._sources.get(source)
        return origin is not None and bool(origin.held_by)

    def forget_source(self, source: int) -> None:
        """Never name `source` again, it has closed; what it parked stays parked."""
        origin = self._sources.pop(source, None)
        if origin is not None:
            origin.forgotten = True

    def statistics(self) -> ParkingStatistics:
        """Return what is parked now, and the most there ever was."""
        slots = sum(1 for queue in self._queues.values() if queue.entries)
        return ParkingStatistics(self._items, self._bytes, slots, self._peak)

    def _hold(self, slot: int, queue: _Queue, source: _Source) -> None:
        queue.held.add(source)
        source.held_by.add(slot)

    def _release(self, slot: int, queue: _Queue) -> list[int]:
        released = []
        for source in queue.held:
            source.held_by.discard(slot)
            if not (source.held_by or source.forgotten):
                released.append(source.number)
                self._drop_if_idle(source)
        queue.held.clear()
        return sorted(released)

    def _take_first(self, queue: _Queue) -> None:
        _, size_bytes, source = queue.entries.popleft()
        queue.size_bytes -= size_bytes
        source.items -= 1
        self._items -= 1
        self._bytes -= size_bytes
        self._drop_if_idle(source)

    def _drop_if_idle(self, source: _Source) -> None:
        if not (source.items or source.held_by or source.forgotten):
            del self._sources[source.number]
