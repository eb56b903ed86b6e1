"""The processes of a scene: supervisor, workers, producers, and a member that joins and leaves.

``python -m tests.crash.scene_actors supervisor|producer|guest STAGE [NUMBER]``; a worker's entry
point is `worker`.  Signals: SIGUSR2 ends a process at once, by ``os._exit``; SIGUSR1 ends its
connection to the supervisor and lets it live; SIGTERM lets a guest leave.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import aembus
from tests.crash import poisons
from tests.crash.scene_board import BUSY, MIXED, TRICKLE, Board
from tests.crash.scene_log import (
    BAD,
    BEGIN,
    END,
    FRAIL,
    GROUP,
    NEWS,
    POINTS,
    POISON,
    PROBE,
    RAISED,
    REFUSED,
    SENT,
    WORK,
    LogWriter,
)

EXIT_CODE: Final = 77
PR_SET_PDEATHSIG: Final = 1
BURST_MAX: Final = 48
PAUSE_S_MAX: Final = 0.012
BODY_BYTES_MAX: Final = 300
ROOM_S: Final = 0.2
SLOW_SHARE: Final = 0.3  # of jobs, so that many a kill meets one in hand
RAISE_SHARE: Final = 0.002
BREAK_S: Final = 0.02  # between two looks at a bus that is not there

PLAIN: Final = 0
RAISE: Final = 1  # what a job wants of its handler; above: to take so many microseconds
RAISED_TEXT: Final = "as it was told to"


@dataclass(frozen=True, slots=True)
class Stage:
    """What every process of a scene is told.

    bus: its name.  directory: of logs and board.  state: of the dead letters.
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
    log_level: str

    def to_json(self) -> str:
        """Return the stage as an argument."""
        return json.dumps(asdict(self))


def worker_names(stage: Stage) -> list[str]:
    """Return what the workers are called, in order."""
    return [f"w-{number}" for number in range(1, stage.workers + 1)]


def checksum(stream: int, number: int, wish: int, body: bytes) -> int:
    """Return what a job carries to be recognized by."""
    return zlib.crc32(body, zlib.crc32(b"%d %d %d" % (stream, number, wish)))


# --- receiving ------------------------------------------------------------------------------------


def handler(log: LogWriter, point: int) -> Callable[..., None]:
    """Return the handler that writes down what arrives at a point, and does what it is told."""

    def handle(
        event: aembus.Event, stream: int, number: int, wish: int, body: bytes, check: int
    ) -> None:
        job = event.job
        assert job is not None
        log.received(BEGIN, point, stream, number, job)
        if checksum(stream, number, wish, body) != check:
            log.received(BAD, point, stream, number, job)
        if wish == RAISE:
            log.received(RAISED, point, stream, number, job)
            raise ValueError(RAISED_TEXT)
        if wish > RAISE:
            time.sleep(wish / 1e6)  # work
        log.received(END, point, stream, number, job)

    return handle


def poisonous(log: LogWriter) -> Callable[..., object]:
    """Return the handler of jobs that kill their worker."""

    def handle(
        event: aembus.Event, stream: int, number: int, wish: int, body: bytes, check: int
    ) -> object:
        job = event.job
        assert job is not None
        log.received(BEGIN, POISON, stream, number, job)
        result = poisons.take(body.decode())
        log.received(END, POISON, stream, number, job)
        return result

    return handle


def receive(bus: aembus.Bus, log: LogWriter) -> None:
    """Register for what all receivers of a scene get."""
    bus.register(POINTS[WORK], handler(log, WORK), group=GROUP, name="work")
    bus.register(POINTS[FRAIL], handler(log, FRAIL), group=GROUP, name="frail", redeliver=False)
    bus.register(POINTS[NEWS], handler(log, NEWS), name="news")


def worker(bus: aembus.Bus) -> None:
    """Entry point of the workers."""
    stage = Stage(**json.loads(sys.argv[1]))
    obey_signals()
    log = LogWriter(Path(stage.directory), bus.member_name)
    me = worker_names(stage).index(bus.member_name)
    receive(bus, log)
    bus.register(POINTS[POISON], poisonous(log), group=GROUP, name="poison")
    note = handler(log, PROBE)

    def probe(event: aembus.Event, producer: int, *data: Any) -> None:
        note(event, *data)
        bus.activate(f"crash.answer.{producer}", me, data[1])

    bus.register(f"{POINTS[PROBE]}.{bus.member_name}", probe, name="probe")


def be_a_guest(stage: Stage, name: str) -> None:
    """Join, take jobs of the group as a worker does, and leave when told to."""
    leave = []
    signal.signal(signal.SIGTERM, lambda number, frame: leave.append(number))
    obey_signals()
    log = LogWriter(Path(stage.directory), name)
    with contextlib.suppress(aembus.BusBroken), aembus.connect(stage.bus) as bus:
        receive(bus, log)
        say("ready")
        while not leave:
            bus.poll(0.02)
    say("left")


