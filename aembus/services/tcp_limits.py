"""How many connections there may be, and until when each has to show life.  Pure.

The TCP service keeps one `Census` for each listener and one `Deadlines` for all connections.

Guarantees: `Deadlines` costs nothing at a message that comes in time.  Each connection stands in
it once, at the earliest time at which it may be overdue; when that time has come, it is asked when
it really is.  So ten thousand idle connections cost one look each for every time-out that passes.
It keeps little more than it was asked to look at, however many connections have come and gone.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Final

REFUSED = "refused"
REFUSED_PER_ADDRESS = "refused_per_address"
STALE_KEPT: Final = 64  # so many looks that nobody wants any more are not worth sorting out


class Census:
    """Counts the connections of a listener, in all and for each address.

    Args:
        in_all_max: how many there may be.
        per_address_max: of one address; None: as many as in all.
    """

    def __init__(self, in_all_max: int, per_address_max: int | None) -> None:
        self._in_all_max = in_all_max
        self._per_address_max = per_address_max
        self._per_address: Counter[str] = Counter()
        self.in_all = 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many as there may be."""
        return self.in_all >= self._in_all_max

    def enter(self, address: str) -> str | None:
        """Count a connection in, or return why it is refused: what to count it as.

        Args:
            address: whose connection it is; "" where addresses are not counted.
        """
        if self.is_full:
            return REFUSED
        if self._per_address_max is not None and address:
            if self._per_address[address] >= self._per_address_max:
                return REFUSED_PER_ADDRESS
            self._per_address[address] += 1
        self.in_all += 1
        return None

    def leave(self, address: str) -> None:
        """Count a connection out that was counted in under the same address."""
        self.in_all -= 1
        if self._per_address_max is not None and address:
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]


class Deadlines:
    """When to look at which number next."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []
        self._times: dict[int, int] = {}

    def look_at(self, number: int, at_ns: int) -> None:
        """Look at `number` no later than at `at_ns`."""
        known = self._times.get(number)
        if known is None or at_ns < known:
            self._times[number] = at_ns
            heapq.heappush(self._heap, (at_ns, number))
            if len(self._heap) > 2 * len(self._times) + STALE_KEPT:
                self._heap = [(due_ns, other) for other, due_ns in self._times.items()]
                heapq.heapify(self._heap)

    def forget(self, number: int) -> None:
        """Do not look at `number` any more."""
        self._times.pop(number, None)

    def next_ns(self) -> int | None:
        """Return when the next look is due; None if nothing is to be looked at."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def take_due(self, now_ns: int) -> list[int]:
        """Return whom to look at now; each has to ask for its next look by itself."""
        due = []
        while self._heap and self._heap[0][0] <= now_ns:
            at_ns, number = heapq.heappop(self._heap)
            if self._times.get(number) == at_ns:
                del self._times[number]
                due.append(number)
        return due

    def _drop_stale(self) -> None:
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
