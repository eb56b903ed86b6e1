"""Interruptions: jobs are delivered between two bytecodes of the main thread, by a signal.

The doorbell is a pipe that has the kernel send SIGURG to the main thread at each post (O_ASYNC), so
no thread of this process must get hold of the interpreter before the main thread hears of a job;
Python then runs `_handle_signal` there, and a blocking call that was cut short goes on (PEP 475).
SIGURG, and no real-time signal: a late one is ignored, where a real-time signal's default ends the
process, and many are one, where too many real-time signals in all become a SIGIO, which ends it
too.

A small watcher thread sends the signal again where that is not enough: when a blocking call began
right after the signal had come, when a retry is due, and when there was more to deliver than fits
one interruption.

Guarantees: handlers run one at a time and never nest.  What comes while they run, or while they are
held off, is delivered after.  The main thread gets its turn: after TURN_S_MAX of deliveries it goes
on until the watcher has come to run, which takes one switch interval if it computes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import select
import signal
import struct
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from aembus.errors import AembusError, BusBroken
from aembus.masking import masked
from aembus.runner import Runner
from aembus.shm.doorbell import PipeBell, is_fencing
from aembus.shm.inbox import Inbox
from aembus.shm.sleeper import SLEEP_S_MAX

log = logging.getLogger("aembus")

SIGNAL: Final = signal.SIGURG
TURN_S_MAX: Final = 0.005
INSIST_S: Final = 0.001  # then the signal is sent again, and again after twice that
F_SETOWN_EX: Final = 15  # not in `fcntl`
F_OWNER_TID: Final = 0

_installed: Interrupter | None = None


def check_can_interrupt() -> None:
    """Raise AembusError, saying why, if this caller cannot have jobs delivered by interruption."""
    if threading.current_thread() is not threading.main_thread():
        raise AembusError(
            "delivery='interrupt' interrupts the main thread, so connect there, "
            f"thread={threading.current_thread().name!r}"
        )
    if _installed is not None:
        raise AembusError("one bus object of a process can interrupt it; close the other one first")
    if _before_left_over(signal.getsignal(SIGNAL)) not in (signal.SIG_DFL, signal.SIG_IGN):
        raise AembusError(
            "delivery='interrupt' needs a signal that this process handles already; "
            f"use another delivery, signal={SIGNAL.name}, handler={signal.getsignal(SIGNAL)!r}"
        )


class Interrupter:
    """Delivers one member's jobs into the main thread, which must make it; begins at once.

    Args:
        runner, inbox: the member's.
        bell: the inbox's, a pipe.
        is_publishing: says whether the main thread is in the middle of an activation.

    Raises: AembusError, see `check_can_interrupt`; nothing has changed then.
    """

    def __init__(
        self, runner: Runner, inbox: Inbox, bell: PipeBell, is_publishing: Callable[[], bool]
    ) -> None:
        check_can_interrupt()
        self._is_publishing = is_publishing
        self._runner = runner
        self._inbox = inbox
        self.thread = threading.get_ident()
        self._delivering = False
        self._blocked = False  # the main thread sleeps on the bell itself
        self._answered = 0  # signals that came to the main thread
        self._closed = False
        self._poke_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._signalling = _signal_at_post(bell)
        self._watcher = threading.Thread(target=self._watch, name="aembus-interrupt", daemon=True)
        self._install()
        self._watcher.start()
        masked.pending = True
        with masked:
            pass  # what is there already

    def _install(self) -> None:
        global _installed  # noqa: PLW0603  # signals are the process's
        _installed = self
        self._before = _before_left_over(signal.signal(SIGNAL, self._handle_signal))
        masked.deliver = self._deliver
        self._inbox.listen(self)

    # --- in the main thread -----------------------------------------------------------------------

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self._answered += 1
        if _installed is not self:
            return
        if self._blocked:  # it wakes by the post itself, and takes that back
            masked.pending = True
            return
        self._inbox.answer_bell()
        if masked.depth:
            masked.look(frame)
        if masked.depth or self._delivering:
            masked.pending = True
        elif self._is_publishing() or is_fencing():
            self._poke()  # a handler that calls would wait for what it keeps from going on
        else:
            self._deliver()

    def _deliver(self) -> None:
        if self._delivering:
            return  # what is pending is seen at its end
        more = True
        try:
            more = self._deliver_pending()
        finally:
            # Also when a handler has raised what is no Exception: the next job comes to whatever
            # catches that.
            if not self._closed and (more or self._runner.due_in_s() < math.inf):
                self._poke()
        self._finish()

    def _deliver_pending(self) -> bool:
        # Returns True if there is more.
        masked.pending = True
        while masked.pending and not self._closed:
            masked.pending = False
            self._delivering = True
            try:
                more = self._deliver_for_a_while()
            finally:
                self._delivering = False  # a signal from here on delivers by itself ...
            # ... and one that came before is pending.
            if more:
                return True
        return False

    def _deliver_for_a_while(self) -> bool:
        # Returns True if there is more.  Else producers have been told to post.
        until = time.monotonic() + TURN_S_MAX
        while True:
            self._inbox.answer_bell()
            try:
                while self._runner.deliver():
                    if time.monotonic() >= until:
                        return True
            except Exception:
                log.exception("what was to interrupt the main thread could not be delivered")
            if self._runner.is_stopping:
                return False
            if self._inbox.announce_sleep(self._runner.has_work):
                return False
            if time.monotonic() >= until:
                self._inbox.end_sleep()
                return True

    @property
    def delivers_here(self) -> bool:
        """Whether the caller interrupts a delivery, in its thread."""
        return self._delivering and threading.get_ident() == self.thread

    def _finish(self) -> None:
        try:
            self._runner.finish()  # perhaps a handler has closed the bus
        except BusBroken as error:
            if not self._closed:
                log.error("nothing interrupts this process any more: %s", error)
                self.close()

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """See shm.sleeper.Listener: block the main thread; jobs are delivered meanwhile."""
        deadline = time.monotonic() + timeout_s
        left_s = timeout_s
        while True:
            with masked:
                deliverable = masked.depth == 1 and not self._delivering
                before, self._blocked = self._blocked, True
                try:
                    found = self._inbox.wait_for_bell(
                        lambda: ready() or (deliverable and self._has_work()),  # noqa: B023
                        left_s,
                    )
                finally:
                    self._blocked = before
                    masked.pending = True  # nobody posts now: what ends the mask changes that
            if self._closed or not deliverable or ready():
                return found
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False

    # --- the watcher ------------------------------------------------------------------------------

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self._poke_descriptor, select.POLLIN)
        poller.register(self._signalling, select.POLLIN)
        while not self._closed:
            asleep = self._inbox.announced
            woken = poller.poll(1000 * min(SLEEP_S_MAX, self._runner.due_in_s()))
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._poke_descriptor)
            if not woken:
                # Whoever stored a job since then was told to post for it.
                asleep = asleep and asleep == self._inbox.announced
                self._inbox.watch_for_lost_posts(bool(asleep) and self._inbox.has_records())
                if masked.depth and masked.pending and not self._blocked:  # is it still?
                    signal.pthread_kill(self.thread, SIGNAL)
            self._insist()

    def _insist(self) -> None:
        answered, pause_s = self._answered, INSIST_S
        while self._answered == answered and self._is_wanted():
            if self._blocked:
                self._inbox.wake()
            else:
                signal.pthread_kill(self.thread, SIGNAL)
            time.sleep(pause_s)  # not on the pipe, which stays readable until it is answered
            pause_s = min(2 * pause_s, SLEEP_S_MAX)

    def _is_wanted(self) -> bool:
        return (
            not (self._closed or self._delivering or (masked.depth and masked.pending))
            and not self._runner.is_stopping
            and self._has_work()
        )

    def _has_work(self) -> bool:
        return self._runner.has_work() or self._runner.due_in_s() <= 0

    def _poke(self) -> None:
        os.eventfd_write(self._poke_descriptor, 1)

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Interrupt no more.  Idempotent.  Call it before the inbox is closed."""
        global _installed  # noqa: PLW0603
        if self._closed:
            return
        self._closed = True
        self._poke()
        if threading.current_thread() is not self._watcher:
            self._watcher.join()
        self._inbox.listen(None)
        os.close(self._signalling)
        os.close(self._poke_descriptor)
        masked.deliver = None
        masked.pending = False
        self._uninstall()
        _installed = None

    def _uninstall(self) -> None:
        # In another thread it is not possible: what is left there does nothing.
        if threading.current_thread() is threading.main_thread():
            signal.signal(SIGNAL, self._before)

    def forget_parent(self) -> None:
        """Interrupt this copy, in a forked child, never; the parent's goes on."""
        global _installed  # noqa: PLW0603
        if self._closed:
            return
        self._closed = True
        masked.deliver = None
        os.close(self._signalling)
        os.close(self._poke_descriptor)
        self._uninstall()
        _installed = None


def _before_left_over(handler: Any) -> Any:
    # What was there before, if `handler` is that of an Interrupter which another thread has closed.
    owner = getattr(handler, "__self__", None)
    return owner._before if isinstance(owner, Interrupter) and owner._closed else handler


def _signal_at_post(bell: PipeBell) -> int:
    # A descriptor for reading alone: one for both would signal when the bell is drained, too.
    descriptor = bell.open_reader()
    owner: Any = struct.pack("ii", F_OWNER_TID, threading.get_native_id())
    fcntl.fcntl(descriptor, F_SETOWN_EX, owner)
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, SIGNAL)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
    return descriptor
