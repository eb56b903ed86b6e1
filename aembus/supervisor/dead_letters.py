"""The dead letters: jobs that could not be delivered, kept on disk.

One file for each bus, a frame a letter (length, CRC, msgpack), appended by the supervisor alone.
A frame that a crash cut short is ignored by the reader; a letter that was written twice because
the writer of its mark died in between has the same identity and is read once.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
_FRAME: Final = struct.Struct(">II")


def default_directory(bus: str) -> Path:
    """Return where a bus keeps its state unless it is told otherwise (XDG base directories)."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "aembus" / bus


class DeadLetters:
    """The dead letters of one bus.

    Args:
        directory: where their file is; made at the first letter.
        file_bytes_max: beyond it the oldest half is let go and counted in `dropped`.
    """

    def __init__(self, directory: Path, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self.path = directory / "dead-letters"
        self._file_bytes_max = file_bytes_max
        self.count = 0
        self.dropped = 0

    def append(self, letter: dict[str, Any]) -> None:
        """Keep a letter; it is in the file (not yet on the platter) when this returns.

        Raises OSError if it cannot be written; the file is as it was then.
        """
        body = msgpack.packb({**letter, "kept_at": time.time()})
        frame = _FRAME.pack(len(body), zlib.crc32(body)) + body
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, frame) != len(frame):
                os.ftruncate(descriptor, size)
                raise OSError(f"no space for a dead letter, file={self.path}, size={len(frame)}")
        finally:
            os.close(descriptor)
        self.count += 1
        if size + len(frame) > self._file_bytes_max:
            self._drop_oldest_half()

    def _drop_oldest_half(self) -> None:
        letters = list(self.read())
        kept = letters[len(letters) // 2 :]
        self.dropped += len(letters) - len(kept)
        new = self.path.with_suffix(".new")
        with open(new, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
            for letter in kept:
                body = msgpack.packb(letter)
                file.write(_FRAME.pack(len(body), zlib.crc32(body)) + body)
        new.replace(self.path)

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the letters, oldest first, each identity once; a damaged rest is left out."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        seen = set()
        at = 0
        while at + _FRAME.size <= len(data):
            length, crc = _FRAME.unpack_from(data, at)
            body = data[at + _FRAME.size : at + _FRAME.size + length]
            at += _FRAME.size + length
            if len(body) < length or zlib.crc32(body) != crc:
                return
            letter = msgpack.unpackb(body)
            identity = tuple(letter["identity"])
            if identity not in seen:
                seen.add(identity)
                yield letter
