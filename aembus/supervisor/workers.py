"""Worker processes: spawned by exec, watched by pidfd, replaced when they die.

What a dead worker leaves (slot, inbox, event ids, what is queued) stays as it is for its
replacement; nothing of it is touched here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aembus.supervisor.configuration import Configuration, WorkerSpec
from aembus.supervisor.launching import Launched, launch
from aembus.supervisor.restarts import GiveUp, Restart, RestartHistory, decide
from aembus.supervisor.spare import Spare

log = logging.getLogger("aembus")

PROGRAM: Final = "aembus.worker"
COME_UP_S: Final = 10.0  # after so long it is told what the first start waits for
SPAWN_AGAIN_S: Final = 0.5  # after a process could not be made: no descriptors, no memory


@dataclass(slots=True)
class Successor:
    """A process that is to take a worker's place, or is already in it but not up yet.

    gone: done when the process is dead; not reaped yet.
    admitted: it has the worker's slot and inbox, and the worker's process is suspended.
    """

    process: subprocess.Popen[bytes]
    pidfd: int
    gone: asyncio.Future[None]
    not_started: str = ""
    admitted: bool = False


@dataclass(slots=True)
class Worker:
    """One worker and the process that is it now.

    program: the module that its process runs.
    handler_timeout_s: how long a handler may run; None: for ever.
    not_started: what it said when it could not start.
    again: when its replacement is to be spawned.
    successor: the process of new code that is to take its place, while there is one.
    on_trial: done when it is up (empty), or could not come up (why); None once it was up.
    """

    name: str
    spec: WorkerSpec
    handler_timeout_s: float | None = None
    program: str = PROGRAM
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    successor: Successor | None = None
    on_trial: asyncio.Future[str] | None = None
    history: RestartHistory = field(default_factory=RestartHistory)
    not_started: str = ""
    finished_at_start: int = 0
    again: asyncio.TimerHandle | None = None


class Workers:
    """The workers of one supervisor.

    Args:
        configuration: how to spawn.
        specs: what to spawn.
        module: of their processes.
        finished: returns how many jobs a worker's inbox has finished, by its name.
        on_death: called at once when a worker's process is dead, before it is reaped, with the
            decision what happens next; may be called while the supervisor stops.
        on_restart: called when a replacement was spawned.
    """

    def __init__(
        self,
        configuration: Configuration,
        specs: Sequence[WorkerSpec],
        module: str,
        finished: Callable[[str], int],
        on_death: Callable[[Worker, Restart | GiveUp], None],
        on_restart: Callable[[Worker], None],
    ) -> None:
        self._configuration = configuration
        self._finished = finished
        self._on_death = on_death
        self._on_restart = on_restart
        self._module = module
        self._spare = Spare(module, wanted=configuration.spare)
        self._specs = {spec.name: spec for spec in specs}
        self._workers = {
            name: self._make(name, spec) for spec in specs for name in spec.worker_names()
        }
        self._retired: dict[int, int] = {}  # pidfds of processes that were replaced, by pid
        self._stopping = False
        self.restarts = 0

    def _make(self, name: str, spec: WorkerSpec) -> Worker:
        timeout_s = spec.handler_timeout_s or self._configuration.handler_timeout_s
        return Worker(name, spec, timeout_s, program=self._module)

    def kinds(self) -> list[str]:
        """Return the names of the kinds of workers."""
        return list(self._specs)

    def of_kind(self, kind: str) -> list[Worker]:
        """Return the workers of a kind, by number."""
        return [w for w in self._workers.values() if w.spec.name == kind]

    def add(self, kind: str) -> Worker:
        """Add a worker of a kind behind the last one; it is not spawned yet."""
        spec = self._specs[kind]
        last = max((int(w.name.rpartition("-")[2]) for w in self.of_kind(kind)), default=0)
        worker = self._make(f"{kind}-{last + 1}", spec)
        self._workers[worker.name] = worker
        return worker

    def remove(self, worker: Worker) -> None:
        """Forget a worker; its process, if it has one, ends by itself and is reaped then."""
        del self._workers[worker.name]
        if worker.again is not None:
            worker.again.cancel()
        self._retire(worker)

    def _retire(self, worker: Worker) -> None:
        process, worker.process = worker.process, None
        if process is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(worker.pidfd)
            loop.add_reader(worker.pidfd, self._reap, process, worker.pidfd)
            self._retired[process.pid] = worker.pidfd

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def __getitem__(self, name: str) -> Worker:
        return self._workers[name]

    def start(self, worker: Worker) -> None:
        """Start one of no kind, which is replaced when it dies, also if it has never come up."""
        worker.history.ever_ready = True
        self._workers[worker.name] = worker
        try:
            self.spawn(worker)
        except OSError:
            del self._workers[worker.name]
            raise

    def by_pid(self, pid: int) -> Worker | None:
        """Return the worker whose process has this PID now."""
        for worker in self._workers.values():
            if worker.process is not None and worker.process.pid == pid:
                return worker
        return None

    def spawn(self, worker: Worker) -> None:
        """Start the worker's process."""
        self._begin(worker, launch(worker.program))

    def _begin(self, worker: Worker, launched: Launched) -> None:
        worker.not_started = ""
        worker.finished_at_start = self._finished(worker.name)
        launched.configure(self._configuration_of(worker))
        self._take_on(worker, launched)
        pid = launched.process.pid
        asyncio.get_running_loop().call_later(COME_UP_S, self._say_not_up, worker, pid)

    def came_up(self, worker: Worker) -> None:
        """Take note that a worker's process has come up."""
        worker.history.ever_ready = True
        self._spare.prepare(worker.program)

    @property
    def spare_pid(self) -> int | None:
        """The PID of the process that is to replace the next worker that dies, if there is one."""
        return self._spare.pid

    @staticmethod
    def _say_not_up(worker: Worker, pid: int) -> None:
        process = worker.process
        if not worker.history.ever_ready and process is not None and process.pid == pid:
            log.warning(
                "worker %s (pid %d) has not come up in %g s; its entry point %s must return, or "
                "run the bus",
                *(worker.name, pid, COME_UP_S, worker.spec.entry_point),
            )

    def spawn_successor(self, worker: Worker) -> Successor:
        """Start a process that is to take the worker's place."""
        launched = launch(worker.program)  # a spare may have begun before the new code was there
        launched.configure(self._configuration_of(worker))
        loop = asyncio.get_running_loop()
        successor = worker.successor = Successor(*launched, loop.create_future())
        loop.add_reader(successor.pidfd, self._on_successor_gone, successor)
        return successor

    @staticmethod
    def _on_successor_gone(successor: Successor) -> None:
        asyncio.get_running_loop().remove_reader(successor.pidfd)
        if not successor.gone.done():
            successor.gone.set_result(None)

    def install(self, worker: Worker) -> None:
        """Make the successor the worker's process; the one before ends, and is reaped then."""
        successor = worker.successor
        assert successor is not None
        self._retire(worker)
        if not successor.gone.done():
            asyncio.get_running_loop().remove_reader(successor.pidfd)
        worker.successor = None
        worker.not_started = ""
        worker.finished_at_start = self._finished(worker.name)
        self._take_on(worker, Launched(successor.process, successor.pidfd))
        self._spare.renew()

    def discard(self, worker: Worker) -> None:
        """End the successor: the worker keeps its process."""
        successor, worker.successor = worker.successor, None
        assert successor is not None
        if not successor.gone.done():
            asyncio.get_running_loop().remove_reader(successor.pidfd)
            successor.gone.set_result(None)
        successor.process.kill()
        successor.process.wait()
        os.close(successor.pidfd)
        if successor.admitted and worker.process is None:  # it has died while it was suspended
            self._replace(worker)

    def _reap(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        process.wait()
        self._retired.pop(process.pid, None)

    def end_retired(self, pid: int) -> None:
        """Kill a process that was replaced, if it has not ended by itself."""
        pidfd = self._retired.get(pid)
        if pidfd is not None:
            log.warning("the replaced process %d does not end: SIGKILL", pid)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _configuration_of(self, worker: Worker) -> dict[str, Any]:
        return {
            "bus": self._configuration.bus,
            "name": worker.name,
            "entry_point": worker.spec.entry_point,
            "arguments": worker.spec.arguments,
            "count": worker.spec.count,
            "path": self._configuration.path,
            "log_level": self._configuration.log_level,
        }

    def _take_on(self, worker: Worker, launched: Launched) -> None:
        try:
            asyncio.get_running_loop().add_reader(launched.pidfd, self._on_process_gone, worker)
        except OSError:
            launched.end()
            raise
        worker.process, worker.pidfd = launched

    def _on_process_gone(self, worker: Worker) -> None:
        asyncio.get_running_loop().remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        worker.pidfd = -1
        process = worker.process
        assert process is not None
        if worker.successor is not None and worker.successor.admitted:
            log.warning("worker %s (pid %d) died while it was suspended", worker.name, process.pid)
            process.wait()
            worker.process = None
            return
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

    def _replace(self, worker: Worker) -> None:
        decision = decide(worker.history, time.monotonic(), progress=True)
        self._on_death(worker, decision)
        if isinstance(decision, Restart) and not self._stopping:
            self._restart_later(worker, decision.delay_s)

    def _restart_later(self, worker: Worker, delay_s: float) -> None:
        worker.again = asyncio.get_running_loop().call_later(delay_s, self._restart, worker)

    def _restart(self, worker: Worker) -> None:
        if self._stopping:
            return
        try:
            self._begin(worker, self._spare.take(worker.program) or launch(worker.program))
        except OSError as error:
            log.error("worker %s cannot be started, tried again: %s", worker.name, error)
            self._restart_later(worker, SPAWN_AGAIN_S)
            return
        self.restarts += 1
        self._on_restart(worker)

    def running(self) -> list[Worker]:
        """Return the workers that have a process."""
        return [w for w in self._workers.values() if w.process is not None]

    @property
    def retired(self) -> int:
        """How many processes that are no worker's any more have not ended yet."""
        return len(self._retired)

    def stop_restarting(self) -> None:
        """Replace nobody any more: the bus is about to stop."""
        self._stopping = True
        self._spare.close()
        for worker in self:
            if worker.again is not None:
                worker.again.cancel()
        for pid in list(self._retired):
            self.end_retired(pid)

    async def wait_until_gone(self, timeout_s: float) -> bool:
        """Wait until no worker has a process; False at the time-out."""
        deadline = time.monotonic() + timeout_s
        while self.running() or self._retired:
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
