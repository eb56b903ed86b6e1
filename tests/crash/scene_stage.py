"""What the processes of a scene have in common: what each is told, and what jobs look like."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Final

EXIT_CODE: Final = 77

PLAIN: Final = 0
RAISE: Final = 1  # what a job wants of its handler; REFUSE: of its constructor
REFUSE: Final = 2
WISHES: Final = 3  # from here on: to take so many microseconds
RAISED_TEXT: Final = "as it was told to"

PRODUCER: Final = "producer"
CALLER: Final = "caller"
INTERRUPTED: Final = "interrupted"
SERVING: Final = "serving"


@dataclass(frozen=True, slots=True)
class Stage:
    """What every process of a scene is told.

    bus: its name.  directory: of logs and board.  state: of the dead letters.
    workers: how many; beside them receive `interrupted` members whose program is interrupted by
    jobs and `serving` ones that have an event loop, all with names.
    producers, callers: how many processes activate, and call.
    raise_share: of the jobs, whose handlers raise.
    """

    bus: str
    directory: str
    state: str
    workers: int
    producers: int
    lane_bytes: int
    slots: int
    seed: int
    stop_timeout_s: float
    handler_timeout_s: float | None
    raise_share: float
    log_level: str
    callers: int = 0
    interrupted: int = 0
    serving: int = 0

    def to_json(self) -> str:
        """Return the stage as an argument."""
        return json.dumps(asdict(self))

    @property
    def clients(self) -> list[str]:
        """The roles of the processes that the scene itself keeps alive; each has a number here."""
        return [
            *[PRODUCER] * self.producers,
            *[CALLER] * self.callers,
            *[INTERRUPTED] * self.interrupted,
            *[SERVING] * self.serving,
        ]

    @property
    def senders(self) -> int:
        """How many of the clients send, which come first."""
        return self.producers + self.callers


def worker_names(stage: Stage) -> list[str]:
    """Return what the workers are called, in order."""
    return [f"w-{number}" for number in range(1, stage.workers + 1)]


def receiver_names(stage: Stage) -> list[str]:
    """Return what all receivers with a name are called: workers, then the clients among them."""
    return [*worker_names(stage), *client_names(stage)]


def client_names(stage: Stage) -> dict[str, int]:
    """Return the clients that receive, by name, with their numbers."""
    return {
        f"{role}-{number}": number
        for number, role in enumerate(stage.clients)
        if number >= stage.senders
    }


def checksum(stream: int, number: int, wish: int, body: bytes) -> int:
    """Return what a job carries to be recognized by."""
    return zlib.crc32(body, zlib.crc32(b"%d %d %d" % (stream, number, wish)))


def say(line: str) -> None:
    """Tell the scene something; it may be gone."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())


def report(line: str) -> None:
    """Write to the scene's record of what its members said."""
    os.write(2, f"{time.monotonic():.3f} {line}\n".encode())


def obey_signals() -> None:
    """End by os._exit at SIGUSR2, and hang up at SIGUSR1."""
    signal.signal(signal.SIGUSR2, lambda number, frame: os._exit(EXIT_CODE))
    signal.signal(signal.SIGUSR1, hang_up)


def hang_up(number: int, frame: FrameType | None) -> None:
    """End this process's connections to a supervisor, without another word."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as found:
                    if str(found.getpeername()).endswith(".control"):
                        found.shutdown(socket.SHUT_RDWR)
