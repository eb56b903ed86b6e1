"""The dead letters of a bus: jobs that could not be delivered, kept on disk (see `letter_file`).

One process writes: the supervisor, or who holds the bus's lock while none runs.  Anybody of the
same user may read at any time: the file is appended to, or replaced as a whole.

- A letter is in the file when `append` returns, by one write: it survives the kill of any process,
  and that of its writer at worst not at all.  It is not forced to the disk: a power failure may
  take the last ones, as it takes all that is queued.
- One job is one letter: a second one of the same identity (who marks its record as dead was killed
  in between, and his replacement gives it back again) is not kept, also if the first was removed,
  unless that is long ago.
- The file is bounded: beyond `file_bytes_max` the oldest half is let go, and counted in `dropped`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from aembus.supervisor import letter_file
from aembus.supervisor.letter_file import Contents, Letter

log = logging.getLogger("aembus")

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
NO_ROOM: Final = "no room in time"  # said of a letter whose replay may be tried again
IDS_MAX: Final = 100_000  # of letters that were removed, to know them again; a few would do
_REWRITE_BYTES_MIN: Final = 64 * 1024  # so much may always be left by letters that were removed


class DeadLetters:
    """The dead letters of one bus, for their only writer.

    Args:
        directory: where their file is; made at the first letter.
        file_bytes_max: how long the file may get.
    """

    def __init__(self, directory: Path, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self.path = letter_file.path_in(directory)
        self._file_bytes_max = file_bytes_max
        self._contents: Contents | None = None
        self._ids: OrderedDict[str, None] = OrderedDict()  # of the last letters that were taken
        self.count = 0

    def load(self) -> None:
        """Read what the file holds: at the start, when nobody waits for it.

        A file that cannot be read is tried again when a letter is to be kept.  That, and a place
        where no file can be made, is said now, when somebody looks.
        """
        try:
            self._loaded()
            if not letter_file.can_be_written(self.path):
                raise PermissionError("it cannot be written")
        except OSError as error:
            log.error(
                "dead letters cannot be kept here, so jobs that fail will stay in their inboxes; "
                "give another directory (state_directory, --state-directory), file=%s: %s",
                *(self.path, error),
            )

    @property
    def kept(self) -> int:
        """How many letters are in the file; 0 if it could not be read."""
        return len(self._contents.places) if self._contents else 0

    @property
    def dropped(self) -> int:
        """How many letters were let go for want of room, since the file was begun."""
        return self._contents.dropped if self._contents else 0

    def read(self) -> list[Letter]:
        """Return the letters, oldest first.  Raises OSError."""
        return letter_file.letters(self.path)

    def get(self, name: str) -> Letter | None:
        """Return the letter of this id, or None.  Raises OSError."""
        place = self._loaded().places.get(name)
        if place is None:
            return None
        with open(self.path, "rb") as file:
            file.seek(place[0])
            return letter_file.letter_at(file.read(place[1] - place[0]), (0, place[1] - place[0]))

    def append(self, letter: dict[str, Any]) -> bool:
        """Keep a letter, unless that job is known already; return whether it is new.

        Raises OSError if it cannot be written; nothing has changed then.
        """
        name = letter_file.letter_id(letter["identity"])
        found = self._loaded()
        if name in self._ids or name in found.places:
            return False
        frame = letter_file.pack({"id": name, **letter, "kept_at": time.time()})
        begin = self._write(frame)
        found.add(name, (begin, begin + len(frame)))
        self._ids[name] = None
        if len(self._ids) > IDS_MAX:
            self._ids.popitem(last=False)
        self.count += 1
        if begin + len(frame) > self._file_bytes_max:
            self._rewrite(self._file_bytes_max // 2)
        return True

    def remove(self, names: Iterable[str]) -> list[str]:
        """Forget letters; return the ids of those that were there.  Raises OSError."""
        found = self._loaded()
        there = [name for name in dict.fromkeys(names) if name in found.places]
        if there:
            size = self._write(letter_file.pack({"removed": there}))
            for name in there:
                found.remove(name)
            if size - found.letter_bytes > max(size // 2, _REWRITE_BYTES_MIN):
                self._rewrite(self._file_bytes_max)
        return there

    def _loaded(self) -> Contents:
        if self._contents is None:
            self._contents = letter_file.contents(letter_file.read(self.path))
        return self._contents

    def _write(self, frame: bytes) -> int:
        # Returns where the frame begins.
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            begin = os.fstat(descriptor).st_size
            if os.write(descriptor, frame) != len(frame):
                os.ftruncate(descriptor, begin)
                raise OSError(f"no space for a dead letter, file={self.path}, size={len(frame)}")
        finally:
            os.close(descriptor)
        return begin

    def _rewrite(self, letter_bytes_max: int) -> None:
        # Into a new file that takes the old one's place as a whole, with the newest letters.
        found, data = self._loaded(), letter_file.read(self.path)
        chosen: list[tuple[str, tuple[int, int]]] = []
        size = 0
        for name, place in reversed(found.places.items()):
            size += place[1] - place[0]
            if chosen and size > letter_bytes_max:
                break
            chosen.append((name, place))
        dropped = found.dropped + len(found.places) - len(chosen)
        frames = [letter_file.pack({"dropped": dropped})]
        frames += [data[begin:end] for _, (begin, end) in reversed(chosen)]
        new = self.path.with_suffix(".new")
        try:
            with open(new, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
                file.writelines(frames)
                file.flush()
                os.fsync(file.fileno())  # else a power failure could leave an empty file
            new.replace(self.path)
        except OSError as error:  # the letters are safe in the old file, which is too long
            log.error("the file of dead letters cannot be made shorter: %s", error)
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            return
        if dropped > found.dropped:
            log.warning("%d dead letters were let go, file=%s", dropped - found.dropped, self.path)
        self._contents = letter_file.contents(b"".join(frames))
