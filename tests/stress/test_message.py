from __future__ import annotations

import pytest

from aembus.codec import decode, encode, key_hash
from aembus.routing import Target, WaitQueue
from aembus.stress import message
from aembus.stress.message import Head, Writer


@pytest.mark.parametrize("size", [0, 1, 48, 5000])
def test_a_job_is_read_as_it_was_written(size: int) -> None:
    """Through msgpack, with the body's size and the length that was foretold."""
    payload = encode(Writer(3, size).write(2, 77, 123456789))
    head, checksum, body = decode(payload)
    assert message.read(head, checksum, body) == Head(3, 2, 77, 123456789)
    assert len(body) == size
    assert message.job_bytes(size) - 4 <= len(payload) <= message.job_bytes(size)


def test_a_change_of_any_byte_is_seen() -> None:
    """In the head, in the body, and in the checksum."""
    head, checksum, body = Writer(1, 40).write(0, 5, 999)
    for place in range(len(head)):
        wrong = bytes([*head[:place], head[place] ^ 1, *head[place + 1 :]])
        assert message.read(wrong, checksum, body) is None
    for place in range(len(body)):
        wrong = bytes([*body[:place], body[place] ^ 0x80, *body[place + 1 :]])
        assert message.read(head, checksum, wrong) is None
    assert message.read(head, checksum ^ 1, body) is None
    assert message.read(head, checksum, body[:-1]) is None


def test_a_mixture_of_two_jobs_is_no_job() -> None:
    """Neighbours have other bodies."""
    writer = Writer(1, 40)
    (head, checksum, body), (_, _, other) = writer.write(0, 5, 1), writer.write(0, 6, 1)
    assert message.read(head, checksum, body[:20] + other[20:]) is None


@pytest.mark.parametrize("workers", [1, 2, 7, 40])
def test_the_keys_of_a_producer_reach_each_worker_once(workers: int) -> None:
    """One key a stream."""
    queue = WaitQueue((), [[Target(place, 1) for place in range(workers)]])
    for producer in range(5):
        keys = message.keys(producer, workers)
        assert [queue.pick(key_hash(key))[0].slot for key in keys] == [*range(workers)]
