"""Every number of the shared-memory layout: magics, versions, sizes, offsets.  No I/O.

The plain-Python lane reads these names, its twin in C gets the same numbers, and nothing else in
the project writes a literal offset.  All words are 8 bytes, native order, 8-byte aligned: an
aligned word is loaded and stored in one piece, which is what the whole protocol rests on.

Segment header (one cache line, at offset 0 of each segment)::

     0        8        16       24       32       40       48       56       64
     +--------+--------+--------+--------+--------+--------+--------+--------+
     | magic  |version | size   | slots  |lane    |creator |created | ready  |
     |        |        | bytes  |        |bytes   | pid    | ns     | (last) |
     +--------+--------+--------+--------+--------+--------+--------+--------+

Inbox segment (one a member; written by the owner unless said otherwise)::

     0       64        128        192         448        512            DOORS+lanes
     +-------+---------+----------+-----------+----------+--------------+------ - - -
     |header | sleeping| failed.. | counters  | reserved | doors: a byte| lane controls,
     |       | (alone) |          | 32 words  |          | a lane (prod)| 128 B a lane
     +-------+---------+----------+-----------+----------+--------------+------ - - -
     ... page boundary: lane 0's ring, lane 1's ring, ...   (holes until their door is open)

Lanes are numbered ``lane class * slots + producer's slot``.  Lane control::

     0 producer's line                      64 consumer's line                       128
     +--------+------------+---------+- - --+--------+------+-----------+----- - - --+
     | tail   | room_wanted| dropped |      | head   | dead | forwarded |            |
     +--------+------------+---------+- - --+--------+------+-----------+----- - - --+

``tail`` and ``head`` are *cursors*: the ring offset in 64-byte units in the low 18 bits, the
number of records that went past in the high 46 (a year at two million a second).  One store moves
place and count together, so ``sent`` and ``delivered`` can never disagree with the positions,
wherever a kill falls.

Record (64-byte aligned, header one cache line, then the payload)::

     0      4    5     6      8       16        24           32         40        48
     +------+----+-----+------+-------+---------+------------+----------+---------+
     |length|kind|flags|origin| state |sequence |activated_ns|deadline  |reply_id |
     |  u32 | u8 | u8  |slot  | u64   | u64     | u64        |   _ns u64| u64     |
     +------+----+-----+------+-------+---------+------------+----------+---------+
     48          52           56         60       64
     +-----------+------------+----------+--------+----- - - -
     |origin     |addressee   |event_id  |key_hash| payload
     |incarnation|incarnation |   u32    |  u32   |
     +-----------+------------+----------+--------+----- - - -

``state`` is written by the consumer alone after publication, always in one store::

     63      56              32              8        0
     +--------+---------------+---------------+--------+
     | spared | failures      | attempts      | state  |
     +--------+---------------+---------------+--------+

    NEW -> STARTED -> DONE, or DEAD (a dead letter), or FORWARDED (sent on to a sibling)
    STARTED -> HELD: its handler leaves it to others, who complete it; on from there as STARTED
    STARTED -> FAILED: its handler raised; STARTED again after a pause

STARTED comes with one more attempt, FAILED with one more failure.  An attempt that was begun and
neither failed nor finished was ended by a death: of a record that nobody has in hand, attempts -
failures is the number of deaths.  Of these the supervisor has written down as ``spared``, at each
death, those that do not count against a HELD job, since another handler was at work.  A finished
record has no counts.

A PAD record fills the ring's end when the next record does not fit there; it takes no sequence
number.

Registry segment: the header, ``generation`` alone in a line, then two halves, each
``length u64, crc u64`` and a msgpack document; generation g is in half ``g & 1``.
"""

from __future__ import annotations

import struct
from typing import Final

LAYOUT_VERSION: Final = 4
INBOX_MAGIC: Final = 0x0A_E3_B0_5B_1B_0C_5A_01
REGISTRY_MAGIC: Final = 0x0A_E3_B0_5B_1B_0C_5A_02

WORD: Final = 8
CACHE_LINE: Final = 64
PAGE: Final = 4096

# --- segment header -----------------------------------------------------------------------------
HEADER_MAGIC: Final = 0
HEADER_VERSION: Final = 8
HEADER_SIZE: Final = 16
HEADER_SLOTS: Final = 24
HEADER_LANE_BYTES: Final = 32
HEADER_CREATOR_PID: Final = 40
HEADER_CREATED_NS: Final = 48
HEADER_READY: Final = 56
HEADER_BYTES: Final = CACHE_LINE
READY: Final = 1

