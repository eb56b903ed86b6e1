"""A shared-memory segment: create, open, reserve, close, unlink.

The supervisor creates every segment (exclusively, mode 0600) and unlinks it; members open it.
Space is reserved when it is first needed, so that too little of it is an error at that call and
never a SIGBUS later.  The header's `ready` word is stored last, and opening checks every field
against the file itself, so a half-made or foreign segment is refused, not trusted.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import time
from typing import Final

import posix_ipc

from aembus.errors import (
    BusNotFound,
    CorruptSegment,
    NotReady,
    OutOfSharedMemory,
    PermissionRefused,
    VersionMismatch,
)
from aembus.shm import layout, names

# Segments that are memory of this process alone, by name: those of a test without processes.
private_segments: Final[dict[str, mmap.mmap]] = {}


class Segment:
    """One mapped segment, as bytes (`memory`) and as aligned words (`words`)."""

    def __init__(self, name: str, mapping: mmap.mmap) -> None:
        self.name = name
        self._mapping = mapping
        self.memory = memoryview(mapping)
        self.words = self.memory.cast("Q")

    @classmethod
    def create(
        cls,
        name: str,
        magic: int,
        size_bytes: int,
        *,
        slots: int,
        lane_bytes: int,
        reserve_bytes: int,
    ) -> Segment:
        """Create the segment `name` and map it; `ready` is left to `publish`.

        The first `reserve_bytes` get their memory now; the rest of `size_bytes` is a hole until
        `reserve` is called for a part of it.

        Raises: OutOfSharedMemory (nothing is left behind then), FileExistsError.
        """
        try:
            shared = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
        except posix_ipc.ExistentialError as error:
            raise FileExistsError(f"segment exists already, name={name}") from error
        except OSError as error:
            raise no_space(error, name, reserve_bytes) from error
        try:
            os.ftruncate(shared.fd, size_bytes)
            reserve_space(shared.fd, name, 0, reserve_bytes)
            mapping = mmap.mmap(shared.fd, size_bytes)
        except BaseException:
            posix_ipc.unlink_shared_memory(name)
            raise
        finally:
            os.close(shared.fd)
        segment = cls(name, mapping)
        segment._write_header(magic, size_bytes, slots, lane_bytes)
        return segment

    @classmethod
    def create_private(
        cls, name: str, magic: int, size_bytes: int, *, slots: int, lane_bytes: int
    ) -> Segment:
        """Create a segment in this process's own memory; `open` finds it here alone."""
        private_segments[name] = mmap.mmap(-1, size_bytes)
        segment = cls(name, private_segments[name])
        segment._write_header(magic, size_bytes, slots, lane_bytes)
        return segment

    def _write_header(self, magic: int, size_bytes: int, slots: int, lane_bytes: int) -> None:
        words = self.words
        words[layout.HEADER_MAGIC // 8] = magic
        words[layout.HEADER_VERSION // 8] = layout.LAYOUT_VERSION
        words[layout.HEADER_SIZE // 8] = size_bytes
        words[layout.HEADER_SLOTS // 8] = slots
        words[layout.HEADER_LANE_BYTES // 8] = lane_bytes
        words[layout.HEADER_CREATOR_PID // 8] = os.getpid()
        words[layout.HEADER_CREATED_NS // 8] = time.time_ns()

    def publish(self) -> None:
        """Mark the segment ready; until then nobody can open it."""
        self.words[layout.HEADER_READY // 8] = layout.READY

    @classmethod
    def open(cls, name: str, magic: int) -> Segment:
        """Open and map the segment `name`, checking every field of its header.

        Raises: BusNotFound, PermissionRefused, NotReady, VersionMismatch, CorruptSegment.
        """
        if name in private_segments:
            return cls(name, private_segments[name])
        try:
            shared = posix_ipc.SharedMemory(name)
        except posix_ipc.ExistentialError as error:
            raise BusNotFound(f"no such segment, name={name}") from error
        except posix_ipc.PermissionsError as error:
            raise PermissionRefused(f"segment belongs to another user, name={name}") from error
        try:
            file_bytes = os.fstat(shared.fd).st_size
            if file_bytes < layout.HEADER_BYTES:
                raise NotReady(f"segment has no header yet, name={name}, size={file_bytes}")
            mapping = mmap.mmap(shared.fd, file_bytes)
        finally:
            os.close(shared.fd)
        if file_bytes % layout.WORD:
            (header,) = struct.unpack_from("=Q", mapping, layout.HEADER_SIZE)
            mapping.close()
            raise CorruptSegment(f"wrong size, name={name}, header={header}, file={file_bytes}")
        segment = cls(name, mapping)
        try:
            segment._check_header(magic, file_bytes)
        except BaseException:
            segment.close()
            raise
        return segment

    def _check_header(self, magic: int, file_bytes: int) -> None:
        words = self.words
        ready = words[layout.HEADER_READY // 8]
        if ready != layout.READY:
            raise NotReady(f"segment is not ready, name={self.name}, ready={ready}")
        found = words[layout.HEADER_MAGIC // 8]
        if found != magic:
            raise CorruptSegment(f"wrong magic, name={self.name}, want={magic:#x}, got={found:#x}")
        version = words[layout.HEADER_VERSION // 8]
        if version != layout.LAYOUT_VERSION:
            raise VersionMismatch(
                "this aembus and the bus have different shared-memory layouts; run the same "
                f"release on both sides, name={self.name}, "
                f"want={layout.LAYOUT_VERSION}, got={version}"
            )
        size = words[layout.HEADER_SIZE // 8]
        if size != file_bytes:
            raise CorruptSegment(f"wrong size, name={self.name}, header={size}, file={file_bytes}")
        if magic == layout.INBOX_MAGIC and not layout.is_inbox(
            self.slots, self.lane_bytes, file_bytes
        ):
            raise CorruptSegment(
                f"lanes do not fit the size, name={self.name}, slots={self.slots}, "
                f"lane_bytes={self.lane_bytes}, size={file_bytes}"
            )

    @property
    def slots(self) -> int:
        """How many slots the creator laid this segment out for."""
        return int(self.words[layout.HEADER_SLOTS // 8])

    @property
    def lane_bytes(self) -> int:
        """The size of each lane's ring in bytes."""
        return int(self.words[layout.HEADER_LANE_BYTES // 8])

    def reserve(self, offset: int, size_bytes: int) -> None:
        """Give memory to a part of the segment.  Raises OutOfSharedMemory, changing nothing."""
        if self.name in private_segments:
            return
        try:
            shared = posix_ipc.SharedMemory(self.name)
        except posix_ipc.ExistentialError as error:
            raise BusNotFound(f"the segment was removed meanwhile, name={self.name}") from error
        try:
            reserve_space(shared.fd, self.name, offset, size_bytes)
        finally:
            os.close(shared.fd)

    def close(self) -> None:
        """Unmap the segment in this process; the name stays.  Idempotent."""
        self.words.release()
        with contextlib.suppress(BufferError):  # a view is still in use: unmapped when it goes
            self.memory.release()
            if self.name not in private_segments:
                self._mapping.close()

    def unlink(self) -> None:
        """Remove the name; mappings stay valid.  Idempotent."""
        if private_segments.pop(self.name, None) is not None:
            return
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_shared_memory(self.name)


def reserve_space(descriptor: int, name: str, offset: int, size_bytes: int) -> None:
    """Reserve memory for a part of a file in /dev/shm, or raise OutOfSharedMemory."""
    try:
        os.posix_fallocate(descriptor, offset, size_bytes)
    except OSError as error:
        raise no_space(error, name, size_bytes) from error


def no_space(error: OSError, name: str, want_bytes: int) -> Exception:
    """Return OutOfSharedMemory, with the numbers, if that is what `error` means, else `error`."""
    if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
        return error
    space = os.statvfs(names.DIRECTORY)
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    return OutOfSharedMemory(
        f"too little space in {names.DIRECTORY}: make it larger (mount -o remount,size=..., or "
        "docker run --shm-size=...), or use fewer members or smaller lanes, "
        f"need={want_bytes}, free={free}, size={total}, name={name}"
    )
