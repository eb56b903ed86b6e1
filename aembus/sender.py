"""The writing side of a member: its lanes into everybody's inbox.

One per process.  All threads of the process publish through it, one at a time, under one lock; a
lane has one producer, so room that was seen can only grow until it is used.  That makes fan-out
all or nothing: room is claimed in every lane, then every claim is committed.

Guarantees, also when a signal handler raises (Ctrl-C) or activates in the middle:

- a fan-out is published to all or to none;
- a job that is visible is announced: the doorbells are posted on every way out;
- an activation from inside another one is put aside and published right after it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from aembus.errors import AembusError, BusBroken, BusClosed, InboxFull, JobTooLarge
from aembus.routing import EMPTY, Routing, Target, WaitQueue
from aembus.shm import layout
from aembus.shm.doorbell import fence
from aembus.shm.lane import LaneProducer
from aembus.shm.peer import Peer
from aembus.shm.registry import RegistryReader

log = logging.getLogger("aembus")

FULL: Final = -1
DEFERRED_TIMEOUT_S: Final = 1.0
NEVER: Final = -1  # a generation that no registry has: makes the next activation look closer


class Job(NamedTuple):
    """What is written into a lane beside the addressee: see `layout` for the fields."""

    payload: bytes
    kind: int = layout.KIND_JOB
    flags: int = 0
    key_hash: int = 0
    deadline_ns: int = 0
    reply_id: int = 0
    addressee: int = 0


class Route:
    """A point's wait queue as this process last saw it, and whose turn it is."""

    __slots__ = ("generation", "point", "queue", "turn")

    def __init__(self, point: str, turn: int) -> None:
        self.point = point
        self.queue: WaitQueue = EMPTY
        self.generation = NEVER
        self.turn = turn


