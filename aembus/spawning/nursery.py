"""The nursery: a process with one thread that forks a child for each job.

``python -m aembus.spawning.nursery CONTROL OUTCOMES``, started by the spawn host with two inherited
sockets.  The spawn host has threads, so it may not fork; the nursery has none, and has imported
what the handlers need.  Only the nursery writes to its end of CONTROL, only the spawn host reads
it; into OUTCOMES write the children alone.

    spawn host ── CONTROL: frames ──────────► nursery: imports, forks, reaps
        ▲ ▲                                      │ fork
        │ └────── CONTROL: begun, ended ─────────┤
        └──────── OUTCOMES ──────────────────── child: runs the handler

What an import forks, or a child, gets none of these sockets, so that it is not taken for a child.

Guarantees: a module that starts a thread when it is imported is not imported here, and each child
imports it for itself; the nursery ends with the spawn host, and each child ends with the nursery,
by PR_SET_PDEATHSIG.  Who reads OUTCOMES and finds its end knows that every child is gone.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

from aembus.control import FrameReader, pack_frame
from aembus.event import Event
from aembus.spawning.child import Task, be_child, end_with_parent
from aembus.spawning.recipe import Recipe, make_event
from aembus.spawning.references import load_module

log = logging.getLogger("aembus")

EXIT_USELESS: Final = 3
READ_BYTES: Final = 1 << 16


class Nursery:
    """The state of the process.

    Args:
        control, outcomes: see above.
        inherited: a descriptor that children keep; -1: none.
    """

    def __init__(
        self, control: socket.socket, outcomes: socket.socket, inherited: int = -1
    ) -> None:
        self._control = control
        self._outcomes = outcomes
        # Closed once by what somebody forks, and not by number again in what that forks.
        kept = io.FileIO(inherited) if inherited >= 0 else None
        self._shared = [opened for opened in (control, outcomes, kept) if opened is not None]
        self._forks_child = False
        os.register_at_fork(after_in_child=self._after_fork)
        self._frames = FrameReader()
        self._events: dict[
            int, tuple[list[Any], Event | None]
        ] = {}  # by id: recipe, and made of it
        self._children: dict[int, int] = {}  # the job's number by the child's PID
        self._stamps: dict[str, int] = {}  # of the files that were imported
        self._pid = os.getpid()
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Do what the spawn host says until it has hung up."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # else nothing is written below
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, READ_BYTES)
                self._reap()
            if self._control.fileno() in ready:
                data = self._control.recv(READ_BYTES)
                if not data:
                    return
                for frame in self._frames.feed(data):
                    self._do(frame)

    def _do(self, frame: dict[str, Any]) -> None:
        op = frame["op"]
        if op == "task":
            self._fork(Task(*frame["task"]))
        elif op == "check":
            self._say({"op": "checked", "event_id": frame["event_id"], **self._check(frame)})
        elif op == "import":
            self._import(frame)

    def _say(self, frame: dict[str, Any]) -> None:
        self._control.sendall(pack_frame(frame))

    # --- what handlers need ---------------------------------------------------------------------

    def _import(self, frame: dict[str, Any]) -> None:
        sys.path += [entry for entry in frame["path"] if entry not in sys.path]
        late = set(frame["late"])
        for name, file in frame["modules"]:
            if name in late:
                continue
            self._say({"op": "importing", "module": name})
            try:
                load_module(name, file)
            except Exception as error:
                log.exception("module %r cannot be imported", name)
                self._end(name, f"{type(error).__name__}: {error}")
            if len(os.listdir("/proc/self/task")) > 1:
                self._end(name, "it starts threads when it is imported", threads=True)
        self._stamps = _stamps()
        gc.collect()
        gc.freeze()  # a child's collector need not touch, and so copy, what it has from here
        self._say({"op": "ready"})

    def _end(self, module: str, text: str, *, threads: bool = False) -> None:
        self._say({"op": "useless", "module": module, "text": text, "threads": threads})
        os._exit(EXIT_USELESS)

    def _check(self, frame: dict[str, Any]) -> dict[str, Any]:
        recipe = Recipe.from_frame(frame["recipe"])
        if frame["fresh"] and self._is_stale():
            return {"fits": False, "error": ""}
        if not recipe.is_loaded(frame["late"]):
            return {"fits": False, "error": ""}
        error = ""
        if not recipe.is_late(frame["late"]):
            try:
                make_event(recipe)
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
        return {"fits": True, "error": error}

    def _event(self, task: Task) -> Event | None:
        # Made once, and not by each child; None if that has to be left to the child.
        recipe, event = self._events.get(task.event_id, (None, None))
        if recipe != task.recipe:
            wanted = Recipe.from_frame(task.recipe)
            event = None
            if wanted.is_loaded(()):
                with contextlib.suppress(Exception):  # the child finds the same, and tells
                    event = make_event(wanted)
            self._events[task.event_id] = (task.recipe, event)
        return event

    def _is_stale(self) -> bool:
        return any(_stamp(file) != stamp for file, stamp in self._stamps.items())

    # --- children -------------------------------------------------------------------------------

    def _fork(self, task: Task) -> None:
        event = self._event(task)
        begun_ns = time.monotonic_ns()
        self._forks_child = True
        try:
            pid = os.fork()
        except OSError as error:
            self._say({"op": "not_begun", "number": task.number, "text": str(error)})
            return
        finally:
            self._forks_child = False
        if pid == 0:
            self._become_child(task, event)
        self._children[pid] = task.number
        self._say({"op": "begun", "number": task.number, "pid": pid, "begun_ns": begun_ns})

    def _after_fork(self) -> None:
        if not self._forks_child:
            for opened in self._shared:
                opened.close()

    def _become_child(self, task: Task, event: Event | None) -> None:
        self._control.close()
        os.close(self._wake)
        signal.set_wakeup_fd(-1)
        os.close(self._woken)
        be_child(task, event, self._outcomes, self._pid)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self._children.pop(pid, None)
            if number is not None:
                code = os.waitstatus_to_exitcode(status)
                self._say({"op": "ended", "number": number, "exit_code": code})


def _stamps() -> dict[str, int]:
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {file: _stamp(file) for file in files if file}


def _stamp(file: str) -> int:
    try:
        return Path(file).stat().st_mtime_ns
    except OSError:
        return 0


def main() -> int:
    """Entry point of the process."""
    control, outcomes, host = (int(argument) for argument in sys.argv[1:4])
    level, name, inherited = sys.argv[4], sys.argv[5], int(sys.argv[6])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent(host)
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s [{name}] %(message)s")
    sys.argv = sys.argv[:1]
    for descriptor in (control, outcomes, inherited):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)  # by exec; what is forked has them
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the spawn host is gone
        Nursery(socket.socket(fileno=control), socket.socket(fileno=outcomes), inherited).run()
    os._exit(0)  # what modules have registered to run at the end is no business of the nursery's


if __name__ == "__main__":
    sys.exit(main())
