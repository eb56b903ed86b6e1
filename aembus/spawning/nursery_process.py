"""The spawn host's end of a nursery: starts it, gives it tasks, and hears what comes of them.

Everything here runs in the spawn host's event loop.  A nursery never changes what it has imported:
for other modules, or newer ones, another nursery is started beside it, and this one ends when its
last child has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final, Protocol

from aembus.control import FrameReader, pack_frame
from aembus.spawning.child import Task
from aembus.spawning.outcome import MESSAGE_BYTES_MAX, Outcome, OutcomeReader
from aembus.spawning.recipe import Recipe

log = logging.getLogger("aembus")

IMPORT_S_MAX: Final = 20.0


class Parent(Protocol):
    """Who is told what becomes of tasks."""

    def on_begun(self, number: int, pid: int, begun_ns: int) -> None:
        """A child was forked for the task, at `begun_ns` on CLOCK_MONOTONIC."""

    def on_outcome(self, number: int, outcome: Outcome) -> None:
        """The child has sent what came of its task."""

    def on_ended(self, number: int, exit_code: int) -> None:
        """The child has ended; its outcome, if it has sent any, was told before."""

    def on_not_begun(self, number: int, text: str) -> None:
        """No child could be forked for the task."""

    def on_nursery_lost(self, nursery: NurseryProcess) -> None:
        """The nursery takes no more tasks; its children may run still."""

    def on_nursery_gone(self, nursery: NurseryProcess) -> None:
        """The nursery has died, and every child of it is gone."""


class NurseryUseless(Exception):
    """A nursery could not be brought up.

    module: the one at fault, empty if it is not known; threads: it starts threads; died: the
    nursery did, perhaps for another reason.
    """

    def __init__(
        self, text: str, module: str = "", *, threads: bool = False, died: bool = False
    ) -> None:
        super().__init__(text)
        self.module = module
        self.threads = threads
        self.died = died


class NurseryProcess(asyncio.Protocol):
    """One nursery.

    Args:
        parent: is told what becomes of tasks.
        late: names of modules that are left to the children.
        name: of the spawn host, for log lines.
        inherited: a descriptor that the nursery and its children shall keep; -1: none.

    numbers: the tasks whose children have not ended.
    """

    def __init__(
        self, parent: Parent, late: Sequence[str] = (), name: str = "", inherited: int = -1
    ) -> None:
        self._parent = parent
        self.late = tuple(late)
        self._frames = FrameReader()
        self._outcomes = OutcomeReader()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._checked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._lost = False
        self._gone = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._retired = False
        self._importing = ""
        self.numbers: set[int] = set()
        control, its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control = control
        # Messages of the children's are kept apart, so they may share it.
        self._outcome_socket, its_outcomes = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )
        theirs = [its_control.fileno(), its_outcomes.fileno()]
        command = [sys.executable, "-m", "aembus.spawning.nursery", *map(str, theirs)]
        level = logging.getLevelName(log.getEffectiveLevel())
        try:
            self.process = subprocess.Popen(
                [*command, str(os.getpid()), level, name, str(inherited)],
                stdin=subprocess.DEVNULL,
                pass_fds=[*theirs, *([inherited] if inherited >= 0 else [])],
            )
        except BaseException:
            control.close()
            self._outcome_socket.close()
            raise
        finally:
            its_control.close()
            its_outcomes.close()
        self._outcome_socket.setblocking(False)
        self._reading = asyncio.get_running_loop()
        self._reading.add_reader(self._outcome_socket, self._read_outcomes)

    async def start(self, modules: Sequence[tuple[str, str]], path: Sequence[str]) -> None:
        """Have it import what handlers need.

        Raises: NurseryUseless; the nursery is gone then.
        """
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: self, sock=self._control)
        self._transport = transport
        self._say({"op": "import", "modules": modules, "path": path, "late": self.late})
        try:
            async with asyncio.timeout(IMPORT_S_MAX):
                await self._ready
        except TimeoutError:
            raise NurseryUseless(
                f"importing takes longer than {IMPORT_S_MAX:.0f} s; a program that others import "
                'begins its work under `if __name__ == "__main__":`, '
                f"module={self._importing!r}",
                self._importing,
            ) from None
        finally:
            if not self._ready.done() or self._ready.cancelled() or self._ready.exception():
                await self.end()

    async def check(self, event_id: int, recipe: Recipe, *, fresh: bool) -> tuple[bool, str]:
        """Say whether it can run an event, and why its handler cannot be had.

        Args:
            fresh: not, if a file that it has imported was changed since.

        Raises: NurseryUseless if it dies.
        """
        if self._lost:
            raise self._useless()
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._checked[event_id] = answer
        frame = {"op": "check", "event_id": event_id, "recipe": recipe.to_frame()}
        self._say({**frame, "late": self.late, "fresh": fresh})
        checked = await answer
        if self._gone.is_set():  # which was heard before this answer
            raise self._useless()
        return checked["fits"], checked["error"]

    def begin(self, task: Task) -> None:
        """Have a child forked for a task."""
        self.numbers.add(task.number)
        self._say({"op": "task", "task": task})

    def retire(self) -> None:
        """Let it end when its last child has."""
        self._retired = True
        self._end_if_retired()

    def _end_if_retired(self) -> None:
        if self._retired and not self.numbers and self._transport is not None:
            self._transport.close()

    async def end(self) -> None:
        """Kill it, and its children with it; return when all are gone."""
        self.process.send_signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()
        else:
            self._control.close()
        await asyncio.to_thread(self.process.wait)
        if self._transport is not None:
            await self._gone.wait()
        else:
            self._forget_outcomes()

    def _say(self, frame: dict[str, Any]) -> None:
        if self._transport is not None:
            self._transport.write(pack_frame(frame))

    # --- what it says ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        for frame in self._frames.feed(data):
            getattr(self, f"_on_{frame['op']}")(frame)

    def _on_importing(self, frame: dict[str, Any]) -> None:
        self._importing = frame["module"]

    def _on_ready(self, frame: dict[str, Any]) -> None:
        self._importing = ""
        if not self._ready.done():
            self._ready.set_result(None)

    def _on_useless(self, frame: dict[str, Any]) -> None:
        if not self._ready.done():
            text, module = frame["text"], frame["module"]
            self._ready.set_exception(NurseryUseless(text, module, threads=frame["threads"]))

    def _on_checked(self, frame: dict[str, Any]) -> None:
        answer = self._checked.pop(frame["event_id"], None)
        if answer is not None and not answer.done():
            answer.set_result(frame)

    def _on_begun(self, frame: dict[str, Any]) -> None:
        self._parent.on_begun(frame["number"], frame["pid"], frame["begun_ns"])

    def _on_not_begun(self, frame: dict[str, Any]) -> None:
        self.numbers.discard(frame["number"])
        self._parent.on_not_begun(frame["number"], frame["text"])

    def _on_ended(self, frame: dict[str, Any]) -> None:
        if not self._gone.is_set():
            self._read_outcomes()  # what the child has sent was sent before its end
        number = frame["number"]
        self._outcomes.forget(number)
        self.numbers.discard(number)
        self._parent.on_ended(number, frame["exit_code"])
        self._end_if_retired()

    def _read_outcomes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while message := self._outcome_socket.recv(MESSAGE_BYTES_MAX):
                told = self._outcomes.feed(message)
                if told is not None:
                    self._parent.on_outcome(*told)
            self._on_outcomes_end()

    # --- its end --------------------------------------------------------------------------------

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._lost = True
        gone = self._useless()
        waited_for: list[asyncio.Future[Any]] = [self._ready, *self._checked.values()]
        for answer in waited_for:
            if not answer.done():
                answer.set_exception(gone)
        self._checked.clear()
        if self.process.poll() is None and not self._retired:
            self.process.send_signal(signal.SIGKILL)
        self._parent.on_nursery_lost(self)

    def _useless(self) -> NurseryUseless:
        while_importing = f" while it imported {self._importing!r}" if self._importing else ""
        return NurseryUseless(f"the nursery ended{while_importing}", self._importing, died=True)

    def _on_outcomes_end(self) -> None:
        # The nursery and all of its children have let go of their end: none of them runs.
        self._forget_outcomes()
        self.process.wait()
        if not self._gone.is_set():
            self._gone.set()
            self._parent.on_nursery_gone(self)

    def _forget_outcomes(self) -> None:
        self._reading.remove_reader(self._outcome_socket)
        self._outcome_socket.close()
