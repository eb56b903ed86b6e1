"""What ties a bus object to its bus: the membership that it has now, and how it gets the next one.

Called by the bus object, by its membership's watcher thread (the supervisor asks it to stop, or is
gone), and by the thread that joins again.  Guarantees: what breaks is told once for each
membership, also if it breaks before it was taken up; parts are exchanged between two jobs only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from aembus.errors import BusBroken, BusClosed
from aembus.membership import Membership
from aembus.rejoining import Rejoining
from aembus.runner import Runner
from aembus.suspension import Suspension


class Attachment:
    """Joins; `begin` then has the membership's life govern a runner's.

    Args:
        bus: the bus's name.
        wanted: what to ask for when joining, see Membership.
        join: makes a membership.

    closed: the bus object was closed; it sets this.
    on_broken: called in the watcher thread when the supervisor is gone.

    Raises: as Membership does; nothing is left then.
    """

    def __init__(
        self, bus: str, wanted: dict[str, Any], join: Callable[..., Membership] = Membership
    ) -> None:
        self._make_membership = join
        self._bus = bus
        self._wanted = wanted
        self.closed = False
        self.on_broken: Callable[[], None] | None = None
        self._changing = threading.Lock()
        self._current: Membership | None = None
        self._stop_asked = False
        self._rejoining: Rejoining | None = None
        self._suspension: Suspension | None = None
        self._joined = self._join()

    def begin(
        self,
        runner: Runner,
        publish: Callable[[], None],
        move: Callable[[Membership], None],
        reconnect: bool,
    ) -> None:
        """Take up the membership that was joined.

        Args:
            runner: told to stop, and given the parts of the next membership.
            publish: publishes what was registered so far; called before jobs are taken.
            move: moves to the next membership all that the bus object has besides the runner.
            reconnect: join the next supervisor when this one is gone.
        """
        self._runner, self._publish, self._move = runner, publish, move
        if reconnect:
            self._rejoining = Rejoining(self._bus, self._join_again)
        self._take_up(self._joined)

    @property
    def membership(self) -> Membership:
        """What the bus object has now; the one that was joined first until `begin`."""
        return self._current or self._joined

    @property
    def reconnects(self) -> bool:
        """Whether the loss of the supervisor is not for good."""
        return self._rejoining is not None

    def membership_or_raise(self) -> Membership:
        """Return the membership.  Raises BusClosed, BusBroken or ForkedBusError."""
        membership = self.membership
        if self.closed or membership.broken:
            membership.sender.refresh()  # raises
        return membership

    def _join(self) -> Membership:
        return self._make_membership(
            self._bus, self._wanted, self._handle_order, self._handle_broken
        )

    def _take_up(self, membership: Membership) -> None:
        # What breaks from now on is the current one, and its watcher says so; what broke before
        # has been overheard.
        with self._changing:
            self._current = membership
            broken, stop_asked = membership.broken, self._stop_asked
        if broken:
            self._lose(membership)
        if stop_asked:
            self._runner.stop()

    def _handle_order(self, frame: dict[str, Any]) -> None:
        order = frame["push"]
        if order == "stop":
            self._handle_stop()
        elif order == "suspend":
            self._suspension = Suspension(self._runner, self.membership, frame["number"])
        elif self._suspension is not None and order == "resume":
            self._suspension.resume()
        elif self._suspension is not None and order == "retire":
            self._suspension.retire()

    def _handle_stop(self) -> None:
        with self._changing:
            self._stop_asked = True
            early = self._current is None
        if not early:
            self._runner.stop()

    def _handle_broken(self, membership: Membership) -> None:
        with self._changing:
            membership.broken = True
            current = membership is self._current
        membership.refuse()
        if self._suspension is not None:
            self._suspension.resume()
        if current:
            self._lose(membership)

    def _lose(self, membership: Membership) -> None:
        membership.refuse()
        if self.on_broken is not None:
            self.on_broken()
        self._runner.interrupt()
        if self._rejoining is not None and not self.closed:
            self._rejoining.begin()

    def await_bus(self, timeout_s: float) -> bool:
        """Wait so long at most until jobs can come; say whether they can.

        Raises: BusClosed, and BusBroken where nobody joins again.
        """
        membership = self.membership
        if self._rejoining is None or self.closed:
            self.membership_or_raise()
        elif membership.broken and not self._rejoining.wait(timeout_s):
            return False
        try:
            self._publish()
        except BusBroken:
            if self._rejoining is None:
                raise
            return False
        return True

    def _join_again(self) -> None:
        last, membership = self.membership, self._join()
        try:
            with self._runner.exchange() as give:  # not before the job in hand is finished
                if self.closed:
                    raise BusClosed("this bus object was closed")
                self._take_up(membership)
                self._move(membership)
                give(membership.event_struct, membership.inbox, membership.calls)
        except BaseException:
            membership.leave(keep=not self.closed)
            if membership is self.membership:
                membership.broken = True
                membership.refuse()
            else:
                membership.close()
            raise
        finally:
            if last is not self.membership:
                last.close()

    def refuse_while_lost(self) -> None:
        """Make activations raise BusClosed that raise BusBroken until a supervisor is found."""
        if self._rejoining is not None and self.membership.broken:
            self.membership.sender.refuse(BusClosed("this bus object was closed"))

    def end(self) -> None:
        """Join nobody any more."""
        if self._rejoining is not None:
            self._rejoining.close()