# --- inbox --------------------------------------------------------------------------------------
SLEEPING: Final = 64
FAILED: Final = 128
RESCUED_WAKEUPS: Final = 136
CORRUPTED: Final = 144
HELD: Final = 152  # how many jobs the owner holds now, and
RETRYING: Final = 160  # how many wait there for their next attempt
EXPIRED: Final = 168  # jobs that became dead letters since they were too old
COUNTERS: Final = 192
COUNTERS_MAX: Final = 32
DOORS: Final = 512

# --- lane classes and controls ------------------------------------------------------------------
CLASS_NORMAL: Final = 0
CLASS_URGENT: Final = 1
CLASS_REPLY: Final = 2  # the classes before it carry jobs
LANE_CLASSES: Final = 3
CLASS_NAMES: Final = ("normal", "urgent", "reply")

LANE_CONTROL_BYTES: Final = 2 * CACHE_LINE
LANE_TAIL: Final = 0
LANE_ROOM_WANTED: Final = 8
LANE_DROPPED: Final = 16  # jobs that were not sent since there was no room: full="drop"
LANE_HEAD: Final = 64
LANE_DEAD: Final = 72
LANE_FORWARDED: Final = 80

DOOR_CLOSED: Final = 0
DOOR_OPEN: Final = 1

# --- the low bits of `sleeping`: the doorbell's kind, who posts; the rest is the sleep's number ---
AWAKE: Final = 0
BELL_SEMAPHORE: Final = 1
BELL_DESCRIPTOR: Final = 2
BELL_SIGNAL: Final = 3
BELL_KIND_MASK: Final = 3
BELL_NOT_FOR_NUMBERS: Final = 4  # calls of numbers need not post: the owner looks by itself soon
BELL_TICKET: Final = 8

# --- cursors ------------------------------------------------------------------------------------
UNIT: Final = CACHE_LINE
UNIT_SHIFT: Final = 6
CURSOR_OFFSET_BITS: Final = 18
CURSOR_OFFSET_MASK: Final = (1 << CURSOR_OFFSET_BITS) - 1
CURSOR_RECORD: Final = 1 << CURSOR_OFFSET_BITS
CURSOR_COUNT_MAX: Final = (1 << 64 - CURSOR_OFFSET_BITS) - 1  # a lane there is full for good

# --- records ------------------------------------------------------------------------------------
RECORD_HEADER: Final = struct.Struct("=IBBHQQQQQIIII")
RECORD_HEADER_BYTES: Final = CACHE_LINE
RECORD_STATE: Final = 8
RECORD_STATE_WORD: Final = RECORD_STATE // WORD

KIND_PAD: Final = 1
KIND_JOB: Final = 2
KIND_TIMER: Final = 3
KIND_CALL: Final = 4
KIND_REPLY: Final = 5
KIND_JOB_WITH_TTL: Final = 6  # so that whoever delivers plain jobs need not look at deadlines
KIND_EXIT: Final = 7
KINDS: Final = frozenset(range(KIND_JOB, KIND_EXIT + 1))
KINDS_FOR_EVENTS: Final = (KIND_JOB, KIND_CALL, KIND_JOB_WITH_TTL)  # in a member's inbox

FLAG_WANTS_REPLY: Final = 1
FLAG_FAILED: Final = 2
FLAG_RETURNED: Final = 4  # of a reply: nobody has begun the call
FLAG_REDELIVER: Final = 8  # of a call: whose callee died it is for the replacement
FLAG_NUMBERS: Final = 16  # of a service call: its data are reply_id and deadline_ns, one-way

STATE_NEW: Final = 1
STATE_STARTED: Final = 2
STATE_HELD: Final = 3
STATE_FAILED: Final = 4
STATE_DONE: Final = 5  # this and whatever is greater is finished
STATE_DEAD: Final = 6
STATE_FORWARDED: Final = 7
STATES_IN_HAND: Final = (STATE_STARTED, STATE_HELD)
STATE_MASK: Final = 0xFF
STATE_ATTEMPT_SHIFT: Final = 8
STATE_ATTEMPT_MAX: Final = (1 << 24) - 1
STATE_FAILURE_SHIFT: Final = 32
STATE_FAILURE_MAX: Final = (1 << 24) - 1
STATE_SPARED_SHIFT: Final = 56
STATE_SPARED_MAX: Final = (1 << 8) - 1

# --- registry -----------------------------------------------------------------------------------
GENERATION: Final = 64
REGISTRY_HALVES: Final = 128
REGISTRY_HALF_HEADER: Final = 2 * WORD
GENERATION_BROKEN: Final = (1 << 64) - 1

