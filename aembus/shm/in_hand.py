"""What a lane's consumer has in hand, as somebody else sees it who only looks.

Nothing is written and nobody is asked, so it costs the consumer nothing.  The consumer may go on
meanwhile: then the answer is out of date, or the walk ends where the records make no sense any
more; who wants to be sure looks twice.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aembus.shm import layout

_HEAD: Final = layout.LANE_HEAD // layout.WORD
_TAIL: Final = layout.LANE_TAIL // layout.WORD


class InHand(NamedTuple):
    """A record that was started and is not finished: which one, and which attempt."""

    lane: int
    sequence: int
    attempts: int
    event_id: int


def records_in_hand(
    memory: memoryview, words: memoryview, slots: int, lane_bytes: int, lane: int
) -> list[InHand]:
    """Return the records of lane number `lane` of an inbox whose handlers run, or were killed.

    Held ones are in hand too, but no handler is at work on them.
    """
    control = layout.lane_control_offset(slots, lane) // layout.WORD
    ring = layout.ring_offset(slots, lane_bytes, lane)
    capacity = lane_bytes >> layout.UNIT_SHIFT
    cursor, tail = words[control + _HEAD], words[control + _TAIL]
    found = []
    for _ in range(capacity + 1):  # no more records than that, and one pad
        if cursor == tail:
            break
        offset = cursor & layout.CURSOR_OFFSET_MASK
        if offset >= capacity:
            break
        header = layout.RECORD_HEADER.unpack_from(memory, ring + (offset << layout.UNIT_SHIFT))
        if header[1] == layout.KIND_PAD:
            if not offset:
                break
            cursor -= offset
            continue
        state, sequence = header[4], header[5]
        units = layout.record_units(header[0])
        if sequence != layout.cursor_count(cursor) + 1 or offset + units > capacity:
            break
        if state == layout.STATE_NEW:
            break  # records are started in order
        if state & layout.STATE_MASK == layout.STATE_STARTED:
            found.append(InHand(lane, sequence, layout.state_attempts(state), header[11]))
        cursor += layout.CURSOR_RECORD + units
        if offset + units == capacity:
            cursor -= capacity
    return found
