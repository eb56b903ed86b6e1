"""Application counters: numbers in shared memory that outlive the process that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from aembus.errors import AembusError
from aembus.membership import Membership
from aembus.shm.inbox import Inbox


class Counter:
    """A number in shared memory that the application adds to; shown by `aembus stats`.

    A named member's counters outlive the process: the replacement goes on counting.
    """

    __slots__ = ("_inbox", "_index", "name")

    def __init__(self, name: str, inbox: Inbox, index: int) -> None:
        self.name = name
        self._inbox: Inbox | _Nowhere = inbox
        self._index = index

    def rebind(self, inbox: Inbox, index: int) -> None:
        """Count there from now on, from 0 (the bus does, when it has joined again)."""
        self._index = index
        self._inbox = inbox

    def refuse(self, error: AembusError) -> None:
        """Raise this from now on (the bus does, when it is closed, and in a forked child)."""
        self._inbox = _Nowhere(error)

    def add(self, number: int = 1) -> None:
        """Add to the counter (one thread at a time).  Raises: BusClosed, ForkedBusError."""
        self._inbox.add_to_counter(self._index, number)

    @property
    def value(self) -> int:
        """The number now.  Raises: BusClosed, ForkedBusError."""
        return self._inbox.counter(self._index)


class _Nowhere:
    """Stands where the inbox was, when nothing is to be counted there any more."""

    def __init__(self, error: AembusError) -> None:
        self._error = error

    def add_to_counter(self, index: int, number: int) -> NoReturn:
        raise self._error

    def counter(self, index: int) -> NoReturn:
        raise self._error


class Counters:
    """The counters of one bus object, by name.

    Args:
        membership: returns what the bus object has now.
    """

    def __init__(self, membership: Callable[[], Membership]) -> None:
        self._membership = membership
        self._counters: dict[str, Counter] = {}

    def get(self, name: str) -> Counter:
        """Return the counter of this name, making it at first use.  Raises ControlError."""
        counter = self._counters.get(name)
        if counter is None:
            membership = self._membership()
            counter = Counter(name, membership.inbox, membership.counter(name))
            counter = self._counters.setdefault(name, counter)
            if membership is not (now := self._membership()):  # joined again meanwhile
                counter.rebind(now.inbox, now.counter(name))
        return counter

    def move(self) -> None:
        """Count in another membership from now on: the bus was joined again."""
        membership = self._membership()
        for name, counter in list(self._counters.items()):
            counter.rebind(membership.inbox, membership.counter(name))

    def refuse(self, error: AembusError) -> None:
        """Count no more."""
        for counter in list(self._counters.values()):
            counter.refuse(error)
