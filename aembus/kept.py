"""What is kept for how long: by name while it was used lately, and in a list while others have it.

Points may be named after what comes and goes (a call, a connection), so nothing that is kept for
each name may be kept for ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

NAMES_MAX: Final = 10_000

_T = TypeVar("_T")


class Recent(dict[str, _T]):
    """Something for each name that was used lately: for NAMES_MAX names at most.

    Read it as a dict, and write it by `keep` alone.
    """

    def keep(self, name: str, thing: _T) -> _T:
        """Keep a thing by its name; return it, or what another thread has kept just before."""
        if len(self) >= NAMES_MAX:
            self.clear()  # what is in use is made anew: one step to all threads, and no order
        return self.setdefault(name, thing)


class WeakList(Generic[_T]):
    """Things to be visited as long as somebody else has them.  Any thread may add and visit."""

    def __init__(self) -> None:
        self._things: weakref.WeakValueDictionary[int, _T] = weakref.WeakValueDictionary()

    def add(self, thing: _T) -> None:
        """Have it visited from now on."""
        self._things[id(thing)] = thing

    def remove(self, thing: _T) -> None:
        """Have it visited no more.  Idempotent."""
        self._things.pop(id(thing), None)

    def __iter__(self) -> Iterator[_T]:
        for reference in self._things.valuerefs():  # copied by one step to all threads
            thing = reference()
            if thing is not None:
                yield thing

    def __len__(self) -> int:
        return len(self._things)
