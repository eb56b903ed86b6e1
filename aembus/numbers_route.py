"""Records of two numbers to one member: the cheapest message there is, a header without a payload.

A member makes the service calls that the timer service takes this way, and that service tells of
expiries.  On the lane in C a record is one step, without the sender's lock; in plain Python, and
whenever the bus has changed, it goes the sender's long way.
"""

from __future__ import annotations

from typing import final

from aembus.routing import Target
from aembus.sender import FULL, Job, Sender
from aembus.shm.lanes import Publisher


@final
class NumbersRoute:
    """The way of such records to one member, by one sender.

    Args:
        sender: of this process.
        target: who gets them.
        kind, flags, addressee: of each record.

    publisher: where it is not None, ``publisher.publish_numbers(first, second)`` sends if it
        returns 1; if not, `send` does.
    """

    __slots__ = (
        *("__weakref__", "_addressee", "_flags", "_kind", "_sender", "_target"),
        *("lanes_opened", "publisher"),
    )

    def __init__(
        self, sender: Sender, target: Target, kind: int, flags: int = 0, addressee: int = 0
    ) -> None:
        self._sender = sender
        self._target = target
        self._kind = kind
        self._flags = flags
        self._addressee = addressee
        self.publisher: Publisher | None = None
        self.lanes_opened = 0
        sender.routes.add_short_way(self)

    def try_send(self, first: int, second: int) -> int:
        """Send a record; return 1, or 0 if the member is not on the bus, or FULL.

        Args:
            first, second: 0 to 2^64 - 1; they arrive as `reply_id` and `deadline_ns`.
        """
        publisher = self.publisher
        if publisher is not None and publisher.publish_numbers(first, second):
            return 1
        jobs = self._sender.try_send(self._target, self._job(first, second))
        self._make_publisher()
        return jobs

    def send(self, first: int, second: int, timeout_s: float, what: str) -> int:
        """Like `try_send`, but wait up to `timeout_s` for room, then raise InboxFull."""
        jobs = self.try_send(first, second)
        if jobs == FULL:
            jobs = self._sender.send(self._target, self._job(first, second), timeout_s, what)
        return jobs

    def close(self) -> None:
        """Send nothing more this way."""
        self.publisher = None
        self._sender.routes.remove_short_way(self)

    def _job(self, first: int, second: int) -> Job:
        return Job(
            b"",
            kind=self._kind,
            flags=self._flags,
            deadline_ns=second,
            reply_id=first,
            addressee=self._addressee,
        )

    def _make_publisher(self) -> None:
        self._sender.routes.make_short_way(
            self, self._target, self._kind, self._flags, self._addressee
        )
