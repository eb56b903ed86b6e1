"""The routes of one sender: each point's wait queue as last seen, and the short way made for it.

Written and read by one process, under its sender's gate.  A short way holds under one generation,
for the lanes that were open when it was made; what it cannot do the sender does itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Final, Protocol

from aembus.gate import Gate
from aembus.kept import WeakList
from aembus.options import DROP, WAIT
from aembus.peers import Peers
from aembus.publisher import Destination, Publisher
from aembus.routing import EMPTY, Routing, Target, WaitQueue
from aembus.shm import layout
from aembus.shm.lanes import LaneConsumer, LaneProducer
from aembus.shm.lanes import Publisher as CPublisher
from aembus.shm.peer import Peer
from aembus.shm.registry import RegistryReader

# Lane, peer, its memory, where `sleeping` is in that, event's id, whether it goes without.
_Destination = tuple[LaneProducer | None, Peer | None, memoryview | None, int, int, bool]

NEVER: Final = -1  # a generation that no registry has: makes the next activation look closer
UNSEEN: Final = -2  # of a route that has not looked yet: another one, or it would not look at all


class Route:
    """A point's wait queue as this process last saw it, and whose turn it is.

    publisher: the short way, for the lanes that are open; `lanes_opened` says how many were when
        it was made.
    """

    __slots__ = (
        *("__weakref__", "generation", "lanes_opened", "point", "publisher", "queue", "turn"),
    )

    def __init__(self, point: str, turn: int) -> None:
        self.point = point
        self.queue: WaitQueue = EMPTY
        self.generation = UNSEEN
        self.turn = turn
        self.publisher: Publisher | CPublisher | None = None
        self.lanes_opened = 0


class CallWay:
    """How calls at one point go: by its route, and the short way for those to one event.

    targets: to whom its publisher sends them.
    reply_lanes: of each of those the lane by which it answers; None: not known yet.
    """

    __slots__ = ("__weakref__", "lanes_opened", "publisher", "reply_lanes", "route", "targets")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.publisher: CPublisher | None = None
        self.lanes_opened = 0
        self.targets: Sequence[Target] = ()
        self.reply_lanes: list[LaneConsumer | None] = []


class ShortWay(Protocol):
    """Who keeps a publisher that must not be used any more once the bus has changed."""

    publisher: CPublisher | None
    lanes_opened: int


class Routes:
    """All routes and short ways of one sender.

    Args:
        gate, reader: the sender's.
        peers: the sender's.
        routing: returns what the sender goes by now.

    answer_publishers: the short ways of answers to calls, by the caller's incarnation.
    """

    def __init__(
        self,
        gate: Gate,
        reader: RegistryReader,
        peers: Peers,
        routing: Callable[[], Routing],
    ) -> None:
        self._gate = gate
        self._reader = reader
        self._peers = peers
        self._routing = routing
        self._ways: WeakList[Route | ShortWay] = WeakList()
        self.answer_publishers: dict[int, CPublisher] = {}
        self._refused = False

    def add(self, point: str, turn: int) -> Route:
        """Return a fresh route, which goes with who has it.

        Args:
            turn: where it begins with activations without a key.
        """
        route = Route(point, turn)
        self._ways.add(route)
        return route

    def make_publisher(self, route: Route) -> None:
        """Make the short way for a route's next activations, if there can be one.

        What of its lanes is not open yet stays None, and an activation that needs one comes by
        here again.
        """
        with self._gate.alone() as alone:
            if not alone or not self._is_current(route):
                return
            _drop(route)
            long_way = route.queue.goes_by_load or route.queue.taps
            groups = [] if long_way else route.queue.groups()
            if groups and CPublisher is not None:
                route.publisher = CPublisher(
                    self._reader.memory,
                    layout.GENERATION,
                    route.generation,
                    route.turn,
                    [[self._destination(target) for target in group] for group in groups],
                )
            elif len(groups) == 1:
                destinations = [self._plain_destination(target) for target in groups[0]]
                route.publisher = Publisher(
                    self._gate, self._reader.words, route.generation, route.turn, destinations
                )
            route.lanes_opened = self._peers.lanes_opened
            self._drop_if_too_late(route)

    def add_short_way(self, way: ShortWay) -> None:
        """Take its publisher from `way` whenever the bus changes, until `remove_short_way`."""
        self._ways.add(way)

    def remove_short_way(self, way: ShortWay) -> None:
        """Take back `add_short_way`.  Idempotent."""
        self._ways.remove(way)

    def make_short_way(
        self, way: ShortWay, target: Target, kind: int, flags: int, addressee: int
    ) -> None:
        """Give `way` a publisher of such records to one member, if its lane is open."""
        if way.lanes_opened == self._peers.lanes_opened or CPublisher is None:
            return
        with self._gate.alone() as alone:
            routing = self._routing()
            if not alone or target.slot not in routing.members or routing.generation == NEVER:
                return
            way.publisher = CPublisher(
                *(self._reader.memory, layout.GENERATION, routing.generation, 0),
                *([[self._destination(target)]], kind, flags, addressee),
            )
            way.lanes_opened = self._peers.lanes_opened
            self._drop_if_too_late(way)

    def make_call_publisher(self, way: CallWay, answering: Container[int], answerers: int) -> None:
        """Make the short way of the calls at a point, if one event is concerned by each.

        Args:
            answering: the slots that have memory for their answers here.
            answerers: how many those are.
        """
        made_of = self._peers.lanes_opened + answerers  # neither gets less
        if way.lanes_opened == made_of or CPublisher is None:
            return
        with self._gate.alone() as alone:
            route = way.route
            queue = route.queue
            if not alone or not self._is_current(route):
                return
            groups = [] if queue.goes_by_load or queue.taps else queue.groups()
            if len(groups) != 1:
                return
            way.targets = [target._replace(full=WAIT) for target in groups[0]]
            way.reply_lanes = [None] * len(way.targets)
            way.publisher = CPublisher(  # last: who sees it finds the others that belong to it
                *(self._reader.memory, layout.GENERATION, route.generation, route.turn),
                [[self._destination_of_calls(t, answering) for t in way.targets]],
                *(layout.KIND_CALL, layout.FLAG_WANTS_REPLY),
            )
            way.lanes_opened = made_of
            self._drop_if_too_late(way)

    def make_answer_publisher(self, target: Target, incarnation: int) -> None:
        """Make the short way of answers to the member at `target`, if it is still that one."""
        if incarnation in self.answer_publishers or CPublisher is None:
            return
        with self._gate.alone() as alone:
            routing = self._routing()
            member = routing.members.get(target.slot)
            if not alone or member is None or member.incarnation != incarnation:
                return
            if routing.generation != NEVER:
                self.answer_publishers[incarnation] = CPublisher(
                    *(self._reader.memory, layout.GENERATION, routing.generation, 0),
                    *([[self._destination(target)]], layout.KIND_REPLY),
                )
                if self._refused or self._gate.deferred:
                    self.answer_publishers.pop(incarnation, None)

    def _plain_destination(self, target: Target) -> Destination | None:
        lane, peer, *_ = self._destination(target)
        return None if lane is None or peer is None else Destination(lane, peer, target.event_id)

    def _destination(self, target: Target) -> _Destination:
        peer = self._peers.get(target.slot)
        lane = peer.open_lane(target.lane_class) if peer is not None else None
        drops = target.full == DROP
        if peer is None or lane is None:
            return None, None, None, 0, target.event_id, drops
        return lane, peer, peer.memory, layout.SLEEPING, target.event_id, drops

    def _destination_of_calls(self, target: Target, answering: Container[int]) -> _Destination:
        if target.slot in answering:
            return self._destination(target)
        return None, None, None, 0, target.event_id, False

    def _is_current(self, route: Route) -> bool:
        return route.generation == self._routing().generation != NEVER

    def _drop_if_too_late(self, way: Route | ShortWay) -> None:
        # Another thread refuses everything, without the gate; or it would overtake what a signal
        # handler has put aside.
        if self._refused or self._gate.deferred:
            _drop(way)

    def refuse(self) -> None:
        """Let every activation go the long way from now on, whatever another thread makes now."""
        self._refused = True
        self.drop_publishers()

    def drop_publishers(self) -> None:
        """Let the next activations go the long way."""
        for way in self._ways:
            _drop(way)
        self.answer_publishers.clear()


def _drop(way: Route | ShortWay) -> None:
    publisher, way.publisher = way.publisher, None
    way.lanes_opened = 0
    if isinstance(publisher, Publisher):  # the one in C looks whether its lanes are open
        publisher.drop()
