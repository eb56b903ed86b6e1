"""What becomes of bus objects in a forked child: they are the parent's, and refuse everything."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Poisonable(Protocol):
    """What must not be used by a forked child."""

    def poison(self) -> None:
        """Refuse everything from now on."""


_known: weakref.WeakSet[Poisonable] = weakref.WeakSet()


def poison_in_children(found: Poisonable) -> None:
    """Have `found` poisoned in every child that this process forks without exec."""
    _known.add(found)


def _poison_all() -> None:
    for found in list(_known):
        found.poison()


os.register_at_fork(after_in_child=_poison_all)
