"""The watchdog: ends a worker whose handler runs for longer than it may.

Off unless a worker has a `handler_timeout_s`: slow is not dead.  A worker is looked at a few times
in that period, in shared memory, which costs it nothing.  The same jobs in hand and nothing
finished since the last look means that one handler has run all that time.  Its process gets
SIGABRT, for which it dumps its stack, and 2 seconds later SIGKILL; its job counts a death.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass
from typing import Final

from aembus.shm.in_hand import InHand
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import Member, Members
from aembus.supervisor.workers import Worker, Workers

log = logging.getLogger("aembus")

LOOKS: Final = 8  # in a time-out: it may be noticed so much late
PERIOD_S_MIN: Final = 0.02
PERIOD_S_MAX: Final = 1.0
KILL_S: Final = 2.0  # from SIGABRT, for the dump, to SIGKILL


@dataclass(slots=True)
class _Look:
    """What was seen last, and for how long it has been so."""

    incarnation: int
    finished: int
    in_hand: list[InHand]
    age_s: float = 0.0


class Watchdog:
    """Watches the workers that have a time-out.

    Args: the supervisor's parts.
    """

    def __init__(self, members: Members, inboxes: Inboxes, workers: Workers) -> None:
        self._members = members
        self._inboxes = inboxes
        self._workers = workers
        self._looks: dict[str, _Look] = {}

    async def run(self) -> None:
        """Watch for ever; nothing to do if no worker has a time-out."""
        timeouts = [w.handler_timeout_s for w in self._workers if w.handler_timeout_s is not None]
        if not timeouts:
            return
        period_s = min(max(min(timeouts) / LOOKS, PERIOD_S_MIN), PERIOD_S_MAX)
        while True:
            await asyncio.sleep(period_s)
            for worker in self._workers.running():
                if worker.handler_timeout_s is not None:
                    # Looks are counted and no clock is read: if everybody was stopped for an hour
                    # (a paused container), no handler has run for an hour.
                    self._look_at(worker, worker.handler_timeout_s, period_s)

    def _look_at(self, worker: Worker, timeout_s: float, period_s: float) -> None:
        member = self._members.named(worker.name)
        if member is None or member.connection is None:
            self._looks.pop(worker.name, None)
            return
        now = _Look(
            member.incarnation,
            self._inboxes.finished(member.inbox_id),
            self._inboxes.in_hand(member.inbox_id),
        )
        last = self._looks.get(worker.name)
        self._looks[worker.name] = now
        if last is None or not now.in_hand:
            return
        if (now.incarnation, now.finished, now.in_hand) == (
            last.incarnation,
            last.finished,
            last.in_hand,
        ):
            now.age_s = last.age_s + period_s
            if last.age_s < timeout_s <= now.age_s:  # once
                self._end(worker, member, now, timeout_s)

    def _end(self, worker: Worker, member: Member, look: _Look, timeout_s: float) -> None:
        job = look.in_hand[0]
        event = self._members.registration(job.event_id)
        log.error(
            "worker %s (pid %d) is in one handler for longer than handler_timeout_s=%g; it gets "
            "SIGABRT: point=%r, event=%r, attempt=%d",
            worker.name,
            member.pid,
            timeout_s,
            event.point if event else None,
            event.name if event else None,
            job.attempts,
        )
        self._workers.send_signal(worker, signal.SIGABRT)
        asyncio.get_running_loop().call_later(KILL_S, self._kill, worker, worker.process)

    def _kill(self, worker: Worker, process: object) -> None:
        if process is not None and worker.process is process:
            log.error("worker %s does not end: SIGKILL", worker.name)
            self._workers.send_signal(worker, signal.SIGKILL)
