"""`Supervisor`: a bus to run, in this process or in a child."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO, final

from aembus.control import error_from_frame
from aembus.errors import SupervisorError
from aembus.hosting import event_loop
from aembus.hosting.versions import STOP_S_MAX
from aembus.shm import layout
from aembus.supervisor.configuration import Configuration, ServiceSpec, WorkerSpec
from aembus.supervisor.core import run_supervisor
from aembus.supervisor.summary import Summary

log = logging.getLogger("aembus")

READY_LINE: Final = "ready"
STOP_MARGIN_S: Final = 5.0


@final
class Supervisor:
    """Owns a bus: creates everything shared, spawns the workers, hosts the services.

    Args:
        bus: the bus's name, 1 to 40 of letters, digits, '-' and '_'.
        services: names of services to load, "timer", "tcp", an entry point, "module:Class"; or
            ServiceSpec to have one run in processes of its own.
        workers: what to spawn.
        slots: how many members there may be at once, the supervisor included.
        lane_bytes: size of the ring between two members, a power of two; a job takes at most
            half of it.
        registry_bytes: how long the registry's document may get.
        stop_timeout_s: how long stopping may take before workers are aborted: half of it to deliver
            what is queued, the other half to finish the job in hand.
        handler_timeout_s: for how long a handler may run.  A worker whose handler runs longer gets
            SIGABRT, for which it dumps its stack to standard error, and 2 seconds later SIGKILL;
            it is replaced, and the job counts a death.  None: for ever.
        state_directory: where dead letters are kept, of this bus alone; default
            $XDG_STATE_HOME/aembus/<bus>.
        log_level: of the supervisor's child and of the workers.
        spare: keep one process that has imported aembus and waits, on no bus, to be the next
            replacement: a worker that dies is back in a quarter of the time, for some 10 MB.

    Raises: SupervisorError, OpenError for values that do not fit.
    """

    def __init__(
        self,
        bus: str,
        *,
        services: Sequence[str | ServiceSpec] = (),
        workers: Sequence[WorkerSpec] = (),
        slots: int = layout.SLOTS_DEFAULT,
        lane_bytes: int = layout.LANE_BYTES_DEFAULT,
        registry_bytes: int = layout.REGISTRY_HALF_BYTES_DEFAULT,
        stop_timeout_s: float = 2.0,
        handler_timeout_s: float | None = None,
        state_directory: str | Path | None = None,
        log_level: str = "WARNING",
        spare: bool = True,
    ) -> None:
        _check_each("services", services, (str, ServiceSpec), '["timer"]')
        _check_each("workers", workers, (WorkerSpec,), '[WorkerSpec("calls", "app:main")]')
        specs = [s if isinstance(s, ServiceSpec) else ServiceSpec(s) for s in services]
        self._configuration = Configuration(
            bus=bus,
            workers=tuple(workers),
            services=tuple(spec.service for spec in specs if not spec.hosts),
            hosts=tuple(spec.processes() for spec in specs if spec.hosts),
            slots=slots,
            lane_bytes=lane_bytes,
            registry_bytes=registry_bytes,
            stop_timeout_s=stop_timeout_s,
            handler_timeout_s=handler_timeout_s,
            state_directory=None if state_directory is None else str(state_directory),
            path=tuple(p or str(Path.cwd()) for p in sys.path),
            log_level=log_level,
            spare=spare,
        )
        self._child: subprocess.Popen[str] | None = None

    def run(self, on_ready: Callable[[], None] = lambda: None) -> Summary:
        """Run the bus in this process until SIGINT, SIGTERM or a stop request.

        It runs in an event loop of uvloop's where that is installed (AEMBUS_LOOP=asyncio|uvloop
        says otherwise), and raises the process's soft limit of descriptors to the hard one.

        Args:
            on_ready: called when every worker has come up.

        Returns what it came to.  Raises: BusAlreadyRunning, OutOfSharedMemory, ServiceLoadError,
        SupervisorError if a worker never came up; nothing is left behind in any case.
        """
        event_loop.raise_descriptor_limit()
        return event_loop.run(run_supervisor(self._configuration, on_ready))

    @property
    def pid(self) -> int:
        """The PID of the child that runs the bus, inside the ``with`` block."""
        if self._child is None:
            raise SupervisorError("the supervisor runs inside its with block only")
        return self._child.pid

    def __enter__(self) -> Self:
        """Start the bus in a child process and return when every worker has come up.

        Standard output and error are the child's and the workers', too.
        """
        read_end, write_end = os.pipe()
        with open(read_end, encoding="utf-8") as readiness:
            try:
                child = self._child = subprocess.Popen(
                    [sys.executable, "-m", "aembus.supervisor", str(write_end)],
                    stdin=subprocess.PIPE,
                    text=True,
                    process_group=0,
                    pass_fds=[write_end],
                )
            finally:
                os.close(write_end)
            try:
                said = self._start(child, readiness)
            except BaseException:  # Ctrl-C: whoever handles that is to find no bus
                self._close_child()
                raise
        if said != READY_LINE:
            self._close_child()
            kind, _, text = said.partition(" ")
            if not kind:
                raise SupervisorError(f"the supervisor ended, exit code {child.returncode}")
            raise error_from_frame({"type": kind, "text": text})
        return self

    def _start(self, child: subprocess.Popen[str], readiness: TextIO) -> str:
        configuration = dataclasses.replace(self._configuration, ends_with_parent=True)
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(configuration.to_json() + "\n")
            child.stdin.flush()
        return readiness.readline().strip()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the bus and wait for its end."""
        child = self._child
        if child is not None:
            child.terminate()
            self._close_child()

    def _close_child(self) -> None:
        child = self._child
        assert child is not None and child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        # What it may take: workers and hosts, then each service by itself.  Killed before that it
        # would take along what it was about to keep.
        services = len(self._configuration.services) * 2 * STOP_S_MAX
        try:
            child.wait(3 * self._configuration.stop_timeout_s + services + STOP_MARGIN_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self._child = None


def run_child(readiness: int) -> int:
    """Be the child of a ``with supervisor`` block, which has its configuration on stdin.

    Args:
        readiness: the descriptor on which it says, in one line, that it is ready, or why not.
    """
    os.set_inheritable(readiness, False)
    configuration = Configuration.from_json(sys.stdin.readline())
    logging.basicConfig(
        level=configuration.log_level,
        format="%(asctime)s %(levelname)s [supervisor] %(message)s",
    )
    sys.path[:0] = [p for p in configuration.path if p not in sys.path]
    said = threading.Event()

    def say(line: str) -> None:
        if not said.is_set():
            said.set()
            with contextlib.suppress(BrokenPipeError):
                os.write(readiness, (line + "\n").encode("utf-8", "backslashreplace"))

    try:
        event_loop.raise_descriptor_limit()
        event_loop.run(run_supervisor(configuration, lambda: say(READY_LINE)))
    except Exception as error:
        if said.is_set():
            log.error("%s: %s", type(error).__name__, error)
        say(f"{type(error).__name__} {error}".replace("\n", " "))
        return 1
    return 0


def _check_each(what: str, given: object, kinds: tuple[type, ...], example: str) -> None:
    # A str is a sequence of str, and one thing is easily given where a list is wanted.
    ones = given if isinstance(given, Sequence) and not isinstance(given, str) else [None]
    if not all(isinstance(one, kinds) for one in ones):
        raise SupervisorError(f"{what} is a list, for instance {example}, {what}={given!r}")
