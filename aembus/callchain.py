"""What a call carries in front of its data: the chain of those that wait for it.  Pure.

A handler that calls waits, and delivers nothing meanwhile.  So a call that reaches a member which
waits further up in its own chain could never be answered; the chain lets the caller see that.  It
is a number of incarnations, ``u32 count, u32 each``; the encoded data follows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aembus.shm import layout

_WORD_BYTES = 4
_NOBODY = bytes(_WORD_BYTES)

Chain = tuple[int, ...]


def wrap(chain: Chain, data: bytes) -> bytes:
    """Return the payload of a call.

    Args:
        chain: the incarnations of the members whose handlers wait for it.
        data: the encoded arguments.
    """
    if not chain:
        return _NOBODY + data
    return struct.pack(f"={len(chain) + 1}I", len(chain), *chain) + data


def unwrap(payload: bytes) -> tuple[Chain, bytes]:
    """Return chain and data.  Raises ValueError if `payload` is no call's."""
    if payload.startswith(_NOBODY):
        return (), payload[_WORD_BYTES:]
    try:
        (count,) = struct.unpack_from("=I", payload)
        end = _WORD_BYTES * (count + 1)
        if end > len(payload):
            raise ValueError(f"a call's chain is cut off, count={count}, size={len(payload)}")
        return struct.unpack_from(f"={count}I", payload, _WORD_BYTES), payload[end:]
    except struct.error as error:
        raise ValueError(f"no call, size={len(payload)}") from error


def data_of(header: Sequence[int], payload: bytes) -> bytes:
    """Return the encoded arguments of a job or a call; of damaged ones what is there."""
    if header[1] != layout.KIND_CALL:
        return payload
    try:
        return unwrap(payload)[1]
    except ValueError:
        return payload
