"""Waiting for room in the lanes of others: looking for a while first, asking for a post then.

Guarantees: whoever sleeps for room has raised its flag in each lane that it waits for before it
looked for the last time; the last thread of a process that waits for a lane lowers its flag.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from aembus.looking import Looking
from aembus.shm.doorbell import fence
from aembus.shm.lanes import LaneProducer
from aembus.shm.peer import Peer

LOOK_S: Final = 100e-6


class Wanted(NamedTuple):
    """A lane in which there is to be room."""

    slot: int
    lane_class: int
    lane: LaneProducer


class Awaited:
    """The lanes that one job waits for, and how far their owners had come.

    Args:
        full: lanes that are waited for, by whose they are and their class; they are open.
    """

    def __init__(self, full: Sequence[tuple[Peer, int]]) -> None:
        self._full = full
        self.lanes: list[Wanted] = [
            Wanted(peer.slot, lane_class, peer.lane(lane_class)) for peer, lane_class in full
        ]
        self._before = self._consumed()

    def _consumed(self) -> list[int]:
        return [peer.consumed(lane_class) for peer, lane_class in self._full]

    def has_come(self) -> bool:
        """Say whether each owner has gone on since, and half of each lane is free."""
        # Half a lane may be too little for a long job at the ring's end: that is why the owners
        # must have gone on, too, since before the attempt that was in vain.
        try:
            moved = not self._full or self._consumed() != self._before
        except ValueError:  # another thread closed a peer: its owner has left
            return True
        return moved and all(wanted.lane.has_room() for wanted in self.lanes)


class RoomWaiters:
    """Who in this process waits for room in which lane, and whether looking for it has paid."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], set[object]] = {}
        self._looking = Looking(LOOK_S)

    def look(self, has_come: Callable[[], bool]) -> bool:
        """Look for room for a moment; say whether it has come."""
        return self._looking.look(has_come)

    @contextlib.contextmanager
    def flags_raised(self, lanes: Sequence[Wanted]) -> Iterator[None]:
        """Have the owners of `lanes` post when there is room."""
        # Threads may wait for the same lane: the last one lowers its flag.
        me = object()
        try:
            for slot, lane_class, lane in lanes:
                self._waiting.setdefault((slot, lane_class), set()).add(me)
                lane.want_room(True)
            fence()  # SYNC POINT: pairs with the consumer's store of head and load of the flag
            yield
        finally:
            try:
                self._lower_flags(lanes, me)
            finally:  # again, if a signal handler raised in the middle
                self._lower_flags(lanes, me)

    def _lower_flags(self, lanes: Sequence[Wanted], me: object) -> None:
        for slot, lane_class, lane in lanes:
            waiting = self._waiting.setdefault((slot, lane_class), set())
            waiting.discard(me)
            if not waiting:
                lane.want_room(False)
