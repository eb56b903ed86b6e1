"""A process that sends numbered, checksummed records through one lane (see test_million.py).

``python -m tests.support.million BUS LANE RECORDS``: writes into inbox 0 from slot 1, and sleeps
on inbox 1 when the lane is full.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
import zlib
from typing import Any, Final

from aembus.shm import layout
from aembus.shm.doorbell import fence
from tests.support.shared import inbox_open, peer_open

PRODUCER_SLOT: Final = 1
BATCH: Final = 64
PAUSE_EVERY: Final = 1024 * BATCH  # after so many the producer waits until the consumer sleeps
FILLERS: Final = [bytes(range(number)) for number in range(97)]
_NUMBER: Final = struct.Struct("<Q")
_CRC: Final = struct.Struct("<I")


def payload_of(number: int) -> bytes:
    """Return the payload of one record: its number, a filler of changing length, and a CRC."""
    body = _NUMBER.pack(number) + FILLERS[number % 97]
    return body + _CRC.pack(zlib.crc32(body))


def number_of(payload: bytes) -> int:
    """Return the number in a payload, or -1 if the payload is not whole."""
    (crc,) = _CRC.unpack_from(payload, len(payload) - 4)
    if zlib.crc32(payload[:-4]) != crc:
        return -1
    number: int = _NUMBER.unpack_from(payload)[0]
    return number if len(payload) == 12 + number % 97 else -1


def choose(implementation: str) -> Any:
    """Make this process's inboxes and peers use an implementation of the lane; return it."""
    module = importlib.import_module(implementation)
    for name, end in (("peer", "LaneProducer"), ("inbox", "LaneConsumer")):
        setattr(importlib.import_module(f"aembus.shm.{name}"), end, getattr(module, end))
    return module


def main(bus: str, implementation: str, records: int) -> None:
    """Send the records, and wait until the consumer has gone to sleep after the last one."""
    choose(implementation)
    with inbox_open(bus, 1) as own, peer_open(bus, PRODUCER_SLOT, 0) as peer:
        lane = peer.lane(layout.CLASS_NORMAL)
        sleeping = memoryview(peer.memory).cast("Q")
        number, pause_at = 0, PAUSE_EVERY
        while number < records:
            end = min(number + BATCH, records)
            while number < end and lane.claim(
                payload_of(number), layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0
            ):
                number += 1
            lane.commit()
            fence()
            peer.ring()
            if number < end:
                lane.want_room(True)
                fence()
                own.wait(lane.has_room, 60.0)
                lane.want_room(False)
            elif number >= pause_at:  # a full lane may have cut a batch short: not at each multiple
                pause_at += PAUSE_EVERY
                while not sleeping[layout.SLEEPING // layout.WORD]:
                    os.sched_yield()
        sleeping.release()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
