"""The writing end of a lane, in plain Python: see `aembus.shm.lane`."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Final

from aembus.shm import layout
from aembus.shm.lane_record import CorruptLane
from aembus.shm.layout import (
    CURSOR_COUNT_MAX,
    CURSOR_OFFSET_BITS,
    CURSOR_OFFSET_MASK,
    CURSOR_RECORD,
    KIND_JOB,
    KIND_PAD,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    STATE_DONE,
    STATE_NEW,
    UNIT,
    UNIT_SHIFT,
)

PLAIN_EVENTS_MAX: Final = 256  # of which a lane keeps what their records have in common
PACKERS_MAX: Final = 1024

# A plain record is packed by one call, header and payload.  What is the same in all of them, or in
# all for one event, is packed beforehand: from the kind to the state, from the deadline to the id.
_PLAIN_BEGIN: Final = struct.Struct("=BBHQ")
_PLAIN_MIDDLE: Final = struct.Struct("=QQIII")
_HEADER_AND_REST: Final = RECORD_HEADER_BYTES + UNIT - 1

_pack_header = RECORD_HEADER.pack_into
_packers: dict[int, Callable[..., None]] = {}  # by the length of a payload


def _make_packer(payload_bytes: int) -> Callable[..., None]:
    packer = struct.Struct(
        f"=I{_PLAIN_BEGIN.size}sQQ{_PLAIN_MIDDLE.size}sI{payload_bytes}s"
    ).pack_into
    if len(_packers) >= PACKERS_MAX:
        _packers.clear()
    _packers[payload_bytes] = packer
    return packer


class LaneProducer:
    """The writing end.  `claim` writes records behind `tail`; `commit` makes all of them visible.

    Args:
        memory: the whole inbox segment, as bytes.
        control: offset of the lane's control in `memory`, in bytes.
        ring: offset of the lane's ring, in bytes.
        ring_bytes: size of the ring, a power of two.
        slot, incarnation: who writes; both go into each record.
    """

    def __init__(
        self,
        memory: memoryview,
        control: int,
        ring: int,
        ring_bytes: int,
        slot: int,
        incarnation: int,
    ) -> None:
        self._memory = memory
        self._words = memory.cast("Q")
        self._tail_word = (control + layout.LANE_TAIL) // 8
        self._head_word = (control + layout.LANE_HEAD) // 8
        self._room_word = (control + layout.LANE_ROOM_WANTED) // 8
        self._dropped_word = (control + layout.LANE_DROPPED) // 8
        self._ring = ring
        self._capacity = ring_bytes >> UNIT_SHIFT
        self._slot = slot
        self._incarnation = incarnation
        self.payload_bytes_max = layout.payload_bytes_max(ring_bytes)
        self._tail: int = self._words[self._tail_word]
        if self._tail & CURSOR_OFFSET_MASK >= self._capacity:
            raise CorruptLane(f"tail is outside the ring, tail={self._tail:#x}")
        self._claimed = self._tail
        self._free = 0  # units known to be free behind _claimed; the truth may be more
        self._plain_room = 0  # units of `_free` that were set aside for `put`,
        self._plain_free = 0  # and how many of them it has not used
        self._plain_at = 0  # where in the memory, and after which record; small numbers, unlike
        self._plain_sequence = 0  # cursors, with which Python calculates slowly
        self._plain_begin = _PLAIN_BEGIN.pack(KIND_JOB, 0, slot, STATE_NEW)
        self._plain_middles: dict[int, bytes] = {}  # by the event's id

    def claim(
        self,
        payload: bytes,
        kind: int,
        flags: int,
        event_id: int,
        key_hash: int,
        deadline_ns: int,
        reply_id: int,
        addressee: int,
        activated_ns: int,
    ) -> bool:
        """Write a record behind those claimed before; nobody sees it until `commit`.

        Returns False, with nothing changed, if the ring has no room for it.
        The payload must not be larger than `payload_bytes_max`.
        """
        self._take_plain_room_back()
        length = len(payload)
        units = (length + RECORD_HEADER_BYTES + UNIT - 1) >> UNIT_SHIFT
        cursor = self._claimed
        offset = cursor & CURSOR_OFFSET_MASK
        to_end = self._capacity - offset
        need = units if units <= to_end else units + to_end
        if need > self._free and need > self._count_free():
            return False
        if units > to_end:
            self._write_pad(offset, to_end)
            cursor -= offset
            offset = 0
            to_end = self._capacity
        at = self._ring + (offset << UNIT_SHIFT)
        _pack_header(
            self._memory,
            at,
            length,
            kind,
            flags,
            self._slot,
            STATE_NEW,
            (cursor >> CURSOR_OFFSET_BITS) + 1,
            activated_ns,
            deadline_ns,
            reply_id,
            self._incarnation,
            addressee,
            event_id,
            key_hash,
        )
        at += RECORD_HEADER_BYTES
        self._memory[at : at + length] = payload
        self._free -= need
        if units == to_end:
            cursor -= offset + units  # the next record begins at the ring's start
        self._claimed = cursor + CURSOR_RECORD + units
        return True

    def put(self, payload: bytes, event_id: int, key_hash: int, activated_ns: int) -> bool:
        """Claim and commit one plain job in one go; False, and nothing done, if that is not plain.

        Plain: there is room, the record does not meet the ring's end, nothing is claimed.
        """
        length = len(payload)
        units = (length + _HEADER_AND_REST) >> UNIT_SHIFT
        free = self._plain_free - units
        if free < 0:
            free = self._look_for_plain_room(units) - units
            if free < 0:
                return False
        try:
            pack_record = _packers[length]
        except KeyError:
            pack_record = _make_packer(length)
        at = self._plain_at
        sequence = self._plain_sequence + 1
        pack_record(
            self._memory,
            at,
            length,
            self._plain_begin,
            sequence,
            activated_ns,
            self._plain_middles.get(event_id) or self._make_plain_middle(event_id),
            key_hash if key_hash > 0 else 0,
            payload,
        )
        self._plain_free = 0  # interrupted in the next steps, the next record looks for room anew
        self._plain_at = at + (units << UNIT_SHIFT)
        self._plain_sequence = sequence
        # Our own notes first: interrupted here, the next record publishes this one too.
        self._claimed = self._tail = cursor = self._tail + (units + CURSOR_RECORD)
        self._plain_free = free
        self._words[self._tail_word] = cursor  # SYNC POINT: publishes the record to the consumer
        return True

    def _look_for_plain_room(self, units: int) -> int:
        # How many units `put` may use from `_tail` on, if not less than `units`.
        self._take_plain_room_back()
        # One unit less than there is up to the ring's end: no record may meet that.  And never
        # more than the longest payload takes.
        most = min(self._capacity - (self._tail & CURSOR_OFFSET_MASK) - 1, self._capacity // 2)
        if units > most or self._claimed != self._tail:
            return 0
        if units > self._free:
            self._count_free()
        self._plain_at = self._ring + ((self._tail & CURSOR_OFFSET_MASK) << UNIT_SHIFT)
        self._plain_sequence = self._tail >> CURSOR_OFFSET_BITS
        self._plain_room = self._plain_free = min(self._free, most)
        return self._plain_free

    def _take_plain_room_back(self) -> None:
        # For `claim`, and before another look: `put` leaves `_free` as it is.
        self._free -= self._plain_room - self._plain_free
        self._plain_room = self._plain_free = 0

    def _make_plain_middle(self, event_id: int) -> bytes:
        middle = _PLAIN_MIDDLE.pack(0, 0, self._incarnation, 0, event_id)
        if len(self._plain_middles) < PLAIN_EVENTS_MAX:
            self._plain_middles[event_id] = middle
        return middle

    def commit(self) -> None:
        """Make every claimed record visible.  May be repeated: it stores the same word again."""
        tail = self._claimed
        self._words[self._tail_word] = tail  # SYNC POINT: publishes the records to the consumer
        self._tail = tail

    def abort(self) -> None:
        """Forget what was claimed since the last commit."""
        self._claimed = self._tail
        self._free = self._plain_room = self._plain_free = 0

    def want_room(self, wanted: bool) -> None:
        """Raise or lower the flag that asks the consumer to post when half the ring is free."""
        with contextlib.suppress(ValueError):  # another thread closed the lane: its owner has left
            self._words[self._room_word] = wanted

    def has_room(self) -> bool:
        """Say whether at least half of the ring is free, or the lane closed; any thread may ask."""
        try:
            head, tail = self._words[self._head_word], self._tail
        except ValueError:  # another thread closed the lane: its owner has left
            return True
        if head == tail:
            return True
        return bool(((head - tail) & (self._capacity - 1)) * 2 >= self._capacity)

    def count_dropped(self) -> None:
        """Count a job that is not sent since there is no room, and that nobody waits with."""
        with contextlib.suppress(ValueError):  # as above: nobody reads it any more
            self._words[self._dropped_word] += 1

    def sent(self) -> int:
        """Return how many records this lane has carried in all, pads not counted."""
        return self._tail >> CURSOR_OFFSET_BITS

    def _count_free(self) -> int:
        head = self._words[self._head_word]
        claimed = self._claimed
        if head == claimed:
            free = self._capacity
        else:
            free = (head - claimed) & (self._capacity - 1)
        # A cursor counts to CURSOR_COUNT_MAX.  The consumer, who must not believe in what cannot be
        # counted, takes what is used for as many records as it has units.
        used = self._capacity - free
        count = max((head >> CURSOR_OFFSET_BITS) + used, claimed >> CURSOR_OFFSET_BITS)
        self._free = free = min(free, CURSOR_COUNT_MAX - count)
        return free

    def _write_pad(self, offset: int, units: int) -> None:
        length = (units << UNIT_SHIFT) - RECORD_HEADER_BYTES
        at = self._ring + (offset << UNIT_SHIFT)
        _pack_header(self._memory, at, length, KIND_PAD, 0, self._slot, STATE_DONE, *(0,) * 8)

    def close(self) -> None:
        """Let go of the memory; the lane itself stays as it is."""
        self._words.release()
