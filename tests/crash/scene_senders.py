"""Who sends in a scene: producers activate, callers call, as long as the board wants.

Each writes down what it was told of every job.  A stream is what one sends over one connection.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any, Final

import aembus
from aembus.calls import NOBODY_REGISTERED
from tests.crash.scene_board import BUSY, MIXED, TRICKLE, Board
from tests.crash.scene_log import (
    ANSWERED,
    ASK,
    ASK_AGAIN,
    FAILED,
    FRAIL,
    NEWS,
    POINTS,
    PROBE,
    REFUSED,
    SENT,
    STAGED,
    TIMED_OUT,
    WORK,
    WRONG,
    LogWriter,
)
from tests.crash.scene_stage import (
    CALLER,
    PLAIN,
    RAISE,
    REFUSE,
    Stage,
    checksum,
    obey_signals,
    receiver_names,
    report,
)

BURST_MAX: Final = 48
PAUSE_S_MAX: Final = 0.012
BODY_BYTES_MAX: Final = 300
ROOM_S: Final = 0.2
SLOW_SHARE: Final = 0.3  # of jobs, so that many a kill meets one in hand
BREAK_S: Final = 0.02  # between two looks at a bus that is not there
CALL_S: Final = 15.0  # longer than any callee is away: a call that ends so was left hanging


class Sender:
    """One connection of one client that sends."""

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

    def _note_answer(self, event: aembus.Event, receiver: int, probe_round: int) -> None:
        self._board.report_answer(self._number, receiver, probe_round)

    def _probe(self, bus: aembus.Bus) -> None:
        self._probed = probe_round = self._board.probe_round
        for name in receiver_names(self._stage):
            job = (self._stream, probe_round, PLAIN, b"")
            point = f"{POINTS[PROBE]}.{name}"
            bus.activate(point, self._number, *job, checksum(*job), timeout=5.0)

    def _send_some(self, bus: aembus.Bus) -> None:
        choose = self._random
        mode = self._board.mode
        if mode == MIXED:
            mode = choose.choice((BUSY, TRICKLE))
        for _ in range(int(BURST_MAX ** choose.random()) if mode == BUSY else 1):
            self._send_one(bus)
            if self._board.quiet:
                return
        bus.poll(choose.random() * PAUSE_S_MAX)

    def _send_one(self, bus: aembus.Bus) -> None:
        choose = self._random
        point = self._choose_point()
        wish = PLAIN
        chance = choose.random()
        if chance < SLOW_SHARE:
            wish = choose.randrange(200, 4000)
        elif chance < SLOW_SHARE + self._stage.raise_share:
            wish = RAISE
        elif point == STAGED and chance > 1 - SLOW_SHARE:
            wish = REFUSE
        key = choose.randrange(64) if choose.random() < 0.5 else None
        body = choose.randbytes(choose.randrange(BODY_BYTES_MAX))
        number = self._sent + 1
        check = checksum(self._stream, number, wish, body)
        data = self._stream, number, wish, body, check
        try:
            kind, jobs = self._send(bus, point, key, data)
        except aembus.InboxFull:
            kind, jobs = REFUSED, 0
        self._log.activated(kind, point, self._stream, number, jobs)
        if kind != REFUSED:
            self._board.count_sent(self._number)
        self._sent = number

    def _choose_point(self) -> int:
        return self._random.choices((WORK, FRAIL, NEWS, STAGED), (70, 10, 10, 10))[0]

    def _send(
        self, bus: aembus.Bus, point: int, key: int | None, data: tuple[Any, ...]
    ) -> tuple[int, int]:
        # Returns what became of it, and the number of jobs.
        return SENT, bus.activate(POINTS[point], *data, key=key, timeout=ROOM_S)


class Caller(Sender):
    """One connection of one caller: it waits for each answer."""

    def _choose_point(self) -> int:
        return self._random.choice((ASK, ASK_AGAIN))

    def _send(
        self, bus: aembus.Bus, point: int, key: int | None, data: tuple[Any, ...]
    ) -> tuple[int, int]:
        called = bus.point(POINTS[point])
        try:
            answer = called.call(*data, key=key, timeout=CALL_S, redeliver=point == ASK_AGAIN)
        except aembus.CallTimeout:
            return TIMED_OUT, 1
        except aembus.CallFailed as error:
            return (REFUSED, 0) if error.error_type == NOBODY_REGISTERED else (FAILED, 1)
        return (ANSWERED if answer == data[-1] else WRONG), 1


def be_a_sender(stage: Stage, number: int) -> None:
    """Send over one connection after the other, as long as the board wants."""
    obey_signals()
    role = stage.clients[number]
    kind = Caller if role == CALLER else Sender
    board = Board(Path(stage.directory) / "board", len(stage.clients))
    log = LogWriter(Path(stage.directory), f"{role}-{number}")
    while not board.over:
        try:
            kind(stage, number, board, log).run()
        except (aembus.BusBroken, aembus.OpenError, aembus.ControlError) as error:
            if not isinstance(error, aembus.BusNotFound):
                report(f"{role} {number}: {type(error).__name__}: {error}")
        board.report_connected(number, 0)
        time.sleep(BREAK_S)
