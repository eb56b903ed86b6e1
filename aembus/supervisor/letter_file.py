"""The file of dead letters: frames behind one another, and what they come to.  Reads, never writes.

    0       4        8        12
    +-------+--------+--------+------- - - -
    | magic | length | CRC-32 | a msgpack map
    +-------+--------+--------+------- - - -

A frame is a letter (`id` and what `DeadLetters.append` is given), or ``{"removed": [id ...]}``, or
``{"dropped": count}``, first in a file from which letters were let go for want of room.

A frame that a crash cut short is recognised, and so is a damaged one: reading goes on at the next
magic whose frame is whole.  So the writer may append behind a torn frame.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

MAGIC: Final = b"aeDL"
_HEADER: Final = struct.Struct(">4sII")
ID_BYTES: Final = 8  # among a hundred thousand letters two have the same once in 4e9 cases

Letter = dict[str, Any]


def default_directory(bus: str) -> Path:
    """Return where a bus keeps its state unless it is told otherwise (XDG base directories)."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "aembus" / bus


def path_in(directory: Path) -> Path:
    """Return the file of dead letters in a bus's state directory."""
    return directory / "dead-letters"


def letter_id(identity: Sequence[Any]) -> str:
    """Return what a letter is called: the same for the same job."""
    return hashlib.blake2b(msgpack.packb(list(identity)), digest_size=ID_BYTES).hexdigest()


def pack(body: dict[str, Any]) -> bytes:
    """Return a frame."""
    packed: bytes = msgpack.packb(body)
    return _HEADER.pack(MAGIC, len(packed), zlib.crc32(packed)) + packed


class Frame(NamedTuple):
    """A whole frame, and where it lies."""

    begin: int
    end: int
    body: dict[str, Any]


def frames(data: bytes) -> Iterator[Frame]:
    """Yield the whole frames."""
    at = data.find(MAGIC)
    while 0 <= at <= len(data) - _HEADER.size:
        _, length, crc = _HEADER.unpack_from(data, at)
        end = at + _HEADER.size + length
        packed = data[at + _HEADER.size : end]
        if len(packed) == length and zlib.crc32(packed) == crc:
            yield Frame(at, end, msgpack.unpackb(packed))
            at = data.find(MAGIC, end)
        else:
            at = data.find(MAGIC, at + 1)


@dataclass(slots=True)
class Contents:
    """What a file holds.

    places: where each letter's frame begins and ends, by id, oldest first.
    dropped: how many letters were let go for want of room, since the file was begun.
    letter_bytes: how much of the file the letters take.
    """

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    dropped: int = 0
    letter_bytes: int = 0

    def add(self, name: str, place: tuple[int, int]) -> None:
        """Take a letter in, unless it is there."""
        if self.places.setdefault(name, place) is place:
            self.letter_bytes += place[1] - place[0]

    def remove(self, name: str) -> None:
        """Take a letter out, if it is there."""
        begin, end = self.places.pop(name, (0, 0))
        self.letter_bytes -= end - begin


def read(path: Path) -> bytes:
    """Return the file's bytes; none if there is no file.  Raises OSError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def can_be_written(path: Path) -> bool:
    """Say whether a file seems to be writable, or can be made with the directories it is in."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return os.access(there, os.W_OK if there.is_file() else os.W_OK | os.X_OK)


def contents(data: bytes) -> Contents:
    """Return what these bytes of a file hold."""
    found = Contents()
    for begin, end, body in frames(data):
        if "id" in body:
            found.add(body["id"], (begin, end))
        elif "removed" in body:
            for name in body["removed"]:
                found.remove(name)
        else:
            found.dropped = body.get("dropped", 0)
    return found


def letter_at(data: bytes, place: tuple[int, int]) -> Letter:
    """Return the letter whose frame lies there."""
    letter: Letter = msgpack.unpackb(data[place[0] + _HEADER.size : place[1]])
    return letter


def letters(path: Path) -> list[Letter]:
    """Return the letters in a file, oldest first; its writer may be at work."""
    data = read(path)
    return [letter_at(data, place) for place in contents(data).places.values()]
