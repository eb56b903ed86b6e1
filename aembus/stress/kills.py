"""Killing workers and producers at random moments of a stress run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from typing import Final, Protocol

from aembus.stress.ledger import Ledger
from aembus.stress.load import Producers
from aembus.stress.observer import Observer, WorkerProcess

NEVER: Final = 1 << 64  # more jobs than a worker can finish: it is dead, as all will know soon


class Recoveries:
    """How long it took until a killed worker's replacement got its first job.

    Args:
        ledgers: of all workers, by name.
    """

    def __init__(self, ledgers: Mapping[str, Ledger]) -> None:
        self._ledgers = ledgers
        self._killed_ns: dict[str, int] = {}
        self.found_s: list[float] = []

    def killed(self, worker: str) -> None:
        """Take note that this worker was killed a moment ago, and begin to wait for its return."""
        self.look()
        self._killed_ns[worker] = time.monotonic_ns()

    def look(self) -> None:
        """See who is back.  What is told does not depend on when this is called."""
        for worker, killed_ns in list(self._killed_ns.items()):
            first_ns = self._ledgers[worker].first_job_ns
            if first_ns > killed_ns:
                self.found_s.append((first_ns - killed_ns) / 1e9)
                del self._killed_ns[worker]

    @property
    def waiting(self) -> int:
        """How many killed workers have not got a job since."""
        return len(self._killed_ns)


class Saboteur(Protocol):
    """Who kills in a run, and what of it is reported."""

    workers_killed: int
    recoveries: Recoveries

    def tick(self, now_s: float) -> str | None:
        """Kill somebody if it is time; return whom.

        Args:
            now_s: seconds since the load began.
        """


class Killer:
    """Kills a random worker or producer about every `every_s` seconds, with SIGKILL.

    Only those at work are chosen: a producer that has joined, a worker whose process has finished a
    job.  Else a worker would be counted as one that cannot start, and held back.

    Args:
        every_s: the mean time between two kills; each is between half and one and a half of it.
        rng: where chance comes from.
        producers, observer, recoveries: the run's.
    """

    def __init__(
        self,
        every_s: float,
        rng: random.Random,
        producers: Producers,
        observer: Observer,
        recoveries: Recoveries,
    ) -> None:
        self._every_s = every_s
        self._random = rng
        self._producers = producers
        self._observer = observer
        self.recoveries = recoveries
        self._next_s = self._pause()
        self._first_seen: dict[str, tuple[int, int]] = {}  # worker → its pid, jobs finished by then
        self.workers_killed = 0

    def _pause(self) -> float:
        return self._every_s * self._random.uniform(0.5, 1.5)

    def tick(self, now_s: float) -> str | None:
        """Kill somebody if it is time; return whom."""
        self.recoveries.look()
        workers = self._at_work()
        if now_s < self._next_s:
            return None
        producers = [n for n in range(len(self._producers)) if self._producers.is_sending(n)]
        if not workers and not producers:
            return None  # all are coming up: next time
        self._next_s = now_s + self._pause()
        # First which kind: else a few workers would be left alone among many producers.
        if not workers or (producers and self._random.random() < 0.5):
            number = self._random.choice(producers)
            self._producers.kill(number)
            return f"producer {number}"
        worker = self._random.choice(workers)
        if not kill_worker(worker, self._observer):
            return None
        self.recoveries.killed(worker.name)
        self._first_seen[worker.name] = (worker.pid, NEVER)
        self.workers_killed += 1
        return f"worker {worker.name}"

    def _at_work(self) -> list[WorkerProcess]:
        found = []
        for worker in self._observer.workers():
            finished = self._observer.finished(worker.name)
            pid, before = self._first_seen.get(worker.name, (0, 0))
            if not worker.running or pid != worker.pid:
                self._first_seen[worker.name] = (worker.pid if worker.running else 0, finished)
            elif finished > before:
                found.append(worker)
        return found


def kill_worker(worker: WorkerProcess, observer: Observer) -> bool:
    """Kill a worker with SIGKILL; return False if it is another process by now."""
    try:
        descriptor = os.pidfd_open(worker.pid)
    except ProcessLookupError:
        return False
    try:
        # Its pid may be somebody else's by now: the registry says whether it is still its own.
        if worker not in observer.workers():
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
