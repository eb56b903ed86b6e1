"""What a child does: one job, in a process that was forked off the nursery for it.

The child has nothing of the bus: no membership, no socket but the one for its outcome, no lock.
Its handler gets a real event and a real job all the same, which say whose job it is and refuse
what only a member can do.  It may join the bus for itself, with `aembus.connect`.

A child ends with its nursery, by PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any, Final, NamedTuple, NoReturn

from aembus import callchain
from aembus.answers import failure_of
from aembus.callchain import Chain
from aembus.codec import decode, encode
from aembus.errors import AembusError, JobNotInHand, Refused
from aembus.event import Child, Event
from aembus.job import Job
from aembus.misfit import add_what_came
from aembus.shm import layout
from aembus.shm.lane import Record
from aembus.spawning.outcome import (
    RAISED,
    REFUSED,
    RETURNED,
    UNANSWERABLE,
    Outcome,
    send_outcome,
)
from aembus.spawning.recipe import Recipe, make_event

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

log = logging.getLogger("aembus")

_libc = ctypes.CDLL(None, use_errno=True)  # made before there are children, who are many


class Task(NamedTuple):
    """One job, as the spawn host gives it to the nursery.

    recipe: of its event; event_id: which that is.
    header, payload: its record's; slot, lane_class: where that lies.
    """

    number: int
    recipe: list[Any]
    event_id: int
    slot: int
    lane_class: int
    header: list[int]
    payload: bytes


class Member:
    """Stands where a member's event_struct would: says what the job is, and keeps none."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def job(self, record: Any, event: Event) -> Job:
        """Return the job."""
        return Job(record, self._task.slot, self._task.lane_class, event, self)

    def call_waiters(self) -> tuple[Chain, bool]:
        """Return that nobody waits: a child is on no bus, and calls nobody."""
        return (), False

    def hold(self, record: Any, event: Any) -> NoReturn:
        """Refuse: see JobNotInHand's text."""
        raise JobNotInHand(
            "the job of an event with spawn=True is done when its handler returns, and cannot be "
            f"held, event={event!r}"
        )

    def complete(
        self, record: Any, attempt: int, failed: BaseException | None, result: Any = None
    ) -> NoReturn:
        """Refuse: see JobNotInHand's text."""
        raise JobNotInHand(
            "the job of an event with spawn=True is done when its handler returns, and fails when "
            f"it raises, sequence={record.sequence}"
        )


class NoControl:
    """Stands where a member's registrations would."""

    def close(self, event: Event) -> NoReturn:
        """Refuse: see the error's text."""
        raise AembusError(
            f"an event is stopped, started and closed by who registered it, event={event!r}"
        )

    stop = start = close

    def children(self, event: Event) -> tuple[Child, ...]:
        """A child has none by aembus."""
        return ()


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; end now if it has ended already.

    See prctl(2), PR_SET_PDEATHSIG.  The parent is the thread that has forked this process.
    """
    if _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def be_child(
    task: Task,
    event: Event | None,
    channel: socket.socket,
    parent: int,
) -> NoReturn:
    """Run the handler and send what came of it; the process ends with that.

    Args:
        event: made of the task's recipe; None: that is still to be done.
        channel: for the outcome.
        parent: the nursery's PID.
    """
    try:
        end_with_parent(parent)
        atexit._clear()  # what modules registered in the nursery is not this process's
        _like_a_fresh_process()
        outcome = _run(task, event)
        send_outcome(channel, task.number, outcome)
    except SystemExit as ended:
        _finish()
        os._exit(_exit_code(ended))
    except BaseException:
        log.exception("a child ends without an outcome")
        os._exit(1)
    os._exit(0)


def _like_a_fresh_process() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(task: Task, event: Event | None) -> Outcome:
    # SystemExit passes; all else is an outcome, also KeyboardInterrupt.
    name = ""
    try:
        if event is None:
            event = make_event(Recipe.from_frame(task.recipe))
        name = event.name
        event.id = task.event_id
        result = _deliver(event, task)
        _finish()
    except Refused as error:
        _finish()
        return Outcome(REFUSED, failure=failure_of(error))
    except SystemExit:
        raise
    except BaseException as error:
        add_what_came(error, task.header, task.payload)
        log.exception("handler of %r failed in its child", name)
        _finish()
        return Outcome(RAISED, failure=failure_of(error))
    if not task.header[2] & layout.FLAG_WANTS_REPLY:
        return Outcome(RETURNED)
    try:
        return Outcome(RETURNED, encode((result, name)))
    except Exception as error:
        return Outcome(UNANSWERABLE, failure=failure_of(error))


def _deliver(event: Event, task: Task) -> Any:
    payload = task.payload
    if task.header[1] == layout.KIND_CALL:
        _, payload = callchain.unwrap(payload)
    lane: Any = None
    event._owner, event._control = Member(task), NoControl()
    event.work_on(Record(lane, 0, 0, 0, tuple(task.header), task.payload))
    result: Any = event.handler(event, *decode(payload))
    if hasattr(result, "__await__"):
        import asyncio

        async def finish() -> Any:
            return await result

        result = asyncio.run(finish())
    return result


def _finish() -> None:
    # What a Python process does before it ends, and os._exit does not.
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _exit_code(ended: SystemExit) -> int:
    if ended.code is None:
        return 0
    if isinstance(ended.code, int):
        return ended.code & 0xFF
    with contextlib.suppress(Exception):
        print(ended.code, file=sys.stderr, flush=True)
    return 1
