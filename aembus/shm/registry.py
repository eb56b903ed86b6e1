"""The registry segment: a document that the supervisor publishes and every member reads.

Two halves; generation g is in half ``g & 1``.  The writer fills the half that is not current,
then publishes it by one store of `generation`.  A reader copies the current half and reads the
generation again: if it is unchanged, the writer cannot have begun on that half.  A CRC guards
against everything else.  The generation BROKEN says that the supervisor is gone.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import msgpack

from aembus.errors import BusBroken, CorruptSegment, OutOfSharedMemory
from aembus.shm import layout
from aembus.shm.segment import Segment

ROLE: Final = "registry"
READS_MAX: Final = 1000

_GENERATION_WORD: Final = layout.GENERATION // layout.WORD


class RegistryReader:
    """A member's view; `generation_word` of `words` is what an activation compares."""

    generation_word: Final = _GENERATION_WORD

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self.words = segment.words
        self._half_bytes = (len(segment.memory) - layout.REGISTRY_HALVES) // 2

    @classmethod
    def open(cls, name: str) -> RegistryReader:
        """Open the registry segment.  Raises: the OpenError family."""
        return cls(Segment.open(name, layout.REGISTRY_MAGIC))

    @property
    def memory(self) -> memoryview:
        """The registry segment."""
        return self._segment.memory

    @property
    def generation(self) -> int:
        """The generation that is published now."""
        return int(self.words[_GENERATION_WORD])

    def read(self) -> tuple[int, dict[str, Any]]:
        """Return the published generation and its document.

        Raises: BusBroken if the supervisor is gone, CorruptSegment if no copy is sound.
        """
        reason = ""
        for _ in range(READS_MAX):
            generation = self.generation
            if generation == layout.GENERATION_BROKEN:
                raise BusBroken("the supervisor of this bus is gone")
            document = self._copy(generation)
            if self.generation != generation:
                continue  # the writer went on meanwhile: this half may be half written
            if document is None:
                reason = f"length or checksum is wrong, generation={generation}"
                continue
            return generation, msgpack.unpackb(document, strict_map_key=False)
        raise CorruptSegment(f"registry cannot be read, reads={READS_MAX}, {reason or 'busy'}")

    def _copy(self, generation: int) -> bytes | None:
        begin = layout.REGISTRY_HALVES + (generation & 1) * self._half_bytes
        length = self.words[begin // 8]
        if length > self._half_bytes - layout.REGISTRY_HALF_HEADER:
            return None
        crc = self.words[begin // 8 + 1]
        begin += layout.REGISTRY_HALF_HEADER
        document = bytes(self._segment.memory[begin : begin + length])
        return document if zlib.crc32(document) == crc else None

    def close(self) -> None:
        """Unmap the registry in this process."""
        self._segment.close()


class RegistryWriter:
    """The supervisor's end.  One writer only: the bus's lock sees to that."""

    def __init__(
        self,
        name: str,
        half_bytes: int = layout.REGISTRY_HALF_BYTES_DEFAULT,
        private: bool = False,
    ) -> None:
        half_bytes = -(-half_bytes // layout.WORD) * layout.WORD
        size = layout.registry_bytes(half_bytes)
        magic = layout.REGISTRY_MAGIC
        if private:
            self._segment = Segment.create_private(name, magic, size, slots=0, lane_bytes=0)
        else:
            self._segment = Segment.create(
                name, magic, size, slots=0, lane_bytes=0, reserve_bytes=size
            )
        self.name = name
        self._half_bytes = half_bytes
        self.generation = 0
        self.document_bytes = 0  # of the current generation

    @property
    def room(self) -> int:
        """How long a document may be, in bytes."""
        return self._half_bytes - layout.REGISTRY_HALF_HEADER

    def publish(self, document: dict[str, Any]) -> int:
        """Publish `document` as the next generation and return its number.

        Raises OutOfSharedMemory if it is too long; the current generation stays then.
        """
        packed = msgpack.packb(document)
        if len(packed) > self.room:
            raise registry_full(len(packed), self.room)
        generation = self.generation + 1
        begin = layout.REGISTRY_HALVES + (generation & 1) * self._half_bytes
        words = self._segment.words
        words[begin // 8] = len(packed)
        words[begin // 8 + 1] = zlib.crc32(packed)
        begin += layout.REGISTRY_HALF_HEADER
        self._segment.memory[begin : begin + len(packed)] = packed
        words[_GENERATION_WORD] = generation  # SYNC POINT: publishes the document
        self.generation, self.document_bytes = generation, len(packed)
        if generation == 1:
            self._segment.publish()
        return generation

    def publish_broken(self) -> None:
        """Tell every reader that nobody serves this bus any more."""
        self._segment.words[_GENERATION_WORD] = layout.GENERATION_BROKEN

    def close(self) -> None:
        """Unmap the registry and remove its name."""
        self._segment.close()
        self._segment.unlink()


def registry_full(need_bytes: int, room_bytes: int) -> OutOfSharedMemory:
    """Return the error that says that a document does not fit."""
    return OutOfSharedMemory(
        "the registry is full: register fewer events, or give the supervisor a larger "
        f"registry_bytes, need={need_bytes}, room={room_bytes}"
    )


def break_registry(name: str) -> None:
    """Mark a registry that a killed supervisor left as broken, if it can be opened at all."""
    segment = Segment.open(name, layout.REGISTRY_MAGIC)
    segment.words[_GENERATION_WORD] = layout.GENERATION_BROKEN
    segment.close()
