"""The lane in C has the layout's numbers, every one."""

from __future__ import annotations

import re

from aembus.shm import layout
from tests.support.c_lane import HEADERS, lane_in_c
from tests.support.lanes import INCARNATION, SLOT, LaneMemory

lane = lane_in_c()

OTHER_NAMES = {
    "PY_SSIZE_T_CLEAN",
    "NOT_PLAIN",
    "DEPTH_MAX",
    "IN_TURN",
    "CALL_CHAIN_BYTES",
}  # not of the layout


def test_the_numbers_are_those_of_the_layout() -> None:
    """Each number in LAYOUT is layout.py's number of that name."""
    numbers = dict(lane.LAYOUT)
    last = numbers.pop("KIND_LAST")
    assert numbers == {name: getattr(layout, name) for name in numbers}
    assert frozenset(range(layout.KIND_PAD + 1, last + 1)) == layout.KINDS


def test_no_number_is_kept_from_the_comparison() -> None:
    """Each number of the layout that stands in the C code is in LAYOUT."""
    code = "\n".join(header.read_text() for header in HEADERS)
    written = set(re.findall(r"^    ([A-Z_]+) = ", code, re.MULTILINE))
    written |= set(re.findall(r"^#define ([A-Z_]+) \S", code, re.MULTILINE))
    assert written - OTHER_NAMES == set(lane.LAYOUT)


def test_each_field_of_a_header_is_where_the_layout_has_it() -> None:
    """What the producer in C writes, and what the consumer in C reads, is the layout's struct."""
    memory = LaneMemory(lane, 512)
    producer, consumer = memory.producer(), memory.consumer()
    fields = {
        "kind": layout.KIND_TIMER,
        "flags": 0x12,
        "event_id": 0xE1E2E3E4,
        "key_hash": 0xF1F2F3F4,
        "deadline_ns": 0xA1A2A3A4A5A6A7A8,
        "reply_id": 0xB1B2B3B4B5B6B7B8,
        "addressee": 0xC1C2C3C4,
        "activated_ns": 0xD1D2D3D4D5D6D7D8,
    }
    assert producer.claim(b"payload", *fields.values())
    producer.commit()
    header = layout.RECORD_HEADER.unpack_from(memory.memory, memory.ring)
    wanted = (
        *(7, fields["kind"], fields["flags"], SLOT, layout.STATE_NEW, 1),
        *(fields["activated_ns"], fields["deadline_ns"], fields["reply_id"]),
        *(INCARNATION, fields["addressee"], fields["event_id"], fields["key_hash"]),
    )
    assert header == wanted
    record = consumer.take()
    assert record is not None
    assert record.header == wanted
    assert {name: getattr(record, name) for name in fields} == fields
    assert (record.origin_slot, record.origin_incarnation, record.sequence) == (
        SLOT,
        INCARNATION,
        1,
    )
    assert (record.payload, record.attempts, record.lane) == (b"payload", 0, consumer)
    assert consumer.start(record) == 1
    state = memory.words[(memory.ring + layout.RECORD_STATE) // layout.WORD]
    assert state == layout.STATE_STARTED | 1 << layout.STATE_ATTEMPT_SHIFT
