"""What travels in a job: the arguments of an activation, as one msgpack array.

Never pickle: what comes out of shared memory is data, not code.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import msgpack

encode: Callable[[tuple[Any, ...] | list[Any]], bytes] = msgpack.Packer().pack


def decode(payload: bytes) -> list[Any]:
    """Return the arguments that `encode` was given."""
    arguments: list[Any] = msgpack.unpackb(payload, strict_map_key=False)
    return arguments


def key_hash(key: str | bytes | int) -> int:
    """Return the hash by which a key picks its member: the same in every process and run."""
    if isinstance(key, str):
        key = key.encode()
    elif isinstance(key, int):
        key = b"%d" % key
    return zlib.crc32(key)