# --- defaults and bounds ------------------------------------------------------------------------
SLOTS_DEFAULT: Final = 128
SLOTS_MAX: Final = 1 << 12
LANE_BYTES_DEFAULT: Final = 256 * 1024
LANE_BYTES_MIN: Final = 512
LANE_BYTES_MAX: Final = UNIT << CURSOR_OFFSET_BITS
REGISTRY_HALF_BYTES_DEFAULT: Final = 256 * 1024


def record_units(payload_bytes: int) -> int:
    """Return how many 64-byte units a record with `payload_bytes` of payload takes."""
    return (RECORD_HEADER_BYTES + payload_bytes + UNIT - 1) >> UNIT_SHIFT


def payload_bytes_max(lane_bytes: int) -> int:
    """Return the largest payload for a lane: a record takes at most half of it."""
    return lane_bytes // 2 - RECORD_HEADER_BYTES


def state_attempts(state: int) -> int:
    """Return how often a record was started, by its state word."""
    return state >> STATE_ATTEMPT_SHIFT & STATE_ATTEMPT_MAX


def state_failures(state: int) -> int:
    """Return how many of a record's attempts ended with its handler raising, by its state word."""
    return state >> STATE_FAILURE_SHIFT & STATE_FAILURE_MAX


def state_deaths(state: int) -> int:
    """Return how many deaths a record was in hand at that nobody has in hand, by its state word."""
    return max(state_attempts(state) - state_failures(state), 0)


def state_spared(state: int) -> int:
    """Return how many of these deaths do not count against a record, by its state word."""
    return state >> STATE_SPARED_SHIFT & STATE_SPARED_MAX


def cursor_count(cursor: int) -> int:
    """Return how many records went past this cursor."""
    return cursor >> CURSOR_OFFSET_BITS


def lane_index(slots: int, lane_class: int, producer_slot: int) -> int:
    """Return the number of the lane of one class from one producer."""
    return lane_class * slots + producer_slot


def lane_controls_offset(slots: int) -> int:
    """Return where the lane controls of an inbox begin, in bytes."""
    return _round_up(DOORS + LANE_CLASSES * slots, CACHE_LINE)


def lane_control_offset(slots: int, lane: int) -> int:
    """Return where the control of lane number `lane` begins, in bytes."""
    return lane_controls_offset(slots) + lane * LANE_CONTROL_BYTES


def rings_offset(slots: int) -> int:
    """Return where the rings of an inbox begin; everything before is reserved at creation."""
    return _round_up(lane_control_offset(slots, LANE_CLASSES * slots), PAGE)


def ring_offset(slots: int, lane_bytes: int, lane: int) -> int:
    """Return where the ring of lane number `lane` begins, in bytes."""
    return rings_offset(slots) + lane * lane_bytes


def inbox_bytes(slots: int, lane_bytes: int) -> int:
    """Return the size of an inbox segment; its rings are holes until they are opened."""
    return ring_offset(slots, lane_bytes, LANE_CLASSES * slots)


def is_inbox(slots: int, lane_bytes: int, size_bytes: int) -> bool:
    """Say whether an inbox of `size_bytes` can have such lanes."""
    return (
        0 < slots <= SLOTS_MAX
        and LANE_BYTES_MIN <= lane_bytes <= LANE_BYTES_MAX
        and lane_bytes & (lane_bytes - 1) == 0
        and inbox_bytes(slots, lane_bytes) == size_bytes
    )


def registry_bytes(half_bytes: int) -> int:
    """Return the size of a registry segment with two halves of `half_bytes` each."""
    return REGISTRY_HALVES + 2 * half_bytes


def _round_up(number: int, step: int) -> int:
    return (number + step - 1) // step * step


assert RECORD_HEADER.size == RECORD_HEADER_BYTES == UNIT == 1 << UNIT_SHIFT
assert COUNTERS + COUNTERS_MAX * WORD <= DOORS
assert max(RESCUED_WAKEUPS, EXPIRED) < COUNTERS and SLEEPING // CACHE_LINE != FAILED // CACHE_LINE
assert LANE_HEAD // CACHE_LINE != LANE_TAIL // CACHE_LINE
assert LANE_DROPPED // CACHE_LINE == LANE_TAIL // CACHE_LINE
assert STATE_ATTEMPT_MAX << STATE_ATTEMPT_SHIFT < 1 << STATE_FAILURE_SHIFT
assert STATE_FAILURE_MAX << STATE_FAILURE_SHIFT < 1 << STATE_SPARED_SHIFT
assert STATE_SPARED_MAX << STATE_SPARED_SHIFT < 1 << 64
assert BELL_KIND_MASK < BELL_NOT_FOR_NUMBERS < BELL_TICKET
