"""What the members of a scene write down: append-only files that survive whoever writes them.

Each receiver and each producer has one, and its replacements go on with it.  A record is one
``write`` that crosses no page, so it is in the file whole or not at all, wherever SIGKILL falls.

A receiver writes BEGIN before it works on a job and END after it (RAISED if it is to raise, BAD if
the checksum is wrong).  A producer writes SENT after an activation, with the number of jobs, or
REFUSED if it was told that nothing was sent.  A caller writes after a call what that came to:
ANSWERED, WRONG if it was not what the handler returned, FAILED, or TIMED_OUT.  An activation or a
call that did not return stays in doubt.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from aembus.job import Job

BEGIN: Final = 1
END: Final = 2
RAISED: Final = 3
BAD: Final = 4
SENT: Final = 5
REFUSED: Final = 6
ANSWERED: Final = 7
FAILED: Final = 8
TIMED_OUT: Final = 9
WRONG: Final = 10
SENDERS: Final = (SENT, REFUSED, ANSWERED, FAILED, TIMED_OUT, WRONG)  # what they write

WORK: Final = 1  # a group's, comes again if its worker dies
FRAIL: Final = 2  # a group's, does not
NEWS: Final = 3  # everybody's
PROBE: Final = 4  # one worker's
POISON: Final = 5  # a group's, kills its worker
STAGED: Final = 6  # a group's, with constructor and destructor
ASK: Final = 7  # a call, which fails when its callee dies
ASK_AGAIN: Final = 8  # a call, which its callee's replacement gets then
POINTS: Final = {
    WORK: "crash.work",
    FRAIL: "crash.frail",
    NEWS: "crash.news",
    PROBE: "crash.probe",
    POISON: "crash.poison",
    STAGED: "crash.staged",
    ASK: "crash.ask",
    ASK_AGAIN: "crash.ask_again",
}
GROUP: Final = "crash"

_RECORD: Final = struct.Struct("=BBHIIIHHIQ")
_PAGE: Final = 4096

assert _PAGE % _RECORD.size == 0


class Entry(NamedTuple):
    """One record.

    kind, point: as above.  attempt: of the job.  pid: who wrote it.
    stream, number: which job; a stream is what one producer sends over one connection.
    origin, slot, lane_number: the lane that it came by, and its number there.
    jobs: how many an activation made.
    """

    kind: int
    attempt: int
    point: int
    pid: int
    stream: int
    number: int
    origin: int
    slot: int
    lane_number: int
    at_ns: int

    @property
    def jobs(self) -> int:
        """How many jobs an activation made (of a SENT record)."""
        return self.lane_number


class LogWriter:
    """The writing end, in a member's process."""

    def __init__(self, directory: Path, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(directory / f"{name}.log", flags, 0o600)
        self._pid = os.getpid()

    def received(self, kind: int, point: int, stream: int, number: int, job: Job) -> None:
        """Write what a receiver has to say about a job."""
        identity = job.identity
        record = _RECORD.pack(
            kind,
            job.attempt,
            point,
            self._pid,
            stream,
            number,
            identity.origin_slot,
            identity.slot,
            identity.sequence,
            time.monotonic_ns(),
        )
        os.write(self._descriptor, record)

    def activated(self, kind: int, point: int, stream: int, number: int, jobs: int) -> None:
        """Write what a producer has to say about an activation."""
        now = time.monotonic_ns()
        record = _RECORD.pack(kind, 0, point, self._pid, stream, number, 0, 0, jobs, now)
        os.write(self._descriptor, record)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


class LogReader:
    """The reading end, of all logs of a scene."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}

    def new_entries(self) -> Iterator[tuple[str, list[Entry]]]:
        """Yield each log's name and what was added since the last call."""
        for path in sorted(self._directory.glob("*.log")):
            begin = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(begin)
                data = file.read()
            assert len(data) % _RECORD.size == 0, f"a torn record, file={path}, size={len(data)}"
            self._read[path] = begin + len(data)
            yield path.stem, [Entry._make(fields) for fields in _RECORD.iter_unpack(data)]

    def forget(self) -> None:
        """Empty the logs, which have been read; nobody may be writing now."""
        for path, read in list(self._read.items()):
            assert path.stat().st_size == read, f"still being written, file={path}"
            os.truncate(path, 0)
            self._read[path] = 0
