"""What came of a job in a child, as the child sends it to the spawn host.

A child sends one outcome, cut into messages for a socket that keeps messages apart and that all
children of a nursery share: number of the job, whether more follows, and a piece.  What a killed
child has sent of its outcome is never whole, and is dropped with the child's end.
"""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

import msgpack

from aembus.answers import Failure

RETURNED: Final = "returned"  # answer: encoded, for who has called; empty if nobody has
UNANSWERABLE: Final = "unanswerable"  # it returned what cannot be sent to who has called
REFUSED: Final = "refused"
RAISED: Final = "raised"

PIECE_BYTES: Final = 32 * 1024
_HEAD: Final = struct.Struct("=QB")  # the job's number, whether more follows
MESSAGE_BYTES_MAX: Final = _HEAD.size + PIECE_BYTES


class Outcome(NamedTuple):
    """What came of a job: kind is one of the above."""

    kind: str
    answer: bytes = b""
    failure: Failure | None = None


def send_outcome(channel: socket.socket, number: int, outcome: Outcome) -> None:
    """Send what came of job `number`; blocks while the spawn host does not read."""
    body: bytes = msgpack.packb(outcome)
    view = memoryview(body)
    for begin in range(0, len(body), PIECE_BYTES):
        more = begin + PIECE_BYTES < len(body)
        channel.send(_HEAD.pack(number, more) + view[begin : begin + PIECE_BYTES])


class OutcomeReader:
    """Puts outcomes together again (pure)."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytearray] = {}

    def feed(self, message: bytes) -> tuple[int, Outcome] | None:
        """Return the job's number and its outcome that `message` completes, if it does."""
        number, more = _HEAD.unpack_from(message)
        piece = memoryview(message)[_HEAD.size :]
        if more or number in self._pieces:
            self._pieces.setdefault(number, bytearray()).extend(piece)
            if more:
                return None
            piece = memoryview(self._pieces.pop(number))
        kind, answer, failure = msgpack.unpackb(piece)
        return number, Outcome(kind, answer, None if failure is None else Failure(*failure))

    def forget(self, number: int) -> None:
        """Drop what a child has sent that ended in the middle."""
        self._pieces.pop(number, None)
