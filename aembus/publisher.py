"""The short way of an activation that concerns one member, in plain Python.

The twin of `aembus.shm._lane.Publisher`: made for one point under one generation of the registry,
with the lanes that are open.  What is not plain it leaves to `Sender`, which does the same with
all cases considered: several members, a lane to be opened, a full one, a newer generation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from aembus.gate import Gate
from aembus.shm import layout
from aembus.shm.doorbell import fence
from aembus.shm.lane import LaneProducer
from aembus.shm.peer import Peer


class Destination:
    """Where a job goes: a lane, the inbox that it is in, and the event there."""

    __slots__ = ("event_id", "peer", "put")

    def __init__(self, lane: LaneProducer, peer: Peer, event_id: int) -> None:
        self.put = lane.put
        self.peer = peer
        self.event_id = event_id


class Publisher:
    """Publishes to the one group of a point.

    Args:
        gate: the sender's.
        words: the registry's words.
        generation: under which `group` holds.
        turn: where to go on in turn, for activations without a key.
        group: one of these gets each job; None: its lane is not open yet.
    """

    __slots__ = (
        "_gate",
        "_generation",
        "_group",
        "_lock",
        "_only",
        "_turn",
        "_words",
    )

    def __init__(
        self,
        gate: Gate,
        words: Sequence[int] | memoryview,
        generation: int,
        turn: int,
        group: Sequence[Destination | None],
    ) -> None:
        self._gate = gate
        self._words = words
        self._generation = generation
        self._turn = turn
        self._group = group
        self._only = group[0] if len(group) == 1 else None
        # Called by name: a `with` block takes three times as long.
        lock: Any = gate.lock
        self._lock = lock.acquire, lock.release, lock._is_owned  # the last as Condition asks it

    def drop(self) -> None:
        """Publish nothing more: the lanes are about to be closed.  Any thread may call this.

        A thread that calls `publish` may wait there, for the lock, until they are.
        """
        self._generation = _DROPPED
        self._words = _NO_WORDS

    def publish(self, payload: bytes, key_hash: int) -> int:
        """Return 1 if the job was published and announced; 0: nothing was, use the other way.

        `key_hash` is -1 for the next in turn.
        """
        gate = self._gate
        acquire, release, is_owned = self._lock  # calling attributes is slower than calling locals
        peer = None
        try:
            try:
                acquire()  # inside of `try`: Ctrl-C may come right behind it
                if gate.busy or self._words[_GENERATION_WORD] != self._generation:
                    return 0
                gate.busy = True
                try:
                    chooser = self._turn + 1 if key_hash < 0 else key_hash
                    destination = self._only or self._group[chooser % len(self._group)]
                    if destination is None:
                        return 0
                    put, peer = destination.put, destination.peer
                    if not put(payload, destination.event_id, key_hash, time.monotonic_ns()):
                        return 0
                    if key_hash < 0:
                        self._turn = chooser
                finally:
                    gate.busy = False
            finally:
                try:
                    release()
                except RuntimeError:  # Ctrl-C came first, while another thread had it
                    pass
            # Releasing the lock was a fence, but not if it is held further out.
            if is_owned():  # as Gate.is_held_here
                fence()
            peer.ring()
        except BaseException:
            if peer is not None:
                fence()
                peer.ring()
            raise
        finally:
            if gate.deferred:
                gate.publish_deferred()
        return 1


_GENERATION_WORD = layout.GENERATION // layout.WORD
_NO_WORDS = (0,) * (_GENERATION_WORD + 1)
_DROPPED = -1  # a generation that no registry has
