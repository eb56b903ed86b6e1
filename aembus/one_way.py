"""The short way of a service call that gives no answer: a record of the lane in C, in one step.

A member keeps one for each such call that it makes.  In plain Python, while a lane is not open or
full, and right after the bus has changed, calls go the sender's long way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from aembus.routing import Target
from aembus.sender import Job, Sender
from aembus.shm import layout
from aembus.shm.lanes import Publisher, plain_activate


@final
class OneWay:
    """The way of one call to one member, by one sender: a ShortWay of the sender's.

    Args:
        sender: of this process.
        target: the member, and the call's id there.
    """

    __slots__ = ("__weakref__", "_sender", "_target", "lanes_opened", "publisher")

    def __init__(self, sender: Sender, target: Target) -> None:
        self._sender = sender
        self._target = target
        self.publisher: Publisher | None = None
        self.lanes_opened = 0
        sender.routes.add_short_way(self)

    def is_of(self, sender: Sender) -> bool:
        """Say whether this is the sender whose way it is; another one came with a new join."""
        return sender is self._sender

    def send(self, payload: bytes, timeout_s: float, what: str) -> None:
        """Make the call.  Raises: InboxFull after `timeout_s`, and whatever Sender.send does."""
        publisher = self.publisher
        if publisher is not None and publisher.publish(payload, -1):
            return
        job = Job(payload, kind=layout.KIND_CALL)
        self._sender.send(self._target, job, timeout_s, what)
        self._sender.routes.make_short_way(self, self._target, layout.KIND_CALL, 0, 0)

    def close(self) -> None:
        """Send nothing more this way."""
        self.publisher = None
        self._sender.routes.remove_short_way(self)


@final
class OneWayCall:
    """A call without an answer, for a service client that makes it often; `Bus.one_way_call`.

    Args:
        send: sends the data, and returns the way by which the next ones may go: another one where
            the process has joined a bus again.
    """

    __slots__ = ("_route", "_send")

    def __init__(self, send: Callable[[tuple[Any, ...]], OneWay]) -> None:
        self._route: OneWay | None = None
        self._send = send

    @plain_activate
    def tell(self, *data: Any) -> int:
        """Make the call, in one step of the lane in C where the data are plain and there is room.

        Raises: see Bus.tell_service.
        """
        self._route = self._send(data)
        return 1
