"""A dict that forgets: records by key, each until its time, and never more than a limit.

What it is: pure; `now` is an argument. Who uses it: sip_transaction, for transactions and dialogs.

Guarantees:
- `get` takes O(1); `put`, and `forget` for each record forgotten, O(log n) on average.
- A record is never forgotten before its `forget_at`, the limit apart; a later `forget_at` written
  into a record counts. At the limit the record that was to be forgotten first goes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Generic, Protocol, TypeVar


class Record(Protocol):
    """What a record has to have."""

    key: bytes
    forget_at: float


R = TypeVar("R", bound=Record)


class Memory(Generic[R]):
    """Records by key."""

    def __init__(self, records_max: int) -> None:
        assert records_max > 0, f"records_max={records_max}"
        self._records_max = records_max
        self._records: dict[bytes, R] = {}
        self._queue: list[tuple[float, int, R]] = []  # by forget_at as it was when put
        self._serial = count()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[R]:
        return iter(self._records.values())

    def get(self, key: bytes) -> R | None:
        """The record of this key, if it is still known."""
        return self._records.get(key)

    def put(self, record: R) -> R | None:
        """Keep a record, in place of an older one of its key.

        Returns: the record that had to go for it, if the limit was reached.
        """
        self._records[record.key] = record
        if len(self._queue) >= 2 * self._records_max:
            self._queue = [entry for entry in self._queue if self._is_kept(entry[2])]
            heapify(self._queue)
        self._push(record)
        if len(self._records) <= self._records_max:
            return None
        return self._pop(inf)

    def forget(self, now: float) -> list[R]:
        """Forget the records whose time has come, and return them."""
        gone: list[R] = []
        while (record := self._pop(now)) is not None:
            gone.append(record)
        return gone

    def next_at(self) -> float:
        """A time before which `forget` has nothing to do; infinite when empty."""
        return self._queue[0][0] if self._queue else inf

    def _push(self, record: R) -> None:
        heappush(self._queue, (record.forget_at, next(self._serial), record))

    def _pop(self, now: float) -> R | None:
        """Take out the first record of those whose time has come."""
        while self._queue and self._queue[0][0] <= now:
            queued_for, _, record = heappop(self._queue)
            if not self._is_kept(record):
                continue
            if record.forget_at > queued_for:
                self._push(record)
                continue
            del self._records[record.key]
            return record
        return None

    def _is_kept(self, record: R) -> bool:
        return self._records.get(record.key) is record
