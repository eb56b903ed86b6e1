"""Activation points: named places where events happen."""

from __future__ import annotations

from typing import Any, final

from aembus.codec import encode, key_hash
from aembus.sender import FULL, IN_TURN, Sender


@final
class ActivationPoint:
    """One point of one bus; get it from `Bus.point` and keep it where activations are frequent."""

    __slots__ = ("_route", "_sender", "name")

    def __init__(self, name: str, sender: Sender) -> None:
        self.name = name
        self._sender = sender
        self._route = sender.route(name)

    def activate(
        self, *data: Any, key: str | bytes | int | None = None, timeout: float = 1.0
    ) -> int:
        """Wake every concerned event: write a job into the inbox of each one's member.

        Args:
            data: what the handlers get as arguments, after the event; must fit msgpack.
            key: activations with the same key reach the same member of each group, in order.
            timeout: seconds to wait for room if a concerned inbox is full.

        Returns how many jobs that made: 0 if nobody registered here.

        Raises: InboxFull (nothing was sent to anybody), JobTooLarge, TypeError for data that
        msgpack does not know, BusBroken, BusClosed, ForkedBusError, OutOfSharedMemory.
        """
        hashed = IN_TURN if key is None else key_hash(key)
        payload = encode(data)
        publisher = self._route.publisher
        if publisher is not None:  # as `try_activate` would, a call less
            jobs = publisher.publish(payload, hashed)
            if jobs:
                return jobs
        return self._sender.activate(self._route, payload, hashed, timeout)

    def try_activate(self, *data: Any, key: str | bytes | int | None = None) -> bool:
        """Like `activate`, but return False at once if a concerned inbox is full."""
        hashed = IN_TURN if key is None else key_hash(key)
        return self._sender.try_activate(self._route, encode(data), hashed) != FULL

    def rebind(self, sender: Sender) -> None:
        """Activate through another sender from now on (the bus does, when it has joined again)."""
        # In this order: the old sender refuses any route, the new one must not see an old one.
        self._route = sender.route(self.name)
        self._sender = sender

    def __repr__(self) -> str:
        return f"<ActivationPoint {self.name!r}>"