class Sender:
    """Publishes jobs for one member.

    Args:
        bus, nonce, slot, incarnation: who this member is.
        reader: the bus's registry.
        wait: how this member waits: ``wait(ready, timeout_s)``, see Inbox.wait.
    """

    def __init__(
        self,
        bus: str,
        nonce: str,
        slot: int,
        incarnation: int,
        reader: RegistryReader,
        wait: Callable[[Callable[[], bool], float], bool],
    ) -> None:
        self._bus, self._nonce = bus, nonce
        self._slot, self._incarnation = slot, incarnation
        self._reader = reader
        self._wait = wait
        self._words: Sequence[int] | memoryview = reader.words
        self._generation_word = reader.generation_word
        self._lock = threading.RLock()
        self._busy = False
        self._deferred: list[Callable[[], int]] = []
        self._peers: dict[int, Peer] = {}
        self._refusal: AembusError | None = None
        self._waiting_for_room: dict[tuple[int, int], int] = {}
        self.routing = Routing(*reader.read())

    # --- the public verbs -----------------------------------------------------------------------

    def route(self, point: str) -> Route:
        """Return a fresh route for `activate`; each activation point keeps one."""
        return Route(point, self._slot)

    def try_activate(self, route: Route, job: Job, *, keyed: bool) -> int:
        """Wake the events concerned; return how many jobs that made, or FULL (and none was made).

        Raises: BusBroken, BusClosed, ForkedBusError, JobTooLarge, OutOfSharedMemory.
        """
        return self._publish(lambda: self._pick(route, job, keyed), job, layout.CLASS_NORMAL)

    def activate(self, route: Route, job: Job, timeout_s: float, *, keyed: bool) -> int:
        """Like `try_activate`, but wait up to `timeout_s` for room, then raise InboxFull."""
        jobs = self.try_activate(route, job, keyed=keyed)
        if jobs == FULL:
            jobs = self._activate_when_room(
                lambda: self.try_activate(route, job, keyed=keyed),
                lambda: self._pick(route, job, keyed),
                layout.CLASS_NORMAL,
                timeout_s,
                route.point,
            )
        return jobs

    def try_send(self, target: Target, job: Job, lane_class: int = layout.CLASS_NORMAL) -> int:
        """Send to one member; return 1, or 0 if it is not on the bus, or FULL."""
        return self._publish(lambda: self._one(target), job, lane_class)

    def send(
        self,
        target: Target,
        job: Job,
        timeout_s: float,
        what: str,
        lane_class: int = layout.CLASS_NORMAL,
    ) -> int:
        """Like `try_send`, but wait up to `timeout_s` for room, then raise InboxFull."""
        jobs = self.try_send(target, job, lane_class)
        if jobs == FULL:
            jobs = self._activate_when_room(
                lambda: self.try_send(target, job, lane_class),
                lambda: self._one(target),
                lane_class,
                timeout_s,
                what,
            )
        return jobs

    # --- publishing -----------------------------------------------------------------------------

    def _publish(self, pick: Callable[[], Sequence[Target]], job: Job, lane_class: int) -> int:
        peers: list[Peer] = []
        try:
            with self._lock:
                if self._busy:  # a signal handler inside an activation of the same thread
                    self._deferred.append(lambda: self._publish_late(pick, job, lane_class))
                    return len(pick())
                self._busy = True
                try:
                    if self._words[self._generation_word] != self.routing.generation:
                        self._refresh()
                    published = self._claim_and_commit(pick(), job, lane_class, peers)
                finally:
                    self._busy = False
            # Releasing the lock was the fence between storing tail and reading sleeping.
            for peer in peers:
                peer.ring()
        except BaseException:
            fence()
            for peer in peers:
                peer.ring()
            self._publish_deferred()
            raise
        if self._deferred:
            self._publish_deferred()
        return published

    def _claim_and_commit(
        self, targets: Sequence[Target], job: Job, lane_class: int, peers: list[Peer]
    ) -> int:
        payload, kind, flags, key_hash, deadline_ns, reply_id, addressee = job
        now_ns = time.monotonic_ns()
        lanes = []
        decided = False
        try:
            for slot, event_id in targets:
                peer = self._peers.get(slot) or self._open_peer(slot)
                lane = peer.lane(lane_class)
                lanes.append(lane)
                if len(payload) > lane.payload_bytes_max:
                    raise JobTooLarge(_too_large(len(payload), lane.payload_bytes_max))
                if not lane.claim(
                    payload,
                    kind,
                    flags,
                    event_id,
                    key_hash,
                    deadline_ns,
                    reply_id,
                    addressee,
                    now_ns,
                ):
                    for claimed in lanes:
                        claimed.abort()
                    return FULL
                peers.append(peer)
            decided = True
            for lane in lanes:
                lane.commit()
        except BaseException:
            for lane in lanes:
                if decided:
                    lane.commit()
                else:
                    lane.abort()
            raise
        return len(lanes)

    def _publish_deferred(self) -> None:
        while self._deferred and not self._busy:
            try:
                self._deferred.pop(0)()
            except AembusError:
                log.exception("an activation from a signal handler failed")

    def _publish_late(self, pick: Callable[[], Sequence[Target]], job: Job, lane_class: int) -> int:
        def attempt() -> int:
            return self._publish(pick, job, lane_class)

        jobs = attempt()
        if jobs == FULL:
            what = "an activation in a signal handler"
            jobs = self._activate_when_room(attempt, pick, lane_class, DEFERRED_TIMEOUT_S, what)
        return jobs

    def _pick(self, route: Route, job: Job, keyed: bool) -> Sequence[Target]:
        if route.generation != self.routing.generation:
            route.queue = self.routing.queue(route.point)
            route.generation = self.routing.generation
        if keyed:
            return route.queue.pick(job.key_hash)
        route.turn += 1
        return route.queue.pick(route.turn)

    def _one(self, target: Target) -> Sequence[Target]:
        return (target,) if target.slot in self.routing.members else ()

    # --- the bus changes ------------------------------------------------------------------------

    def _refresh(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.routing = Routing(*self._reader.read())
        for slot, peer in list(self._peers.items()):
            member = self.routing.members.get(slot)
            if member is None or member.inbox_id != peer.inbox_id:
                del self._peers[slot]
                peer.close()

    def refresh(self) -> Routing:
        """Return the current routing, reading the registry if its generation has changed."""
        with self._lock:
            if self._words[self._generation_word] != self.routing.generation:
                self._refresh()
            return self.routing

    def pick(self, route: Route, job: Job, *, keyed: bool) -> Sequence[Target]:
        """Return the events that an activation would wake now, for a caller that sends to each."""
        self.refresh()
        return self._pick(route, job, keyed)

    def want_room(self, slot: int, wanted: bool) -> None:
        """Raise or lower the room flag in our lane to `slot`, for a caller that does not wait."""
        peer = self._peers.get(slot)
        if peer is not None:
            peer.lane(layout.CLASS_NORMAL).want_room(wanted)

    def pass_generation(self) -> None:
        """Return when no activation that began under an older generation is still running."""
        with self._lock:
            pass

    def refuse(self, error: AembusError) -> None:
        """Make every later activation raise `error`; costs the others nothing."""
        self._refusal = error
        self.routing.generation = NEVER
        # The registry may be unmapped from now on: look at a word of our own instead.
        self._words = [0] * (self._generation_word + 1)

    def _open_peer(self, slot: int) -> Peer:
        member = self.routing.members[slot]
        peer = Peer(self._bus, self._nonce, slot, member.inbox_id, self._slot, self._incarnation)
        self._peers[slot] = peer
        return peer

    def ring(self, slot: int) -> None:
        """Post a member's doorbell, if it sleeps, for a reason other than a job of ours."""
        with contextlib.suppress(AembusError, KeyError), self._lock:
            fence()
            (self._peers.get(slot) or self._open_peer(slot)).ring()

    # --- waiting for room -----------------------------------------------------------------------

    def _activate_when_room(
        self,
        attempt: Callable[[], int],
        pick: Callable[[], Sequence[Target]],
        lane_class: int,
        timeout_s: float,
        what: str,
    ) -> int:
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                full = [
                    (t.slot, self._peers[t.slot].lane(lane_class))
                    for t in pick()
                    if t.slot in self._peers
                ]
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise InboxFull(
                    "no room within the time-out, nothing was sent; wait longer (timeout=), add "
                    "workers, or give the supervisor larger lanes (lane_bytes), "
                    f"for={what!r}, timeout_s={timeout_s}, slots={[slot for slot, _ in full]}"
                )
            with self._flags_raised(full, lane_class):
                self._wait(_room_in([lane for _, lane in full]), left_s)
                if (jobs := attempt()) != FULL:
                    return jobs

    @contextlib.contextmanager
    def _flags_raised(
        self, full: list[tuple[int, LaneProducer]], lane_class: int
    ) -> Iterator[None]:
        # Threads may wait for the same lane: the last one lowers its flag.
        waiting = self._waiting_for_room
        for slot, lane in full:
            key = (slot, lane_class)
            waiting[key] = waiting.get(key, 0) + 1
            lane.want_room(True)
        fence()  # SYNC POINT: pairs with the consumer's store of head and load of the flag
        try:
            yield
        finally:
            for slot, lane in full:
                key = (slot, lane_class)
                waiting[key] -= 1
                if not waiting[key]:
                    lane.want_room(False)

    def forget_parent(self, error: AembusError) -> None:
        """Make this copy, in a forked child, refuse everything; the parent's lanes stay as is."""
        self._lock = threading.RLock()  # a thread of the parent may have held the old one
        self.refuse(error)

    def close(self) -> None:
        """Let go of every peer; activations raise BusClosed from now on."""
        with self._lock:
            if not isinstance(self._refusal, BusBroken):
                self.refuse(BusClosed("this bus object was closed"))
            for peer in self._peers.values():
                peer.close()
            self._peers.clear()


def _room_in(lanes: list[LaneProducer]) -> Callable[[], bool]:
    return lambda: all(lane.has_room() for lane in lanes)


def _too_large(size_bytes: int, size_bytes_max: int) -> str:
    return (
        "a job may take half a lane; send less, or give the supervisor larger lanes "
        f"(lane_bytes), size={size_bytes}, max={size_bytes_max}"
    )
