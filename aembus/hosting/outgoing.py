"""What services send: straight into a lane, or parked until its member has room.

A destination that is full never stops a service.  What cannot be written yet is parked for it, in
order, its room flag is raised, and each turn of the host tries it again; what is parked for a
member that has gone is routed anew.  Nothing here blocks.

Who parks too much is told by its source: a number that a service gets for what it reads from, a
connection for example.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from aembus.codec import encode
from aembus.codec import key_hash as hash_of_key
from aembus.errors import AembusError
from aembus.kept import Recent, WeakList
from aembus.numbers_route import NumbersRoute
from aembus.options import DROP
from aembus.picking import IN_TURN
from aembus.routes import Route
from aembus.routing import Routing, Target
from aembus.sender import FULL, Job, Sender
from aembus.services.parking import Parking
from aembus.shm import layout
from aembus.shm.lanes import plain_activate

log = logging.getLogger("aembus")

PARKED_ITEM_BYTES: Final = 512  # what a parked job takes beside its payload
PARKED_BYTES_MAX: Final = 1024 * 1024
MEMBER_WENT: Final = "its member went while it waited for room"


@dataclass(frozen=True, slots=True)
class Parked:
    """A job that waits for room; `point` where it may be routed anew if its target goes.

    repeats: see Host.activate.
    """

    target: Target
    job: Job
    point: str | None
    source: int
    repeats: bool = False


@final
class SourcePoint:
    """An activation point, as one source activates it: see services.base.SourcePoint."""

    __slots__ = ("_outgoing", "_route", "_source")

    def __init__(self, outgoing: Outgoing, route: Route, source: int) -> None:
        self._outgoing = outgoing
        self._route = route
        self._source = source

    @plain_activate
    def activate(self, *data: Any, key: bytes | None = None) -> int:
        """See services.base.SourcePoint."""
        hashed = None if key is None else hash_of_key(key)
        return self._outgoing.activate_route(self._route, encode(data), hashed, self._source)


class Outgoing:
    """The sending side of a host.

    Args:
        sender: this process's.
        on_lost: keeps a job that has nowhere to go, and why: its destination has gone, or no
            lane there can be opened.
        first_source: the number of the first source; the others follow.
    """

    def __init__(
        self, sender: Sender, on_lost: Callable[[Parked, str], None], first_source: int
    ) -> None:
        self._sender = sender
        self._on_lost = on_lost
        self._parking = Parking(PARKED_BYTES_MAX)
        self._routes: Recent[Route] = Recent()
        self._routes_in_use: WeakList[Route] = WeakList()  # these, and those of points of services
        self._sources = itertools.count(first_source)
        self._told = ""  # the last error that was logged

        self.congested: Callable[[int], bool] = self._parking.congested  # see Host

    def new_source(self) -> int:
        """See Host."""
        return next(self._sources)

    def point(self, name: str, source: int) -> SourcePoint:
        """See Host."""
        return SourcePoint(self, self._route(name), source)

    def _route(self, point: str) -> Route:
        route = self._routes.get(point)
        if route is None:
            route = self._sender.route(point)
            self._routes_in_use.add(route)
            self._routes.keep(point, route)
        return route

    def activate(
        self,
        point: str,
        payload: bytes,
        key_hash: int | None,
        source: int = 0,
        repeats: bool = False,
    ) -> int:
        """See Host."""
        return self.activate_route(self._route(point), payload, key_hash, source, repeats)

    def activate_route(
        self,
        route: Route,
        payload: bytes,
        key_hash: int | None,
        source: int,
        repeats: bool = False,
    ) -> int:
        """Do what `activate` does."""
        key_hash = IN_TURN if key_hash is None else key_hash
        publisher = route.publisher
        if publisher is not None and (jobs := publisher.publish(payload, key_hash)):
            return jobs
        job = Job(payload, key_hash)
        targets = self._sender.pick(route, job)
        for target in targets:
            self._send_or_park(Parked(target, job, route.point, source, repeats))
        if route.queue.taps:
            self._sender.send_copies(route, job)
        # What goes the short way would overtake what is parked.
        if route.lanes_opened != self._sender.peers.lanes_opened and not len(self._parking):
            self._sender.routes.make_publisher(route)
        return len(targets)

    def send(self, target: Target, job: Job, source: int) -> int:
        """See Host."""
        return self._send_or_park(Parked(target, job, None, source))

    def numbers_route(self, slot: int, kind: int, addressee: int) -> NumbersRoute:
        """See Host."""
        return NumbersRoute(self._sender, Target(slot, 0), kind, addressee=addressee)

    def want_room(self, slot: int, wanted: bool) -> None:
        """See Host."""
        target = Target(slot, 0)
        if wanted or not self._parking.is_parked(_lane_of(target)):
            self._sender.peers.want_room(target, wanted)

    def send_now(self, target: Target, job: Job) -> int:
        """Send without parking; return 1, or 0 if the member is not on the bus, or FULL."""
        if self._parking.is_parked(_lane_of(target)):
            return FULL  # behind those
        return self._try_send(target, job)

    def _try_send(self, target: Target, job: Job) -> int:
        try:
            return self._sender.try_send(target, job)
        except OSError as error:  # no descriptor, or no memory, to open its inbox now
            if str(error) != self._told:
                self._told = str(error)
                log.error("a job to slot %d has to wait: %s", target.slot, error)
            return FULL

    def _send_or_park(self, parked: Parked) -> int:
        try:
            return self._try_send_or_park(parked)
        except AembusError as error:  # the turn goes on: the others must not wait for this one
            log.error("a job to slot %d becomes a dead letter: %s", parked.target.slot, error)
            self._on_lost(parked, f"{type(error).__name__}: {error}")
            return 1

    def _try_send_or_park(self, parked: Parked) -> int:
        target, lane = parked.target, _lane_of(parked.target)
        # What was sent to one event was counted before, and is not to be dropped.
        drops = target.full == DROP and parked.point is not None
        if not self._parking.is_parked(lane):
            sent = self._try_send(target, parked.job)
            if sent != FULL:
                return sent
            if not drops:
                self._sender.peers.want_room(target, True)
                sent = self._try_send(target, parked.job)  # room that came meanwhile
                if sent != FULL:
                    return sent
        if drops:
            self._sender.peers.count_dropped(target)
            return 0
        if parked.repeats and self._parking.waits_for(lane, parked.source):
            return 0
        if not len(self._parking):
            for route in self._routes_in_use:
                route.publisher, route.lanes_opened = None, 0
        size_bytes = len(parked.job.payload) + PARKED_ITEM_BYTES
        self._parking.park(lane, parked, size_bytes, parked.source)
        return 1

    def flush(self) -> set[int]:
        """Try again what is parked; return the sources that may go on now."""
        resumed: set[int] = set()
        for lane in self._parking.slots():
            resumed.update(self._parking.flush(lane, self._try_parked))
            if not self._parking.is_parked(lane):
                self._sender.peers.want_room(_target_of(lane), False)
        return resumed

    def _try_parked(self, parked: Parked) -> bool:
        try:
            sent = self._try_send(parked.target, parked.job)
        except AembusError as error:  # who has the slot now cannot be reached
            self._on_lost(parked, f"{type(error).__name__}: {error}")
            return True
        if sent == 0:
            self._route_anew(parked)
        return sent != FULL

    def _route_anew(self, parked: Parked) -> None:
        if parked.point is None:
            if parked.job.kind in layout.KINDS_FOR_EVENTS:
                self._on_lost(parked, MEMBER_WENT)
            return  # else an expiry, for a process that is no more
        key_hash = None if parked.job.key_hash == IN_TURN else parked.job.key_hash
        payload, source = parked.job.payload, parked.source
        if not self.activate(parked.point, payload, key_hash, source, parked.repeats):
            self._on_lost(parked, MEMBER_WENT)

    def route_anew_where_gone(self) -> bool:
        """Route anew what is parked for members that have gone; say whether there was any.

        The next flush names the sources that they held back.
        """
        members = self.routing().members
        gone = [lane for lane in self._parking.slots() if _target_of(lane).slot not in members]
        for lane in gone:
            for parked in self._parking.take_all(lane):
                self._route_anew(parked)
        return bool(gone)

    def routing(self) -> Routing:
        """Return who is on the bus now."""
        return self._sender.refresh()

    def waits(self) -> bool:
        """Say whether anything is parked, or a source waits to be told of room."""
        return self._parking.waits()

    def __len__(self) -> int:
        """Return how many jobs are parked."""
        return len(self._parking)

    def forget_source(self, source: int) -> None:
        """See Host."""
        self._parking.forget_source(source)


# What is parked is kept apart by lane: an urgent job does not wait behind the others.
def _lane_of(target: Target) -> int:
    return layout.lane_index(layout.SLOTS_MAX, target.lane_class, target.slot)


def _target_of(lane: int) -> Target:
    lane_class, slot = divmod(lane, layout.SLOTS_MAX)
    return Target(slot, 0, lane_class)
