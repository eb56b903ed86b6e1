"""The work that every transport carries: the jobs, how they are encoded, and who gets which.

A job is ``(number, text, blob)``.  Encoded it has the same length whatever its number, so that a
transport with messages of a fixed size carries the same bytes as the others.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgpack

Handler = Callable[[int, str, bytes], None]
Route = Literal["one", "all", "key", "turn"]

FIRST_NUMBER: Final = 1 << 20  # from here to 2**32 a number takes 5 bytes,
END_NUMBER: Final = -(1 << 20)  # and so does this one, which says that a producer is through
TEXT: Final = "call-leg"
KEYS: Final = tuple(f"call-{number}" for number in range(256))
SIZE_MAX: Final = 1000

_NUMBER_AND_TEXT_BYTES: Final = 1 + 5 + 1 + len(TEXT)  # with the array's header

unpack: Callable[[bytes], list[Any]] = msgpack.unpackb


def packer() -> Callable[[tuple[int, str, bytes]], bytes]:
    """Return the fastest way to encode: the bound method of a packer that is kept."""
    pack: Callable[[tuple[int, str, bytes]], bytes] = msgpack.Packer().pack
    return pack


def blob(size: int) -> bytes:
    """Return the bytes that make an encoded job `size` bytes long."""
    rest = size - _NUMBER_AND_TEXT_BYTES
    length = rest - 2 if rest - 2 < 256 else rest - 3  # bin 8 or bin 16
    if length < 0:
        raise ValueError(f"too short for a job, size={size}, min={_NUMBER_AND_TEXT_BYTES + 2}")
    return bytes(index & 0xFF for index in range(length))


def keys() -> Iterator[str]:
    """Yield a key for each job of a keyed shape, in turn."""
    return itertools.cycle(KEYS)


def consumer_of(key: str, consumers: int) -> int:
    """Return which of the consumers gets the jobs with this key, as a peer's user would pick it."""
    return zlib.crc32(key.encode()) % consumers


@dataclass(frozen=True, slots=True)
class Batch:
    """What one producer sends in one round."""

    numbers: range
    blob: bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """Who sends to whom.

    route: "one" consumer there is, "all" consumers get every job, the "key" picks one, or they
    take a "turn" each.
    """

    name: str
    producers: int
    consumers: int
    route: Route

    @property
    def copies(self) -> int:
        """How many handler calls one job makes."""
        return self.consumers if self.route == "all" else 1


SHAPES: Final[dict[str, Shape]] = {
    shape.name: shape
    for shape in (
        Shape("one_to_one", 1, 1, "one"),
        Shape("four_to_one", 4, 1, "one"),
        Shape("one_to_four", 1, 4, "all"),
        Shape("eight_to_two", 8, 2, "key"),
        Shape("sixtytwo_to_two", 62, 2, "turn"),
    )
}
# Two processes, each of which sends to the other one.
ROUND_TRIP: Final = Shape("round_trip", 2, 2, "one")


def batches(shape: Shape, jobs: int, size: int) -> list[Batch]:
    """Cut about `jobs` jobs into a batch for each producer, all of one length."""
    each = max(1, jobs // shape.producers)
    content = blob(size)
    starts: Sequence[int] = range(FIRST_NUMBER, FIRST_NUMBER + each * shape.producers, each)
    return [Batch(range(start, start + each), content) for start in starts]
