"""Worker processes: spawned by exec, watched by pidfd, replaced when they die.

What a dead worker leaves (slot, inbox, event ids, what is queued) stays as it is for its
replacement; nothing of it is touched here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from aembus.supervisor.configuration import Configuration, WorkerSpec
from aembus.supervisor.restarts import GiveUp, Restart, RestartHistory, decide

log = logging.getLogger("aembus")

SPAWN_AGAIN_S: Final = 0.5  # after a process could not be made: no descriptors, no memory


@dataclass(slots=True)
class Worker:
    """One worker and the process that is it now.

    handler_timeout_s: how long a handler may run; None: for ever.
    not_started: what it said when it could not start.
    again: when its replacement is to be spawned.
    """

    name: str
    spec: WorkerSpec
    handler_timeout_s: float | None = None
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    history: RestartHistory = field(default_factory=RestartHistory)
    not_started: str = ""
    finished_at_start: int = 0
    again: asyncio.TimerHandle | None = None


class Workers:
    """The workers of one supervisor.

    Args:
        configuration: what to spawn.
        finished: returns how many jobs a worker's inbox has finished, by its name.
        on_death: called at once when a worker's process is dead, before it is reaped, with the
            decision what happens next; may be called while the supervisor stops.
        on_restart: called when a replacement was spawned.
    """

    def __init__(
        self,
        configuration: Configuration,
        finished: Callable[[str], int],
        on_death: Callable[[Worker, Restart | GiveUp], None],
        on_restart: Callable[[Worker], None],
    ) -> None:
        self._configuration = configuration
        self._finished = finished
        self._on_death = on_death
        self._on_restart = on_restart
        self._workers = {
            name: Worker(name, spec, spec.handler_timeout_s or configuration.handler_timeout_s)
            for spec in configuration.workers
            for name in spec.worker_names()
        }
        self._stopping = False
        self.restarts = 0

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def __getitem__(self, name: str) -> Worker:
        return self._workers[name]

    def by_pid(self, pid: int) -> Worker | None:
        """Return the worker whose process has this PID now."""
        for worker in self._workers.values():
            if worker.process is not None and worker.process.pid == pid:
                return worker
        return None

    def spawn(self, worker: Worker) -> None:
        """Start the worker's process."""
        configuration = {
            "bus": self._configuration.bus,
            "name": worker.name,
            "entry_point": worker.spec.entry_point,
            "arguments": worker.spec.arguments,
            "path": self._configuration.path,
            "log_level": self._configuration.log_level,
        }
        worker.not_started = ""
        worker.finished_at_start = self._finished(worker.name)
        # A process group of its own: the terminal's Ctrl-C is for the supervisor.
        process = subprocess.Popen(
            [sys.executable, "-m", "aembus.worker"], stdin=subprocess.PIPE, process_group=0
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(configuration).encode())
        try:
            worker.pidfd = os.pidfd_open(process.pid)
            asyncio.get_running_loop().add_reader(worker.pidfd, self._on_process_gone, worker)
        except OSError:  # nobody would see it end
            process.kill()
            process.wait()
            if worker.pidfd >= 0:
                os.close(worker.pidfd)
                worker.pidfd = -1
            raise
        worker.process = process

    def _on_process_gone(self, worker: Worker) -> None:
        asyncio.get_running_loop().remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        worker.pidfd = -1
        process = worker.process
        assert process is not None
        progress = self._finished(worker.name) > worker.finished_at_start
        decision = decide(worker.history, time.monotonic(), progress=progress)
        # First take over, then reap: until it is reaped nobody else can get its PID.
        try:
            self._on_death(worker, decision)
        finally:
            process.wait()
            worker.process = None
        if self._stopping:
            return
        log.log(
            logging.WARNING if isinstance(decision, Restart) else logging.INFO,
            "worker %s (pid %d) ended, exit code %d, %s",
            worker.name,
            process.pid,
            process.returncode,
            decision,
        )
        if isinstance(decision, Restart):
            self._restart_later(worker, decision.delay_s)

    def _restart_later(self, worker: Worker, delay_s: float) -> None:
        worker.again = asyncio.get_running_loop().call_later(delay_s, self._restart, worker)

    def _restart(self, worker: Worker) -> None:
        if self._stopping:
            return
        try:
            self.spawn(worker)
        except OSError as error:
            log.error("worker %s cannot be started, tried again: %s", worker.name, error)
            self._restart_later(worker, SPAWN_AGAIN_S)
            return
        self.restarts += 1
        self._on_restart(worker)

    def running(self) -> list[Worker]:
        """Return the workers that have a process."""
        return [w for w in self._workers.values() if w.process is not None]

    def stop_restarting(self) -> None:
        """Replace nobody any more: the bus is about to stop."""
        self._stopping = True
        for worker in self:
            if worker.again is not None:
                worker.again.cancel()

    async def wait_until_gone(self, timeout_s: float) -> bool:
        """Wait until no worker has a process; False at the time-out."""
        deadline = time.monotonic() + timeout_s
        while self.running():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    def send_signal(self, worker: Worker, number: signal.Signals) -> None:
        """Send a signal to a worker's process, if it is still there."""
        if worker.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.pidfd, number)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every worker that still has a process."""
        for worker in self.running():
            log.warning("worker %s does not stop: %s", worker.name, number.name)
            self.send_signal(worker, number)
