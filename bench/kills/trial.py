"""One trial: members flood each other, one is killed, and the others are looked at.

Whether they went on is read from the board.  What counts is a job that was begun after the victim
was dead, and that a survivor has handled: what lay in the wire before says nothing.  Who has not
gone on after a second is looked at again: only who still stands after HANG_S is said to hang, so
that a machine that was busy elsewhere accuses nobody.  Others have their trials meanwhile.

Once they have gone on the producers stop, and the ledger is read.  If something is missing, they
send a few more: so that jobs which nobody handles any more are not taken for lost ones.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from aembus.stress import message
from bench.kills.board import FLOOD, JOBS_MAX, PROBE, PROBES, QUIET, Board, Role
from bench.kills.wires import Wire
from bench.worker import PR_SET_PDEATHSIG

SIZE: Final = 16  # of a job's body; with head and checksum about 48 bytes
START_S: Final = 30.0
PROMPT_S: Final = 1.0
HANG_S: Final = 5.0
QUIET_S: Final = 2.0  # without a job handled: what is missing then is lost
MOMENT_S: Final = 0.02  # the kill comes within this time, once all are at work
NAP_S: Final = 0.0005


class Verdict(StrEnum):
    """How the survivors did."""

    PROMPT = "prompt"
    SLOW = "slow"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one trial.

    recovery_s: from the kill to the first job that was begun after it and handled; None if hung.
    sent: jobs, before the ledger was read.
    missing: producer and number of each job that was sent and not handled.
    twice, damaged: how many jobs.  None if hung, like `missing`: nothing can be counted then.
    died: survivors that ended by themselves.
    """

    verdict: Verdict
    recovery_s: float | None
    sent: int
    missing: Sequence[tuple[int, int]] | None
    twice: int | None
    damaged: int | None
    died: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON knows it, with the number of the missing jobs."""
        missing = None if self.missing is None else len(self.missing)
        return {**asdict(self), "missing": missing}


class TrialFailed(Exception):
    """The members did not even come to work, so that nothing was tried."""


class Trial:
    """One trial; call `begin` once, then `look` until it returns an outcome, then `close`.

    Args:
        wire: what is put to the test.
        rng: says when the kill comes.
    """

    def __init__(self, wire: Wire, rng: random.Random) -> None:
        self._wire = wire
        self._scenario = wire.scenario
        self._random = rng
        self._stack = ExitStack()
        self._board = Board(wire.scenario)
        self._members: dict[int, tuple[Role, int]] = {}  # pid → which it is
        self._victim = 0
        self._killed_at = 0.0
        self._sent: list[int] = []
        self._recovery_s: float | None = None
        self._missing = -1
        self._missing_jobs: list[tuple[int, int]] = []
        self._changed_at = 0.0

    def begin(self) -> None:
        """Start the members, let them work, and kill one.  Raises TrialFailed."""
        self._wire.open(self._stack)
        self._start("consumer", self._scenario.consumers)
        self._start("producer", self._scenario.producers)
        self._board.phase = FLOOD
        self._until("jobs flow", self._board.flows)
        time.sleep(self._random.uniform(0, MOMENT_S))
        self._victim = next(p for p, which in self._members.items()
                            if which == (self._scenario.victim, 0))  # fmt: skip
        os.kill(self._victim, signal.SIGKILL)
        _reap(self._victim)
        self._killed_at = self._changed_at = time.monotonic()
        self._note_what_was_sent()
        if max(self._sent) > JOBS_MAX // 2:
            raise TrialFailed(f"the machine is too slow, jobs sent before the kill={self._sent}")

    def _start(self, role: Role, count: int) -> None:
        for number in range(count):
            pid = os.fork()
            if not pid:
                _be_a_member(self._wire, self._board, role, number)
            self._members[pid] = (role, number)
        self._until(f"every {role} is up", lambda: self._board.all_up(role))

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not condition():
            if time.monotonic() > deadline:
                raise TrialFailed(f"within {START_S:.0f} s it did not come to this: {what}")
            time.sleep(NAP_S)

    # --- after the kill ---------------------------------------------------------------------------

    @property
    def prompt(self) -> bool:
        """Whether the survivors have gone on already."""
        return self._recovery_s is not None

    def look(self) -> Outcome | None:
        """Look once, without waiting; return the outcome when it is clear."""
        now = time.monotonic()
        if self._recovery_s is None:
            if self._went_on():
                self._recovery_s = now - self._killed_at
                self._quieten(now)
        elif self._board.phase == QUIET:
            return self._look_at_the_quiet(now)
        elif self._has_answered_the_probe():
            return self._outcome()
        if self._board.phase != QUIET and now - self._changed_at > HANG_S:
            return self._outcome(hung=not (self._recovery_s and self._went_on()))
        return None

    def _quieten(self, now: float) -> None:
        self._board.phase = QUIET
        self._changed_at = now

    def _look_at_the_quiet(self, now: float) -> Outcome | None:
        missing = self._board.missing()
        if missing != self._missing:
            self._missing, self._changed_at = missing, now
        unchanged_s = now - self._changed_at
        if not all(self._board.has_stopped(p) for p in self._survivors("producer")):
            return self._outcome(hung=True) if unchanged_s > HANG_S else None
        if not missing:
            return self._outcome()
        if unchanged_s > QUIET_S:  # are they lost, or do the survivors stand still by now?
            self._note_what_was_sent()
            self._missing_jobs = self._board.missing_jobs()
            self._board.phase = PROBE
            self._changed_at = now
        return None

    def _has_answered_the_probe(self) -> bool:
        survivors = self._survivors("producer")
        all_sent = all(self._board.sent(p) == self._sent[p] + PROBES for p in survivors)
        return all_sent and self._went_on() and self._board.missing() <= self._missing

    def _note_what_was_sent(self) -> None:
        self._sent = [self._board.sent(p) for p in range(self._scenario.producers)]

    def _survivors(self, role: Role) -> list[int]:
        scenario = self._scenario
        count = scenario.producers if role == "producer" else scenario.consumers
        return list(range(1 if scenario.victim == role else 0, count))

    def _went_on(self) -> bool:
        # The first job after the last one sent may have been begun before the kill.
        return all(
            self._board.seen(consumer, producer) > self._sent[producer] + 1
            for consumer in self._survivors("consumer")
            for producer in self._survivors("producer")
        )

    def _outcome(self, *, hung: bool = False) -> Outcome:
        board, recovery_s = self._board, self._recovery_s
        verdict = Verdict.PROMPT
        if hung:
            verdict, recovery_s = Verdict.HUNG, None
        elif recovery_s is not None and recovery_s > PROMPT_S:
            verdict = Verdict.SLOW
        return Outcome(
            verdict,
            recovery_s,
            sum(self._sent),
            None if hung else self._missing_jobs,
            None if hung else board.twice(),
            None if hung else board.damaged(),
            sum(_has_ended(pid) for pid in self._members if pid != self._victim),
        )

    def close(self) -> None:
        """Kill the members, and remove what was made for this trial."""
        for pid in self._members:
            if pid != self._victim:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it ended by itself, and was seen to
                _reap(pid)
        self._members.clear()
        self._stack.close()
        self._board.close()


def _reap(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED)


def _has_ended(pid: int) -> bool:
    # It stays a zombie: its pid is still its own.
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


# --- in a member's process ------------------------------------------------------------------------


def _be_a_member(wire: Wire, board: Board, role: Role, number: int) -> None:
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        (_produce if role == "producer" else _consume)(wire, board, number)
        code = 0
    except Exception as error:
        print(f"{role} {number} of {wire.driver.name}: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _produce(wire: Wire, board: Board, producer: int) -> None:
    write, put = message.Writer(producer, SIZE).write, wire.producer()
    board.producer_up(producer)
    while board.phase != FLOOD:
        time.sleep(NAP_S)
    number = 0

    def send() -> None:
        nonlocal number
        number += 1
        put(write(0, number, 0))
        board.count_sent(producer, number)

    while board.phase == FLOOD and number < JOBS_MAX - PROBES - 1:
        send()
    board.stopped(producer)
    while board.phase != PROBE:
        time.sleep(NAP_S)
    for _ in range(PROBES):
        send()
    while True:  # until it is killed
        signal.pause()


def _consume(wire: Wire, board: Board, consumer: int) -> None:
    def handle(head: bytes, checksum: int, body: bytes) -> None:
        found = message.read(head, checksum, body)
        if found is None:
            board.count_damaged(consumer)
        else:
            board.handle(consumer, found.producer, found.sequence)

    wire.consume(handle, lambda: board.consumer_up(consumer))
