"""The members that one process sends to: whose inboxes it has opened, and its lanes into them.

Written and read by one process, under its sender's gate.  An inbox is opened when something is
first sent to it, each lane likewise; it is let go of when the registry shows its owner no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aembus.routing import Member, Target
from aembus.shm.lanes import LaneProducer
from aembus.shm.peer import Peer


class Peers(dict[int, Peer]):
    """Who was sent to, by slot: ``peers[slot]`` opens the inbox at first use.

    Args:
        bus, nonce, slot, incarnation: of the process that sends.
        members: returns who is on the bus now, by slot.

    lanes_opened: how many lanes were, so far.
    """

    def __init__(
        self,
        bus: str,
        nonce: str,
        slot: int,
        incarnation: int,
        members: Callable[[], Mapping[int, Member]],
    ) -> None:
        super().__init__()
        self._bus, self._nonce = bus, nonce
        self._slot, self._incarnation = slot, incarnation
        self._members = members
        self.lanes_opened = 0

    def __missing__(self, slot: int) -> Peer:
        inbox_id = self._members()[slot].inbox_id
        peer = Peer(self._bus, self._nonce, slot, inbox_id, self._slot, self._incarnation)
        first = self.setdefault(slot, peer)
        if first is not peer:  # a signal handler's delivery was here first
            peer.close()
        return first

    def open_lane(self, peer: Peer, lane_class: int) -> LaneProducer:
        """Open a lane that was not needed so far, and return it.  Raises OutOfSharedMemory."""
        lane = peer.lane(lane_class)
        self.lanes_opened += 1
        return lane

    def load(self, target: Target) -> tuple[bool, int]:
        """Return what to compare the members of a group by: the least is to get the next job."""
        # Of those without room for us none is the one to take, whoever filled them.
        peer = self[target.slot]
        lane = peer.open_lane(target.lane_class)
        return lane is not None and not lane.has_room(), peer.queued()

    def want_room(self, target: Target, wanted: bool) -> None:
        """Raise or lower the room flag in our lane to an event."""
        peer = self.get(target.slot)
        lane = peer.open_lane(target.lane_class) if peer is not None else None
        if lane is not None:
            lane.want_room(wanted)

    def count_dropped(self, target: Target) -> None:
        """Count a job that an event goes without."""
        peer = self.get(target.slot)
        if peer is not None:
            peer.lane(target.lane_class).count_dropped()

    def close_gone(self, members: Mapping[int, Member]) -> None:
        """Let go of the inboxes whose owners are not among `members`."""
        for slot, peer in list(self.items()):
            member = members.get(slot)
            if member is None or member.inbox_id != peer.inbox_id:
                del self[slot]
                peer.close()

    def close_all(self) -> None:
        """Let go of every inbox; what is sent to next is opened anew."""
        while self:
            self.popitem()[1].close()
