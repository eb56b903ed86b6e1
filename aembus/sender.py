"""The writing side of a member: its lanes into everybody's inbox.

One per process.  All threads of the process publish through it, one at a time, under one lock; a
lane has one producer, so room that was seen can only grow until it is used.  That makes fan-out
all or nothing: room is claimed in every lane, then every claim is committed.

Guarantees, also when a signal handler raises (Ctrl-C) or activates in the middle:

- a fan-out is published to all or to none;
- a job that is visible is announced: the doorbells are posted on every way out;
- an activation from inside another one is put aside and published right after it.

All or none are those that the registrations' `full` leaves: one that drops goes without if its lane
is full, and is counted there; one that fails makes the activation fail at once.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from aembus.errors import AembusError, BusBroken, BusClosed, InboxFull
from aembus.gate import Decision, Deferred, Gate
from aembus.options import DROP, FAIL, WAIT
from aembus.peers import Peers
from aembus.picking import IN_TURN, Pick, Picker
from aembus.refusals import deadline_after, no_room, too_large
from aembus.room import Awaited, RoomWaiters
from aembus.routes import NEVER, Route, Routes
from aembus.routing import Routing, Target
from aembus.shm import layout
from aembus.shm.doorbell import fence
from aembus.shm.peer import Peer
from aembus.shm.registry import RegistryReader

log = logging.getLogger("aembus")

FULL: Final = -1
FAILS: Final = -2  # full, and a registration says that nobody is to wait for it
LOOK_AGAIN_S: Final = 0.1  # meanwhile another member may have become the least loaded
DEFERRED_TIMEOUT_S: Final = 1.0
LOOK_S: Final = 0.05  # between two looks whether all activations are held back


_T = TypeVar("_T")


class Job(NamedTuple):
    """What is written into a lane beside the addressee: see `layout` for the fields."""

    payload: bytes
    key_hash: int = IN_TURN
    kind: int = layout.KIND_JOB
    flags: int = 0
    deadline_ns: int = 0
    reply_id: int = 0
    addressee: int = 0


class Sender:
    """Publishes jobs for one member.

    Args:
        bus, nonce, slot, incarnation: who this member is.
        reader: the bus's registry.
        wait: how this member waits: ``wait(ready, timeout_s)``, see Inbox.wait.
        clock: by which it waits so long at most.
    """

    def __init__(
        self,
        bus: str,
        nonce: str,
        slot: int,
        incarnation: int,
        reader: RegistryReader,
        wait: Callable[[Callable[[], bool], float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._slot = slot
        self._reader = reader
        self._wait = wait
        self._words: Sequence[int] | memoryview = reader.words
        self._generation_word = reader.generation_word
        self._gate = Gate()
        self.peers = Peers(bus, nonce, slot, incarnation, lambda: self.routing.members)
        self._picker = Picker(lambda: self.routing, self.peers)
        self._refusal: AembusError | None = None
        self._held_back = False
        self._room_waiters = RoomWaiters()
        self.routes = Routes(self._gate, reader, self.peers, lambda: self.routing)
        self.routing = Routing(*reader.read())

    # --- the public verbs -----------------------------------------------------------------------

    def route(self, point: str) -> Route:
        """Return a fresh route for `activate`; each activation point keeps one."""
        return self.routes.add(point, self._slot)

    def try_activate(self, route: Route, payload: bytes, key_hash: int) -> int:
        """Wake the events concerned; return how many jobs that made.

        FULL and FAILS, less than 0: none was made, since a lane is full; with FAILS there is one
        that nobody is to wait for.

        Args:
            route: from `route`.
            payload: the encoded data.
            key_hash: picks the member of each group; IN_TURN for the next one.

        Raises: BusBroken, BusClosed, ForkedBusError, JobTooLarge, OutOfSharedMemory.
        """
        publisher = route.publisher
        if publisher is not None:
            jobs = publisher.publish(payload, key_hash)
            if jobs:
                return jobs
        job = Job(payload, key_hash)
        jobs = self._copied(route, job, self._publish(self._picker.next, route, job))
        if route.lanes_opened != self.peers.lanes_opened:
            self.routes.make_publisher(route)
        return jobs

    def activate(self, route: Route, payload: bytes, key_hash: int, timeout_s: float) -> int:
        """Like `try_activate`, but wait up to `timeout_s` for room, then raise InboxFull."""
        return self.activate_with(route, Job(payload, key_hash), timeout_s)

    def try_activate_with(self, route: Route, job: Job) -> int:
        """Like `try_activate`, for a job that may have more than a payload and a key."""
        if job.kind == layout.KIND_JOB:
            return self.try_activate(route, job.payload, job.key_hash)
        return self._copied(route, job, self._publish(self._picker.next, route, job))

    def try_activate_chosen(self, route: Route, chosen: int, job: Job) -> int:
        """Like `try_activate`, but with no turn taken: `chosen` picks the member of each group."""
        jobs = self._publish(self._picker.chosen, (route, chosen), job)
        return self._copied(route, job, jobs)

    def chosen(self, route: Route, chosen: int, job: Job) -> Sequence[Target]:
        """Return the events that `try_activate_chosen` would wake."""
        with self._gate.lock:  # nobody closes a peer that is looked at
            return self._picker.chosen((route, chosen), job.key_hash)

    def activate_with(self, route: Route, job: Job, timeout_s: float) -> int:
        """Like `activate`, for a job with more than a payload and a key."""
        jobs = self.try_activate_with(route, job)
        return jobs if jobs >= 0 else self._wait_with(route, job, jobs, timeout_s)

    def _wait_with(self, route: Route, job: Job, refused: int, timeout_s: float) -> int:
        # Whoever is in turn stays so: who is waited for must be who is sent to.
        chosen = route.turn if job.key_hash == IN_TURN else job.key_hash
        if refused == FAILS:
            timeout_s = 0.0
        jobs = self._publish_when_room(
            self._picker.chosen, (route, chosen), job, timeout_s, route.point
        )
        return self._copied(route, job, jobs)

    def _copied(self, route: Route, job: Job, jobs: int) -> int:
        if route.queue.taps and jobs >= 0:
            self.send_copies(route, job)
        return jobs

    def send_copies(self, route: Route, job: Job) -> None:
        """Give the taps of a point a copy of a job each, as far as they have room for it.

        Whatever goes wrong with one is no concern of whoever activates.
        """
        for target in route.queue.taps:
            try:
                self._publish(self._picker.one, target, Job(job.payload, job.key_hash))
            except AembusError as error:
                log.debug("a tap of %r gets no copy: %s", route.point, error)

    def try_send(self, target: Target, job: Job) -> int:
        """Send to one member; return 1, or 0 if it is not on the bus, or FULL.

        What its event says about a full lane is for activations.
        """
        if target.full != WAIT:
            target = target._replace(full=WAIT)
        return self._publish(self._picker.one, target, job)

    def try_send_to(self, incarnation: int, target: Target, job: Job) -> int:
        """Like `try_send`, but to that process alone; 0 if another one is the member by now."""
        return self._publish(self._picker.one_process, (incarnation, target), job)

    def send(self, target: Target, job: Job, timeout_s: float, what: str) -> int:
        """Like `try_send`, but wait up to `timeout_s` for room, then raise InboxFull.

        There is no wait for an event that nobody is to wait for.
        """
        jobs = self.try_send(target, job)
        if jobs == FULL:
            if target.full != WAIT:
                target, timeout_s = target._replace(full=WAIT), 0.0
            jobs = self._publish_when_room(self._picker.one, target, job, timeout_s, what)
        return jobs

    # --- publishing -----------------------------------------------------------------------------

    def _publish(
        self,
        pick: Pick[_T],
        subject: _T,
        job: Job,
    ) -> int:
        if self._gate.deferred:  # what a signal handler activated before comes first
            self._gate.publish_deferred()
        try:
            return self._publish_now(pick, subject, job)
        finally:
            if self._gate.deferred:
                try:
                    self._gate.publish_deferred()
                finally:  # again, if a signal handler raised in the middle
                    self._gate.publish_deferred()

    def _publish_now(
        self,
        pick: Pick[_T],
        subject: _T,
        job: Job,
        deferred: Decision | None = None,
    ) -> int:
        decision = deferred or Decision()
        peers: list[Peer] = []
        try:
            with self._gate.lock:
                if decision.made:  # by a signal handler, just before
                    return 0
                # A signal handler inside an activation of the same thread?
                if self._gate.busy or (deferred is None and self._gate.first_deferred()):
                    targets = pick(subject, job.key_hash)
                    self._defer(pick, subject, job)
                    return len(targets)
                self._gate.busy = True
                try:
                    if self._words[self._generation_word] != self.routing.generation:
                        self._refresh()
                    targets = pick(subject, job.key_hash)
                    published = self._claim_and_commit(targets, job, peers, decision)
                finally:
                    self._gate.busy = False
            fence()  # releasing the lock is one too, but not if it is held further out
            for peer in peers:
                peer.ring()
        except BaseException:
            fence()
            for peer in peers:
                peer.ring()
            raise
        return published

    def _defer(self, pick: Pick[_T], subject: _T, job: Job) -> None:
        def publish(decision: Decision) -> None:
            jobs = self._publish_now(pick, subject, job, decision)
            if jobs < 0:
                what = "an activation in a signal handler"
                self._publish_when_room(pick, subject, job, DEFERRED_TIMEOUT_S, what, decision)

        self._gate.deferred.append(Deferred(publish))
        self.routes.drop_publishers()  # the short way would overtake it

    def _claim_and_commit(
        self,
        targets: Sequence[Target],
        job: Job,
        peers: list[Peer],
        decision: Decision,
    ) -> int:
        payload, key_hash, kind, flags, deadline_ns, reply_id, addressee = job
        if key_hash == IN_TURN:
            key_hash = 0
        now_ns = time.monotonic_ns()
        lanes = []
        dropping = []
        full = 0
        try:
            for slot, event_id, lane_class, if_full in targets:
                peer = self.peers[slot]
                lane = peer.open_lane(lane_class) or self.peers.open_lane(peer, lane_class)
                lanes.append(lane)
                if len(payload) > lane.payload_bytes_max:
                    raise too_large(len(payload), lane.payload_bytes_max)
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
                    if if_full == DROP:
                        dropping.append(lane)
                    else:
                        full = FAILS if if_full == FAIL else full or FULL
                    continue
                peers.append(peer)
            if full:
                for lane in lanes:
                    lane.abort()
                peers.clear()
                return full
            decision.made = True
            for lane in lanes:
                lane.commit()
            for lane in dropping:
                lane.count_dropped()
        except BaseException:
            for lane in lanes:
                if decision.made:
                    lane.commit()
                else:
                    lane.abort()
            raise
        return len(peers)

    # --- the bus changes ------------------------------------------------------------------------

    def _refresh(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.routes.drop_publishers()
        routing = Routing(*self._reader.read())
        self.peers.close_gone(routing.members)
        self.routing = routing  # last: if a signal handler raises before, all is done again

    def refresh(self) -> Routing:
        """Return the current routing, reading the registry if its generation has changed."""
        routing = self.routing
        try:
            if self._words[self._generation_word] == routing.generation:
                return routing
        except ValueError:  # another thread closes the bus
            pass
        with self._gate.alone() as alone:
            if alone and self._words[self._generation_word] != self.routing.generation:
                self._refresh()
            return self.routing

    def pick(self, route: Route, job: Job) -> Sequence[Target]:
        """Return the events that an activation would wake now, for a caller that sends to each."""
        self.refresh()
        with self._gate.lock:  # nobody closes a peer that is looked at
            return self._picker.next(route, job.key_hash)

    def try_pass_generation(self) -> bool:
        """Say whether no activation that began under an older generation is still running."""
        if not self._gate.lock.acquire(blocking=False):
            return self._held_back
        self._gate.lock.release()
        return True

    def pass_generation(self) -> None:
        """Return when no activation that began under an older generation is still running."""
        while not self._gate.lock.acquire(timeout=LOOK_S):
            if self._held_back:
                return
        self._gate.lock.release()

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Keep every activation of this process waiting; behind the block lanes are opened anew."""
        with self._gate.lock:
            self._held_back = True
            try:
                self.routes.drop_publishers()
                self.peers.close_all()  # publishers that are called all the same find that
                yield
            finally:
                self._held_back = False

    def refuse(self, error: AembusError) -> None:
        """Make every later activation raise `error`; costs the others nothing."""
        self._refusal = error
        self.routes.refuse()
        self.routing.generation = NEVER
        # The registry may be unmapped from now on: look at a word of our own instead.
        self._words = [0] * (self._generation_word + 1)

    @property
    def refuses(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._refusal is not None

    def ring(self, slot: int) -> None:
        """Post a member's doorbell, if it sleeps, for a reason other than a job of ours."""
        # OSError: no descriptor now; its sleep ends all the same.
        with contextlib.suppress(AembusError, KeyError, OSError), self._gate.lock:
            if slot not in self.peers:  # perhaps a member that we have not heard of
                self.refresh()
            fence()
            self.peers[slot].ring()

    # --- waiting for room -----------------------------------------------------------------------

    def _publish_when_room(
        self,
        pick: Pick[_T],
        subject: _T,
        job: Job,
        timeout_s: float,
        what: str,
        deferred: Decision | None = None,
    ) -> int:
        deadline = deadline_after(self.clock(), timeout_s)
        while True:
            with self._gate.lock:
                targets = pick(subject, job.key_hash)
                awaited = self._awaited(targets)
            if timeout_s > 0:
                self._room_waiters.look(awaited.has_come)
            with self._room_waiters.flags_raised(awaited.lanes):
                if deferred is None:
                    jobs = self._publish(pick, subject, job)
                else:
                    jobs = self._publish_now(pick, subject, job, deferred)
                if jobs >= 0:
                    return jobs
                left_s = deadline - self.clock()
                if jobs == FAILS or left_s <= 0:
                    raise self.no_room(what, timeout_s, targets)
                ready = lambda: self.refuses or awaited.has_come()  # noqa: B023, E731
                self._wait(ready, min(left_s, LOOK_AGAIN_S))

    def no_room(self, what: str, timeout_s: float, targets: Sequence[Target]) -> InboxFull:
        """Return what to raise where there is no room, see `aembus.refusals`."""
        return no_room(what, timeout_s, targets, self.routing.members)

    def _awaited(self, targets: Sequence[Target]) -> Awaited:
        # Call it with the lock.
        return Awaited(
            [
                (peer, target.lane_class)
                for target in targets
                if target.full != DROP
                and (peer := self.peers.get(target.slot))
                and peer.open_lane(target.lane_class)
            ]
        )

    @contextlib.contextmanager
    def room_wanted(self, targets: Sequence[Target]) -> Iterator[Callable[[], bool]]:
        """Have this process's doorbell posted when there is room in the lanes to `targets`.

        Yields what says whether it has come, for who waits by itself.  Try again inside of the
        block before that: it may have come just before.
        """
        with self._gate.lock:
            awaited = self._awaited(targets)
        with self._room_waiters.flags_raised(awaited.lanes):
            yield lambda: self.refuses or awaited.has_come()

    def is_publishing_here(self) -> bool:
        """Say whether the caller interrupts an activation of its own thread."""
        return self._gate.busy and self._gate.is_held_here()

    def put_off(self, action: Callable[[], object]) -> bool:
        """Do it right after the activation that the caller interrupts; False if it does not."""
        inside = self.is_publishing_here()
        if inside:
            self._gate.deferred.append(Deferred(lambda decision: action()))
            self.routes.drop_publishers()
        return inside

    def forget_parent(self, error: AembusError) -> None:
        """Make this copy, in a forked child, refuse everything; the parent's lanes stay as is."""
        self._gate = Gate()  # a thread of the parent may have held the old one's lock
        self.refuse(error)

    def close(self) -> None:
        """Let go of every peer; activations raise BusClosed from now on."""
        with self._gate.lock:
            if not isinstance(self._refusal, BusBroken):
                self.refuse(BusClosed("this bus object was closed"))
            self.peers.close_all()