# --- producing ------------------------------------------------------------------------------------


class Producer:
    """One connection of one producer."""

    def __init__(self, stage: Stage, number: int, board: Board, log: LogWriter) -> None:
        self._stage = stage
        self._number = number
        self._board = board
        self._log = log
        self._stream = board.next_stream(number)
        self._random = random.Random(f"{stage.seed} {self._stream}")
        self._sent = 0
        self._probed = 0

    def run(self) -> None:
        """Connect, and send as the board says."""
        board, me = self._board, self._number
        with aembus.connect(self._stage.bus) as bus:
            bus.register(f"crash.answer.{me}", self._note_answer, name="answer")
            board.report_connected(me, os.getpid())
            self._probed = board.probe_round  # the round before is no business of ours
            while not board.over:
                if self._probed != board.probe_round:
                    self._probe(bus)
                if board.quiet:
                    board.report_quiet(me)
                    bus.poll(0.02)
                else:
                    self._send_some(bus)

    def _note_answer(self, event: aembus.Event, worker: int, probe_round: int) -> None:
        self._board.report_answer(self._number, worker, probe_round)

    def _probe(self, bus: aembus.Bus) -> None:
        self._probed = probe_round = self._board.probe_round
        for name in worker_names(self._stage):
            job = (self._stream, probe_round, PLAIN, b"")
            point = f"{POINTS[PROBE]}.{name}"
            bus.activate(point, self._number, *job, checksum(*job), timeout=5.0)

    def _send_some(self, bus: aembus.Bus) -> None:
        choose = self._random
        mode = self._board.mode
        if mode == MIXED:
            mode = choose.choice((BUSY, TRICKLE))
        for _ in range(int(BURST_MAX ** choose.random()) if mode == BUSY else 1):
            self._send(bus)
            if self._board.quiet:
                return
        bus.poll(choose.random() * PAUSE_S_MAX)

    def _send(self, bus: aembus.Bus) -> None:
        choose = self._random
        point = choose.choices((WORK, FRAIL, NEWS), (80, 10, 10))[0]
        wish = PLAIN
        chance = choose.random()
        if chance < SLOW_SHARE:
            wish = choose.randrange(200, 4000)
        elif chance < SLOW_SHARE + RAISE_SHARE:
            wish = RAISE
        key = choose.randrange(64) if choose.random() < 0.5 else None
        body = choose.randbytes(choose.randrange(BODY_BYTES_MAX))
        number = self._sent + 1
        check = checksum(self._stream, number, wish, body)
        try:
            jobs = bus.activate(
                POINTS[point], self._stream, number, wish, body, check, key=key, timeout=ROOM_S
            )
        except aembus.InboxFull:
            self._log.activated(REFUSED, point, self._stream, number, 0)
        else:
            self._log.activated(SENT, point, self._stream, number, jobs)
            self._board.count_sent(self._number)
        self._sent = number


def be_a_producer(stage: Stage, number: int) -> None:
    """Send over one connection after the other, as long as the board wants."""
    obey_signals()
    board = Board(Path(stage.directory) / "board", stage.producers)
    log = LogWriter(Path(stage.directory), f"producer-{number}")
    while not board.over:
        try:
            Producer(stage, number, board, log).run()
        except (aembus.BusBroken, aembus.OpenError, aembus.ControlError) as error:
            if not isinstance(error, aembus.BusNotFound):
                report(f"producer {number}: {type(error).__name__}: {error}")
        board.report_connected(number, 0)
        time.sleep(BREAK_S)


# --- all of them ----------------------------------------------------------------------------------


def supervise(stage: Stage) -> None:
    """Be the supervisor, in this process; say "ready" and how it ended."""
    workers = [
        aembus.WorkerSpec("w", "tests.crash.scene_actors:worker", stage.workers, (stage.to_json(),))
    ]
    supervisor = aembus.Supervisor(
        stage.bus,
        workers=workers,
        slots=stage.slots,
        lane_bytes=stage.lane_bytes,
        state_directory=stage.state,
        stop_timeout_s=stage.stop_timeout_s,
        log_level=stage.log_level,
    )
    try:
        supervisor.run(on_ready=lambda: say("ready"))
    except aembus.AembusError as error:
        say(f"{type(error).__name__}: {error}")
        sys.exit(1)
    say("stopped")


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


def die_with_parent() -> None:
    """Be killed when the scene ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """Be one of a scene's processes."""
    die_with_parent()
    role, stage = arguments[0], Stage(**json.loads(arguments[1]))
    if role == "supervisor":
        import logging

        logging.basicConfig(
            level=stage.log_level, format="%(asctime)s %(levelname)s [supervisor] %(message)s"
        )
        supervise(stage)
    elif role == "producer":
        be_a_producer(stage, int(arguments[2]))
    else:
        be_a_guest(stage, arguments[2])


if __name__ == "__main__":
    main(sys.argv[1:])
