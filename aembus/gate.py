"""What lets one activation of a process through at a time, and what a signal handler leaves there.

All threads of a process publish under one re-entrant lock.  A signal handler that activates while
its own thread is inside finds the lock open and `busy` set: what it wants to publish is put aside,
and published by the thread that it interrupted, right after.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final

from aembus.errors import AembusError

log = logging.getLogger("aembus")


class Decision:
    """Whether a publication has come so far that it is carried out, whatever interrupts it."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made = False


class Deferred:
    """An activation by a signal handler that interrupted another one.

    Args:
        publish: publishes it, noting the decision.
    """

    __slots__ = ("decision", "publish", "thread")

    def __init__(self, publish: Callable[[Decision], object]) -> None:
        self.decision = Decision()
        self.publish = publish
        self.thread: Final = threading.get_ident()


class Gate:
    """Lets one activation of a process through at a time.

    lock: held by the thread that publishes.
    busy: a publication is under way; whoever holds the lock and sees it has interrupted itself.
    deferred: what was put aside; whoever has published looks at it and calls `publish_deferred`.
    """

    __slots__ = ("busy", "deferred", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.busy = False
        self.deferred: list[Deferred] = []

    def is_held_here(self) -> bool:
        """Say whether this thread is inside, so that its caller was interrupted by a signal."""
        held: bool = self.lock._is_owned()  # type: ignore[attr-defined]  # as Condition asks it
        return held

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep other threads out, and this one's signal handlers; False in such a handler."""
        with self.lock:
            if self.busy:
                yield False
                return
            self.busy = True
            try:
                yield True
            finally:
                self.busy = False
        if self.deferred:
            self.publish_deferred()

    def publish_deferred(self) -> None:
        """Publish what this thread's signal handlers have put aside, in the order that they did."""
        if self.is_held_here():
            return  # the activation that was interrupted does it, once it is through
        while deferred := self.first_deferred():
            self._publish(deferred)

    def first_deferred(self) -> Deferred | None:
        """Return what is next among what this thread's signal handlers have put aside."""
        me = threading.get_ident()
        return next((deferred for deferred in self.deferred if deferred.thread == me), None)

    def _publish(self, deferred: Deferred) -> None:
        # A signal handler that comes here meanwhile publishes it itself, so that what it activates
        # then does not overtake it; and the decision keeps this round from doing it again.
        if not deferred.decision.made:
            try:
                deferred.publish(deferred.decision)
            except AembusError:
                log.exception("an activation from a signal handler failed")
                deferred.decision.made = True  # not to be tried again
        # Not reached if a signal handler raised: then the next round finds out whether the decision
        # was made.
        with contextlib.suppress(ValueError):
            self.deferred.remove(deferred)
