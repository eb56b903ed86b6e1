"""What the processes of one case write down, each for itself, in memory that outlives them.

Senders note what they are about to send and what was accepted; receivers note each job when its
handler begins and when it ends.  The checks compare that with what the lanes say of themselves.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final, NamedTuple

SLOTS: Final = 4
ENTRIES_MAX: Final = 500  # of each slot
_ENTRY: Final = struct.Struct("=8q")
_TAKING: Final = 0  # words
_COUNTS: Final = 8
_INTENDED: Final = 16
_ENTRIES: Final = 512  # bytes
_SLOT_BYTES: Final = ENTRIES_MAX * _ENTRY.size
_SIZE: Final = _ENTRIES + SLOTS * _SLOT_BYTES

BEGAN: Final = 1
ENDED: Final = 2
BURIED: Final = 3
SENT: Final = 4


class Entry(NamedTuple):
    """One note.

    what: BEGAN and ENDED of a handler, BURIED for a dead letter; SENT by a sender, when its call
        has returned.
    consumer, origin: slots.
    incarnation: of who writes this.
    number: which of the sender's jobs it is, by what the payload says.
    attempt: of SENT, how many jobs that made.
    whole: 0 if the payload was damaged, 2 in the sender's last job, else 1.
    """

    what: int
    consumer: int
    origin: int
    incarnation: int
    number: int
    sequence: int
    attempt: int
    whole: int


class Ledger:
    """The notes of one case, shared by all its processes."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, _SIZE))
        self._words = self._memory.cast("q")

    def clear(self) -> None:
        """Begin anew."""
        self._memory[:_ENTRIES] = bytes(_ENTRIES)

    def note(self, slot: int, entry: Entry) -> None:
        """Write an entry down; it counts once the number of entries is stored.

        Each slot has notes of its own: at any time one process is the member in it.
        """
        count = self._words[_COUNTS + slot]
        assert count < ENTRIES_MAX
        _ENTRY.pack_into(self._memory, _ENTRIES + slot * _SLOT_BYTES + count * _ENTRY.size, *entry)
        self._words[_COUNTS + slot] = count + 1

    def entries(self) -> list[Entry]:
        """Return the entries, those of each slot in their order."""
        found: list[Entry] = []
        for slot in range(SLOTS):
            begin = _ENTRIES + slot * _SLOT_BYTES
            end = begin + self._words[_COUNTS + slot] * _ENTRY.size
            found += [Entry(*fields) for fields in _ENTRY.iter_unpack(self._memory[begin:end])]
        return found

    # --- senders --------------------------------------------------------------------------------

    def intend(self, slot: int) -> int:
        """Note that `slot` is about to send its next job; return the job's number, from 1."""
        self._words[_INTENDED + slot] += 1
        return int(self._words[_INTENDED + slot])

    def intended(self, slot: int) -> int:
        """Return the number of the last job that `slot` was about to send."""
        return int(self._words[_INTENDED + slot])

    def set_intended(self, slot: int, number: int) -> None:
        """Continue after an earlier ledger."""
        self._words[_INTENDED + slot] = number

    # --- receivers ------------------------------------------------------------------------------

    @property
    def taking(self) -> bool:
        """Whether the victim has come so far that it asks for jobs."""
        return bool(self._words[_TAKING])

    @taking.setter
    def taking(self, value: bool) -> None:
        self._words[_TAKING] = value
