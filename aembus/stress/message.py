"""What a job of a stress run carries, and by which keys it reaches which worker.

``head, checksum, body``: the head has the producer, the stream, the number in that stream and the
time of the activation; the checksum is over head and body; the body is `size` bytes, other ones in
each job, so that a mixture of two jobs is no valid third.

A *stream* is what one producer's process sends to one worker, numbered from 1.
"""

from __future__ import annotations

import itertools
import random
import struct
import zlib
from typing import Final, NamedTuple

from aembus.codec import encode, key_hash
from aembus.routing import Target, WaitQueue

POINT: Final = "stress.job"
GROUP: Final = "stress"

_HEAD: Final = struct.Struct("=IIQQ")
_VARIETY: Final = 4093  # how many different bodies there are; a prime, so that no stream meets few


class Head(NamedTuple):
    """The numbers of a job; `activated_ns` on CLOCK_MONOTONIC."""

    producer: int
    stream: int
    sequence: int
    activated_ns: int


class Writer:
    """Makes the jobs of one producer.

    Args:
        producer: its number.
        size: of the body, in bytes.
    """

    def __init__(self, producer: int, size: int) -> None:
        self._producer = producer
        self._size = size
        self._block = random.Random(producer).randbytes(size + _VARIETY)

    def write(self, stream: int, sequence: int, activated_ns: int) -> tuple[bytes, int, bytes]:
        """Return a job's data."""
        head = _HEAD.pack(self._producer, stream, sequence, activated_ns)
        place = (sequence + stream) % _VARIETY
        body = self._block[place : place + self._size]
        return head, zlib.crc32(body, zlib.crc32(head)), body


def read(head: bytes, checksum: int, body: bytes) -> Head | None:
    """Return the numbers of a job; None if anything of it is not as it was written."""
    if zlib.crc32(body, zlib.crc32(head)) != checksum or len(head) != _HEAD.size:
        return None
    return Head(*_HEAD.unpack(head))


def job_bytes(size: int) -> int:
    """Return how long the data of a job with a body of `size` bytes is, encoded."""
    return len(encode((b"\0" * _HEAD.size, 0xFFFF_FFFF, b"\0" * size)))


def keys(producer: int, workers: int) -> list[bytes]:
    """Return a key for each stream: the keys reach all workers, each another one."""
    queue = WaitQueue((), [[Target(place, 0) for place in range(workers)]])
    found: dict[int, bytes] = {}
    for number in itertools.count():
        key = b"%d-%d" % (producer, number)
        found.setdefault(queue.pick(key_hash(key))[0].slot, key)
        if len(found) == workers:
            break
    return [found[stream] for stream in range(workers)]
