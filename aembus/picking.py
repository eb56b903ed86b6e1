"""Whom a job concerns: the events of a point that one activation wakes, or one member.

Asked by who sends, under its gate, so that nobody closes an inbox that is looked at.  A route keeps
its point's wait queue and its turn; both are written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from aembus.peers import Peers
from aembus.routes import Route
from aembus.routing import Routing, Target

IN_TURN: Final = -1  # in place of a key's hash: the next member of each group

_T = TypeVar("_T")

# Says whom a job of one subject (a route, a target) concerns, by the hash of its key; for an
# activation without one, takes a turn.
Pick = Callable[[_T, int], Sequence[Target]]


class Picker:
    """Picks by the routing of the moment.

    Args:
        routing: returns it.
        peers: whose inboxes are open; says who of a group has the least to do.
    """

    def __init__(self, routing: Callable[[], Routing], peers: Peers) -> None:
        self._routing = routing
        self._peers = peers

    def next(self, route: Route, key_hash: int) -> Sequence[Target]:
        """Return the events that the next activation wakes; without a key, take a turn."""
        if key_hash == IN_TURN:
            route.turn += 1
            return self.chosen((route, route.turn), IN_TURN)
        return self.chosen((route, key_hash), key_hash)

    def chosen(self, subject: tuple[Route, int], key_hash: int) -> Sequence[Target]:
        """Return the events that a number chooses at a route; no turn is taken."""
        route, number = subject
        routing = self._routing()
        if route.generation != routing.generation:
            route.queue = routing.queue(route.point)
            route.generation = routing.generation
        return route.queue.pick(number, self._least_loaded if key_hash == IN_TURN else None)

    def _least_loaded(self, group: Sequence[Target], chooser: int) -> Target:
        begin = chooser % len(group)
        return min((*group[begin:], *group[:begin]), key=self._peers.load)

    def one(self, target: Target, key_hash: int) -> Sequence[Target]:
        """Return a target, or nobody if it is not on the bus."""
        return (target,) if target.slot in self._routing().members else ()

    def one_process(self, subject: tuple[int, Target], key_hash: int) -> Sequence[Target]:
        """Return a target, or nobody if another process is that member by now."""
        incarnation, target = subject
        member = self._routing().members.get(target.slot)
        return (target,) if member is not None and member.incarnation == incarnation else ()
