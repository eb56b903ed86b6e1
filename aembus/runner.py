"""Running a member: the loop that delivers what arrives and sleeps when nothing is there.

One thread at a time runs a member.  After each round of deliveries it hands over replies that
others wait for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from aembus.calls import Calls
from aembus.errors import AembusError, BusBroken
from aembus.events import EventStruct
from aembus.looking import WAKE_UP_S, Looking
from aembus.refusals import no_timeout
from aembus.shm import layout
from aembus.shm.inbox import Inbox

log = logging.getLogger("aembus")

SPINS_BETWEEN_LOOKS: Final = 16
LOOK_S: Final = 0.1  # between two looks whether to stop, while there is no bus
BUSY_S: Final = 25e-6  # between two jobs that arrive, or less: then latency is not the question
SPIN_VARIABLE: Final = "AEMBUS_SPIN_US"
SPIN_US_MAX: Final = 1_000_000


def spin_from_environment() -> float:
    """Return how long to look for jobs before sleeping, in seconds, as the environment says.

    Raises: AembusError if what it says is no number of microseconds.
    """
    text = os.environ.get(SPIN_VARIABLE) or "0"
    try:
        spin_us = float(text)
    except ValueError:
        spin_us = -1.0
    if not 0 <= spin_us <= SPIN_US_MAX:
        raise AembusError(
            f"{SPIN_VARIABLE} is a number of microseconds from 0 to {SPIN_US_MAX}, "
            f"{SPIN_VARIABLE}={text!r}"
        )
    return spin_us / 1e6


class Runner:
    """Runs one member.

    Args:
        event_struct, inbox, calls: the member's parts.
        await_bus: waits so many seconds at most for the bus to be there and says whether it is;
            raises if it is closed, or broken for good.
    """

    def __init__(
        self,
        event_struct: EventStruct,
        inbox: Inbox,
        calls: Calls,
        await_bus: Callable[[float], bool],
    ) -> None:
        self._event_struct = event_struct
        self._inbox = inbox
        self._calls = calls
        self._await_bus = await_bus
        self._looking = Looking(WAKE_UP_S)
        self._running = threading.Lock()
        self._suspending = threading.Lock()  # one after the other: each makes deliveries go on
        self._runs_in = 0  # the thread that holds it
        self._ended = False  # nobody may run any more
        self._stopping = False
        self._parted = False  # its parts are gone, and it has no new ones yet
        self._stop_asked = False
        self._afterwards: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._looping: threading.Thread | None = None  # in `run`

    def run(self, spin_s: float) -> None:
        """Deliver until `stop`; after the last job, look for more for `spin_s` before sleeping."""
        self._await_bus(0.0)
        self.check_free()
        self._looping = threading.current_thread()
        try:
            self._loop(spin_s)
        finally:
            self._looping = None
        self.finish()

    def _loop(self, spin_s: float) -> None:
        while not self._stop_asked:
            if not self._await_bus(LOOK_S):
                continue
            with self._running:
                self._runs_in = threading.get_ident()
                self._deliver_until_stopped(spin_s)

    def check_free(self) -> None:
        """Raise AembusError if who asks would wait: for itself, or for as long as a thread runs."""
        if self.in_handler():
            raise AembusError(
                "a handler cannot run or poll its own bus; return, and the next job is delivered"
            )
        looping = self._looping
        if looping is not None and not self._stop_asked:
            raise AembusError(
                "a thread runs this bus already and delivers what comes; stop it first "
                f"(bus.stop), or leave it to that, thread={looping.name!r}"
            )

    def _deliver_until_stopped(self, spin_s: float) -> None:
        while not (self._stopping or self._parted or self._ended):
            if self._deliver() or (self._spin(spin_s) if spin_s else self._look()):
                continue
            self._inbox.wait(self.has_work, self._event_struct.due_in_s())

    def poll(self, timeout_s: float) -> int:
        """Deliver what is there, waiting for the first job; return how many were handled."""
        if not isinstance(timeout_s, int | float):
            raise no_timeout(timeout_s)
        if not self._await_bus(timeout_s):
            return 0
        self.check_free()
        with self._running:
            if self._parted or self._ended:
                return 0
            self._runs_in = threading.get_ident()
            handled = self._deliver()
            if not handled and timeout_s > 0:
                until_due_s = self._event_struct.due_in_s()
                found = self._inbox.wait(self.has_work, min(timeout_s, until_due_s))
                if (found or self._event_struct.is_due()) and not self._ended:
                    handled = self._deliver()
        self.finish()
        return handled

    def run_in_thread(self, spin_s: float) -> threading.Thread:
        """Run in a thread of its own; return it."""
        if self._thread is None:
            self.check_free()
            self._thread = threading.Thread(
                target=self._run_thread, args=(spin_s,), name="aembus-run", daemon=True
            )
            self._thread.start()
        return self._thread

    def _run_thread(self, spin_s: float) -> None:
        try:
            self.run(spin_s)
        except BusBroken as error:
            log.error("%s", error)
        except SystemExit:  # which ends a thread without a word
            log.exception("a handler has ended the thread that ran this bus; nobody delivers now")
            raise

    def stop(self) -> None:
        """Make `run` return after the job in hand; from any thread or signal handler."""
        self._stop_asked = True
        self.interrupt()

    def interrupt(self) -> None:
        """Make `run` look after the job in hand whether the bus is still there."""
        self._stopping = True
        self._event_struct.stop()
        if not self._parted:
            self._inbox.wake()

    @contextlib.contextmanager
    def exchange(self) -> Iterator[Callable[[EventStruct, Inbox, Calls], None]]:
        """Keep deliveries out, after the job in hand, and yield what gives this runner new parts.

        Deliveries go on behind the block.
        """
        with self._running:
            self._runs_in = threading.get_ident()
            self._stopping = False  # whoever interrupts from now on means the new parts
            self._parted = True  # if the block fails, the old parts are closed all the same
            yield self._rebind
            if self._stop_asked:
                self.interrupt()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Keep deliveries out, after the job in hand; they go on behind the block."""
        with self._suspending:
            self.interrupt()
            with self._running:
                self._runs_in = threading.get_ident()
                self._stopping = False
                self._event_struct.go_on()
                yield
                if self._stop_asked:
                    self.interrupt()

    def _rebind(self, event_struct: EventStruct, inbox: Inbox, calls: Calls) -> None:
        self._event_struct, self._inbox, self._calls = event_struct, inbox, calls
        self._parted = False

    def join(self) -> None:
        """Wait until no thread runs this member, and let none begin; but not for this one."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._ended = True
        # A signal handler may have interrupted the very thread that runs.
        if not self.runs_here:
            with self._running:
                pass

    def in_handler(self) -> bool:
        """Say whether this is called by a handler."""
        return self._event_struct.in_handler()

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do something once the delivery that runs now has ended."""
        self._afterwards = action

    def finish(self) -> None:
        """Do what was put off until the delivery has ended; raise BusBroken if the bus is gone."""
        action, self._afterwards = self._afterwards, None
        if action is not None:
            action()
        else:
            self._check_broken()

    def _check_broken(self) -> None:
        try:
            self._await_bus(0.0)
        except BusBroken:
            raise
        except Exception:
            log.debug("ended because the bus was closed")

    # --- for what delivers by itself: see `aembus.interruption` ---------------------------------

    def deliver(self) -> int:
        """Deliver one turn and return how many jobs were handled; does not wait."""
        with self._running:
            self._runs_in = threading.get_ident()
            return self._deliver()

    def pause(self) -> None:
        """Make `deliver` return after the job in hand."""
        self._event_struct.stop()

    def go_on(self) -> None:
        """Take `pause` back."""
        self._event_struct.go_on()
        if self._stopping:  # in this order: `stop` may be called by another thread
            self._event_struct.stop()

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is to be delivered: the bus was stopped, or is gone."""
        return self._stopping

    @property
    def runs_here(self) -> bool:
        """Whether the caller's own thread is delivering, or waits in `run` or `poll`."""
        return self._running.locked() and self._runs_in == threading.get_ident()

    def due_in_s(self) -> float:
        """Return in how many seconds something is due, without a post: infinity if nothing is."""
        return self._event_struct.due_in_s()

    def _deliver(self) -> int:
        handled = self._event_struct.deliver()
        if self._inbox.lanes[layout.CLASS_REPLY] and self._inbox.has_replies():
            self._calls.take_replies()
        return handled

    def has_work(self) -> bool:
        """Say whether there is something to deliver, or to look at."""
        # Without what is due: no post announces that, the sleep is made short enough for it.
        return self._stopping or self._inbox.has_records() or self._event_struct.has_completed()

    def _look(self) -> bool:
        looking = self._looking
        if not looking.look(self._is_worth_a_turn):
            return False
        # Others had the core for longer than the moment.  If so much came meanwhile, that was well
        # spent: sleeps and posts, many for each turn of the producers, would cost more.
        if self._deliver() * BUSY_S >= looking.took_s:
            looking.was_worth()
        return True

    def _is_worth_a_turn(self) -> bool:
        return self.has_work() or self._event_struct.is_due()

    def _spin(self, spin_s: float) -> bool:
        found = self._inbox.has_records_in_known_lanes
        until = time.monotonic() + spin_s
        while time.monotonic() < until:
            for _ in range(SPINS_BETWEEN_LOOKS):
                if found():
                    return True
            if self.has_work() or self._event_struct.is_due():
                return True
        return False
