"""Calls that wait for an answer: a request in the callee's inbox, the reply in ours.

Replies come by lanes of their own and are taken without running any handler, so a thread may wait
for one while jobs queue behind it.  A reply that nobody waits for any more is dropped and counted.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from aembus.codec import decode, encode
from aembus.errors import CallFailed, CallTimeout
from aembus.routing import Target
from aembus.sender import Job, Sender
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from aembus.shm.lanes import Record


class _Waiting:
    __slots__ = ("failed", "payload")

    def __init__(self) -> None:
        self.payload: bytes | None = None
        self.failed = False


class Calls:
    """The calls of one member that are under way.

    Args:
        sender, inbox: the member's two sides.
        incarnation: makes the reply ids of this process unlike those of any before it.
    """

    def __init__(self, sender: Sender, inbox: Inbox, incarnation: int) -> None:
        self._sender = sender
        self._inbox = inbox
        self._reply_ids = itertools.count(incarnation << 32 | 1)
        self._waiting: dict[int, _Waiting] = {}
        self._draining = threading.Lock()
        self.late_replies = 0

    def call(self, target: Target, data: tuple[Any, ...], timeout_s: float, what: str) -> Any:
        """Send a request to `target`, block until its answer, and return the result.

        Raises: CallTimeout, CallFailed with what the other side raised, InboxFull, BusBroken,
        OutOfSharedMemory.
        """
        # Too little memory for the answer is better told here than found out by the callee.
        self._inbox.reserve_reply_lane(target.slot)
        deadline = time.monotonic() + timeout_s
        reply_id = next(self._reply_ids)
        waiting = self._waiting[reply_id] = _Waiting()
        job = Job(
            encode(data),
            kind=layout.KIND_CALL,
            flags=layout.FLAG_WANTS_REPLY,
            reply_id=reply_id,
        )
        try:
            if not self._sender.send(target, job, timeout_s, what):
                raise CallFailed("MemberGone", f"nobody to call, call={what!r}, target={target}")
            while waiting.payload is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise CallTimeout(f"no answer in time, call={what!r}, timeout_s={timeout_s}")
                self._inbox.wait(
                    lambda: (
                        waiting.payload is not None
                        or self._inbox.has_replies()
                        or self._sender.refuses
                    ),
                    left_s,
                )
                self._sender.refresh()  # raises if the supervisor died meanwhile
                self.take_replies()
        finally:
            del self._waiting[reply_id]
        result = decode(waiting.payload)
        if waiting.failed:
            raise CallFailed(*result)
        return result[0]

    def take_replies(self) -> None:
        """Hand the replies that have arrived to those who wait for them."""
        with self._draining:
            for record in self._inbox.take_replies():
                self._hand_over(record)

    def _hand_over(self, record: Record) -> None:
        waiting = self._waiting.get(record.reply_id)
        if waiting is None:
            self.late_replies += 1
            return
        waiting.failed = bool(record.flags & layout.FLAG_FAILED)
        waiting.payload = record.payload
