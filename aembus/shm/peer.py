"""A producer's view of another member's inbox: its own lanes there, and the other's doorbell.

A lane's memory is reserved when it is first opened, so memory grows with the pairs of members
that talk, and too little of it is an error at that call.  A producer that takes over a slot goes
on behind the `tail` that the slot's last owner left.
"""

from __future__ import annotations

from typing import Final

from aembus.errors import CorruptSegment
from aembus.shm import layout
from aembus.shm.doorbell import Ringer
from aembus.shm.inbox import inbox_role
from aembus.shm.lane import CorruptLane
from aembus.shm.lanes import LaneProducer
from aembus.shm.names import shared_name
from aembus.shm.segment import Segment

_SLEEPING_WORD: Final = layout.SLEEPING // layout.WORD
_HEAD: Final = layout.LANE_HEAD // layout.WORD
_TAIL: Final = layout.LANE_TAIL // layout.WORD


class Peer:
    """The other member, as one producer sees it.

    Args:
        bus, nonce: which bus; both are part of the shared names.
        slot, inbox_id: whose inbox.
        own_slot, own_incarnation: who writes.

    Raises: the OpenError family.
    """

    def __init__(
        self, bus: str, nonce: str, slot: int, inbox_id: int, own_slot: int, own_incarnation: int
    ) -> None:
        self.slot = slot
        self.inbox_id = inbox_id
        self._own_slot, self._own_incarnation = own_slot, own_incarnation
        name = shared_name(bus, nonce, inbox_role(inbox_id))
        self._segment = Segment.open(name, layout.INBOX_MAGIC)
        self._words = self._segment.words
        self._ringer = Ringer(bus, nonce, inbox_id)
        self._lanes: list[LaneProducer | None] = [None] * layout.LANE_CLASSES
        self._doors = b""
        self._controls: list[int] = []  # of the lanes for jobs whose door is open, as word numbers

    @property
    def memory(self) -> memoryview:
        """The other's inbox segment."""
        return self._segment.memory

    def open_lane(self, lane_class: int) -> LaneProducer | None:
        """Return the lane of this class if it is open already."""
        return self._lanes[lane_class]

    def lane(self, lane_class: int) -> LaneProducer:
        """Return the lane of this class, opening it at first use.  Raises OutOfSharedMemory."""
        lane = self._lanes[lane_class]
        if lane is None:
            lane = self._lanes[lane_class] = self._open_lane(lane_class)
        return lane

    def _open_lane(self, lane_class: int) -> LaneProducer:
        segment, slots, lane_bytes = self._segment, self._segment.slots, self._segment.lane_bytes
        index = layout.lane_index(slots, lane_class, self._own_slot)
        ring = layout.ring_offset(slots, lane_bytes, index)
        door = layout.DOORS + index
        if segment.memory[door] != layout.DOOR_OPEN:
            segment.reserve(ring, lane_bytes)
        try:
            lane = LaneProducer(
                segment.memory,
                layout.lane_control_offset(slots, index),
                ring,
                lane_bytes,
                self._own_slot,
                self._own_incarnation,
            )
        except CorruptLane as error:
            raise CorruptSegment(f"{error}, name={segment.name}, lane={index}") from error
        segment.memory[door] = layout.DOOR_OPEN  # SYNC POINT: the owner looks into this lane now
        return lane

    def consumed(self, lane_class: int) -> int:
        """Return how far the owner has read our lane of this class; -1 if we closed it."""
        slots = self._segment.slots
        control = layout.lane_control_offset(
            slots, layout.lane_index(slots, lane_class, self._own_slot)
        )
        return int(self._words[(control + layout.LANE_HEAD) // layout.WORD])

    def queued(self) -> int:
        """Return how many jobs are in the inbox, whoever sent them: waiting, in hand or held.

        It looks at each open lane: a fraction of a microsecond for each producer.
        """
        segment, slots = self._segment, self._segment.slots
        doors = segment.memory[layout.DOORS : layout.DOORS + layout.CLASS_REPLY * slots].tobytes()
        if doors != self._doors:
            self._controls = [
                layout.lane_control_offset(slots, lane) // layout.WORD
                for lane, door in enumerate(doors)
                if door == layout.DOOR_OPEN
            ]
            self._doors = doors
        words, queued = self._words, 0
        for control in self._controls:
            head = words[control + _HEAD]  # head first: it never overtakes tail
            tail = words[control + _TAIL]
            queued += (tail >> layout.CURSOR_OFFSET_BITS) - (head >> layout.CURSOR_OFFSET_BITS)
        return queued

    def ring(self) -> None:
        """Post the doorbell if its owner sleeps.  A fence must lie behind the last `commit`."""
        try:
            sleeping = self._words[_SLEEPING_WORD]
        except ValueError:  # another thread has closed this peer: its owner has left
            return
        if sleeping:
            self._ringer.ring(sleeping)

    def close(self) -> None:
        """Let go of the inbox in this process."""
        for lane in self._lanes:
            if lane is not None:
                lane.close()
        self._lanes = [None] * layout.LANE_CLASSES
        self._ringer.close()
        self._segment.close()
