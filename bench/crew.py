"""The processes of one transport in one shape: started, led through rounds, and ended.

Between rounds they sleep, each on its connection to the bench, so that the crews of many
transports can be there at once and take turns.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Final, Self

from bench.arguments import interruptions_held
from bench.driver import Driver
from bench.work import ROUND_TRIP, Batch, batches
from bench.worker import QUIT, READY, ROUND, UP, run_worker

SPAWN: Final = multiprocessing.get_context("spawn")
SIGNALS: Final = (signal.SIGINT,)
ROUND_S_MAX: Final = 60.0
START_S_MAX: Final = 60.0
STOP_S_MAX: Final = 15.0


class CrewFailed(Exception):
    """A transport did not do its work; the message says what went wrong."""


class Crew:
    """One transport's processes; use it as a context manager.

    Args:
        driver: not yet open.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._stack = ExitStack()
        self._members: list[tuple[SpawnProcess, Connection]] = []
        self._senders: list[Connection] = []
        self._takers: list[Connection] = []
        self._broken = False

    def __enter__(self) -> Self:
        """Open the transport and start the processes.  Raises CrewFailed."""
        try:
            self._start()
        except BaseException:
            self._broken = True
            self.stop()
            raise
        return self

    def _start(self) -> None:
        shape = self.driver.shape
        senders, takers = ("producer", shape.producers), ("consumer", shape.consumers)
        if shape is ROUND_TRIP:
            senders, takers = ("pinger", 1), ("ponger", 1)
        resource_tracker.ensure_running()  # multiprocessing's; its start unblocks what we block
        with _environment(self.driver.environment):
            try:
                self.driver.open(self._stack)
            except Exception as error:
                raise CrewFailed(f"could not be opened: {type(error).__name__}: {error}") from error
            reader, self._go = SPAWN.Pipe(duplex=False)
            self._stack.enter_context(self._go)
            with reader:
                self._takers = [self._spawn(takers[0], n, reader) for n in range(takers[1])]
                self._expect(UP, self._takers, START_S_MAX)
                self._senders = [self._spawn(senders[0], n, reader) for n in range(senders[1])]
                self._expect(UP, self._senders, START_S_MAX)

    def _spawn(self, role: str, index: int, go: Connection) -> Connection:
        ours, theirs = SPAWN.Pipe()
        with theirs:
            process = SPAWN.Process(
                target=run_worker,
                args=(role, self.driver, index, theirs, go),
                name=f"{self.driver.name} {role} {index}",
                daemon=True,
            )
            # Ctrl-C and the like are for the bench alone: a worker never gets them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                with interruptions_held():  # a thread of ours may get them all the same
                    process.start()
                    self._members.append((process, ours))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return ours

    # --- rounds ---------------------------------------------------------------------------------

    def send(self, jobs: int, size: int) -> tuple[int, int]:
        """Let all producers send about `jobs` jobs; return how many were handled, in how many ns.

        The time runs from the start until the last consumer has handled its last job.
        Raises: CrewFailed, also if a job was lost, doubled or changed.
        """
        sent = batches(self.driver.shape, jobs, size)
        began = self._begin(list(sent))
        reports = self._collect(self._takers + self._senders, ROUND_S_MAX)
        expected = self.driver.expected(sent)
        found = (sum(r[1] for r in reports), sum(r[2] for r in reports))
        if found != expected:
            self._broken = True
            raise CrewFailed(f"count and sum of the jobs are {found}, expected {expected}")
        taken = reports[: len(self._takers)]
        if self.driver.shape.copies > 1 and len({report[1:] for report in taken}) > 1:
            self._broken = True
            raise CrewFailed(f"not every consumer got every job: {[r[1:] for r in taken]}")
        ends = [report[0] for report in taken or reports]
        return expected[0], max(ends) - began

    def exchange(self, exchanges: int, size: int) -> list[int]:
        """Let the two sides exchange so many jobs; return the times in ns.  Raises CrewFailed."""
        batch = batches(self.driver.shape, exchanges * 2, size)[0]
        self._begin([batch])
        (times,) = self._collect(self._senders, ROUND_S_MAX)
        if len(times) != len(batch.numbers):
            raise CrewFailed(f"{len(times)} answers came for {len(batch.numbers)} jobs")
        return list(times)

    def _begin(self, orders: list[Batch]) -> int:
        for taker in self._takers:
            taker.send(ROUND)
        for sender, order in zip(self._senders, orders, strict=True):
            sender.send(order)
        self._expect(READY, self._takers + self._senders, START_S_MAX)
        began = time.monotonic_ns()
        os.write(self._go.fileno(), b"g" * len(self._senders))
        return began

    def _expect(self, word: str, connections: list[Connection], timeout_s: float) -> None:
        said = self._collect(connections, timeout_s)
        if any(what != word for what in said):
            raise CrewFailed(f"a process said {said}, expected {word!r}")

    def _collect(self, connections: list[Connection], timeout_s: float) -> list[Any]:
        # One report from each, in the order of the connections.
        deadline = time.monotonic() + timeout_s
        reports: dict[Connection, Any] = {}
        while len(reports) < len(connections):
            missing: list[Any] = [each for each in connections if each not in reports]
            sentinels = {process.sentinel: process for process, _ in self._members}
            ready = wait([*missing, *sentinels], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._broken = True
                raise CrewFailed(
                    f"{len(missing)} of {len(connections)} processes did not report "
                    f"within {timeout_s:.0f} s"
                )
            for each in ready:
                if isinstance(each, Connection):
                    with contextlib.suppress(EOFError):
                        reports[each] = each.recv()
                        continue
                self._broken = True
                ended = [f"{p.name}: {p.exitcode}" for p, _ in self._members if not p.is_alive()]
                raise CrewFailed(f"ended in the middle, with exit codes: {', '.join(ended)}")
        return [reports[each] for each in connections]

    # --- the end --------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the processes, and remove what the transport made.  Idempotent."""
        if not self._broken:
            for _, connection in self._members:
                with contextlib.suppress(OSError):
                    connection.send(QUIT)
            self._join(STOP_S_MAX)
        for process, _ in self._members:
            process.terminate()
        self._join(1.0)
        for process, connection in self._members:
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
            connection.close()
        self._members.clear()
        self._stack.close()

    def _join(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for process, _ in self._members:
            process.join(max(0.0, deadline - time.monotonic()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._broken = self._broken or kind is not None
        self.stop()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
