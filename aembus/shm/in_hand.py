"""What a lane's consumer has in hand, as somebody else sees it who only looks.

Nothing is written and nobody is asked, so it costs the consumer nothing (`spare` is for when that
is dead).  The consumer may go on
meanwhile: then the answer is out of date, or the walk ends where the records make no sense any
more; who wants to be sure looks twice.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aembus.shm import layout

_HEAD: Final = layout.LANE_HEAD // layout.WORD
_TAIL: Final = layout.LANE_TAIL // layout.WORD


class InHand(NamedTuple):
    """A record that was started and is not finished: which one, and which attempt.

    state_word: where its state is, in the segment's words.
    held: no handler is at work on it.
    """

    lane: int
    sequence: int
    attempts: int
    event_id: int
    state_word: int
    held: bool


def records_in_hand(
    memory: memoryview, words: memoryview, slots: int, lane_bytes: int, lane: int, *, held: bool
) -> list[InHand]:
    """Return the records of lane number `lane` of an inbox whose handlers run, or were killed.

    Args:
        held: also those on which no handler is at work.
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
        kind = state & layout.STATE_MASK
        if kind == layout.STATE_STARTED or (held and kind == layout.STATE_HELD):
            at = ring + (offset << layout.UNIT_SHIFT) + layout.RECORD_STATE
            found.append(
                InHand(
                    lane, sequence, layout.state_attempts(state), header[11],
                    at // layout.WORD, kind == layout.STATE_HELD,
                )
            )  # fmt: skip
        cursor += layout.CURSOR_RECORD + units
        if offset + units == capacity:
            cursor -= capacity
    return found


def spare(words: memoryview, job: InHand, most: int) -> None:
    """Write down, in one store, that its member's death does not count against a held job.

    Its consumer is dead.  Not more often than `most`.
    """
    state = words[job.state_word]
    if layout.state_spared(state) < most:
        words[job.state_word] = state + (1 << layout.STATE_SPARED_SHIFT)
