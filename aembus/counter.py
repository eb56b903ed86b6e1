"""Application counters: numbers in shared memory that outlive the process that counts."""

from __future__ import annotations

from aembus.shm.inbox import Inbox


class Counter:
    """A number in shared memory that the application adds to; shown by `aembus stats`.

    A named member's counters outlive the process: the replacement goes on counting.
    """

    __slots__ = ("_inbox", "_index", "name")

    def __init__(self, name: str, inbox: Inbox, index: int) -> None:
        self.name = name
        self._inbox = inbox
        self._index = index

    def rebind(self, inbox: Inbox, index: int) -> None:
        """Count there from now on, from 0 (the bus does, when it has joined again)."""
        self._index = index
        self._inbox = inbox

    def add(self, number: int = 1) -> None:
        """Add to the counter (one thread at a time)."""
        self._inbox.add_to_counter(self._index, number)

    @property
    def value(self) -> int:
        """The number now."""
        return self._inbox.counter(self._index)
