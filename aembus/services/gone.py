"""Which processes are gone, of late: what one has sent before may arrive after that.

A service that keeps something for a process asks it first; `on_member_gone` tells it.  Guarantees:
who is not gone is never said to be, although a younger process of its member may be: a worker gets
its process back where its successor has failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aembus.services.base import Caller

GONE_MAX: Final = 4096  # processes; what an older one has sent was taken long ago


class Gone:
    """The processes that are gone.

    Args:
        data: of `to_data`, from another version.
    """

    __slots__ = ("_callers",)

    def __init__(self, data: Iterable[Iterable[int]] = ()) -> None:
        self._callers = {Caller(*pair): None for pair in data}

    def add(self, caller: Caller) -> None:
        """Take note of one more."""
        self._callers[caller] = None
        if len(self._callers) > GONE_MAX:
            del self._callers[next(iter(self._callers))]

    def __contains__(self, caller: Caller) -> bool:
        return caller in self._callers

    def to_data(self) -> list[list[int]]:
        """Return them as plain data, for another version."""
        return [[*caller] for caller in self._callers]
