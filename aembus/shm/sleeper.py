"""The doorbell that the owner of an inbox sleeps on, and how its threads share it.

One process, the owner, sleeps; any producer posts (`shm.peer`).  Guarantees:

- several threads of the owner may wait at once: one is elected to sleep on the doorbell, and
  wakes the others, since two sleepers on one bell would eat each other's post;
- what is closed while threads wait is let go of by the last of them, so that nothing is unmapped
  under a sleeper;
- every sleep is bounded.  Records found by the bound, with no post arriving late, count in
  `rescued_wakeups`, which reads 0 when the doorbell protocol holds.  Room found by the bound does
  not count: an owner that others keep from the core posts late, and not at all if the flag is down.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

from aembus.shm import layout
from aembus.shm.doorbell import Bell, fence

SLEEP_S_MAX: Final = 0.1
LATE_POST_S: Final = 1.0

_SLEEPING_WORD = layout.SLEEPING // layout.WORD


class Listener(Protocol):
    """Work that the bell calls a thread away for, whatever it does: see `Sleeper.listen`."""

    thread: int

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Block that thread as `Sleeper.wait` does: by `wait_for_bell`; and listen on after."""


class Sleeper(ABC):
    """The owner's side of an inbox's doorbell.

    Args:
        words: the inbox segment's.
        bell: what the owner sleeps on; closed with this.
    """

    def __init__(self, words: memoryview, bell: Bell) -> None:
        self._words = words
        self._bell = bell
        # Tickets go on growing from one owner to the next: a producer that has posted for our
        # predecessor's n-th sleep would else take our n-th sleep for the one it posted for.
        first = time.monotonic_ns() & -layout.BELL_TICKET
        self._tickets = itertools.count(first, layout.BELL_TICKET)  # one step to all threads
        self._listener: Listener | None = None
        self._bells = [bell]
        self._suspected_at = 0.0
        self._elected = threading.RLock()
        self._waiting: list[Callable[[], bool]] = []
        self._asleep: list[threading.Lock] = []  # of those who wait to be woken
        self._wake_numbers = itertools.count(1)
        self._wakes = 0  # the number of the last one
        self._closed = False
        self._unreleased = [self._release]  # taken out, in one step, by the thread that calls it

    @abstractmethod
    def has_records(self) -> bool:
        """Say whether any lane has a record to take."""

    @abstractmethod
    def _release(self) -> None:
        """Unmap and close everything; called once, when no thread waits any more."""

    # --- waiting --------------------------------------------------------------------------------

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Block until `ready()` is true or the time is over; return what `ready()` last said.

        Any thread of the owner may call it; `ready` must be cheap and take no lock.
        It may return early when a Python signal handler ran, and does when the inbox is closed.
        """
        listener = self._listener
        if listener is not None and listener.thread == threading.get_ident():
            return listener.wait(ready, timeout_s)
        return self.wait_for_bell(ready, timeout_s)

    def wait_for_bell(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Do what `wait` does, also in the thread of the listener."""
        if timeout_s <= 0:
            return not self._closed and ready()
        try:
            # Inside of `try`, as `acquire` below: Ctrl-C may come right behind it.  And what undoes
            # them is the first call in `finally`: it may come before a second one, too.
            self._waiting.append(ready)
            return self._wait_among_others(ready, timeout_s)
        finally:
            try:
                self._waiting.remove(ready)
            except ValueError:  # Ctrl-C came first
                pass
            if self._closed:
                self._release_when_unused()

    def _wait_among_others(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        left_s = min(timeout_s, SLEEP_S_MAX)
        while not self._closed:
            wakes = self._wakes
            try:
                if self._may_sleep() and self._elected.acquire(blocking=False):
                    self._sleep(left_s)
                else:
                    self._wait_to_be_woken(wakes, left_s)
            finally:
                try:
                    self._elected.release()
                except RuntimeError:  # another thread is elected
                    pass
                else:
                    # Who came before and found us elected is in the list by now.
                    if len(self._waiting) > 1:
                        self._wake_others()
            if ready():
                return True
            left_s = min(deadline - time.monotonic(), SLEEP_S_MAX)
            if left_s <= 0:
                return False
        return False

    def _wait_to_be_woken(self, wakes: int, timeout_s: float) -> None:
        # By no Condition: a signal handler may come while that one's lock is held, and wait for a
        # thread that wants it.
        woken = threading.Lock()
        woken.acquire()
        try:
            self._asleep.append(woken)
            if self._wakes == wakes:
                woken.acquire(timeout=timeout_s)
        finally:
            with contextlib.suppress(ValueError):  # Ctrl-C came first
                self._asleep.remove(woken)

    def _may_sleep(self) -> bool:
        # Two sleepers would eat each other's post; a listener hears every one.
        listener = self._listener
        return listener is None or listener.thread == threading.get_ident()

    def listen(self, listener: Listener | None) -> None:
        """Have one thread hear every post from now on, by a signal or in its event loop.

        It calls `answer_bell` then, which wakes the other threads, and `announce_sleep` when there
        is nothing left to do.  None: as before.
        """
        if listener is not None:
            self._listener = listener
            if self._waiting:  # a thread that sleeps by itself leaves that to the listener
                for bell in self._bells:
                    bell.post()
            return
        if not self._closed:
            self.end_sleep()
        self._listener = None
        if self._closed:
            self._release_when_unused()
        self._wake_others()

    @property
    def is_listened_to(self) -> bool:
        """Whether there is a listener."""
        return self._listener is not None

    def answer_bell(self) -> None:
        """Take the posts back, for the thread that listens, and have those who wait look again."""
        self.end_sleep()
        if self._waiting:
            self._wake_others()

    def take_bell(self, bell: Bell) -> None:
        """Sleep on another bell from now on; the inbox closes it.

        A thread that sleeps on the last one looks again when that sleep's bound is over.
        """
        self._bells.append(bell)
        self._bell = bell

    def is_waited_on(self) -> bool:
        """Say whether any thread is in `wait`, or about to leave it."""
        return bool(self._waiting)

    def _sleep(self, timeout_s: float) -> None:
        try:
            if self.announce_sleep(self._anyone_ready):
                # What lies there already is for a thread that does not run: nobody posts for it.
                watching = not self.has_records()
                until = time.monotonic() + timeout_s
                rung = self._bell.timed_wait(timeout_s)
                if not rung:
                    by_bound = watching and time.monotonic() >= until
                    self.watch_for_lost_posts(by_bound and self.has_records())
                elif self._suspected_at:
                    if not self.has_records():
                        self._suspected_at = 0.0  # a post without work: the late one
                    self.watch_for_lost_posts(False)
        finally:
            self.end_sleep()
            if not self._may_sleep():  # a listener came meanwhile, and may have announced a sleep
                self._bell.post()

    def wake(self) -> None:
        """Make whoever waits look again, since something other than a lane has changed."""
        try:
            self._waiting.append(_never)  # nobody lets go of the bell meanwhile
            if not self._closed:
                self._bell.post()
        finally:
            try:
                self._waiting.remove(_never)
            except ValueError:
                pass
            if self._closed:
                self._release_when_unused()
        self._wake_others()

    def announce_sleep(self, ready: Callable[[], bool]) -> bool:
        """Tell producers to post from now on; False if `ready()` says that there is no need.

        Call `end_sleep` in either case, after the wait.
        """
        self._announce(self._bell.kind)
        return not ready()

    def announce_sleep_without_numbers(self) -> None:
        """Tell producers to post from now on, but not for calls of numbers.

        The owner takes what the lanes hold by now, and takes those calls by itself soon after.
        """
        self._announce(self._bell.kind | layout.BELL_NOT_FOR_NUMBERS)

    def _announce(self, bits: int) -> None:
        self._words[_SLEEPING_WORD] = next(self._tickets) | bits
        fence()  # SYNC POINT: pairs with the producer's fence between tail and sleeping

    @property
    def announced(self) -> int:
        """The sleep for which producers are to post: another number each time; 0 while awake."""
        return self._words[_SLEEPING_WORD]

    def end_sleep(self) -> int:
        """Tell producers that no post is needed, and take back those that came; return how many."""
        self._words[_SLEEPING_WORD] = layout.AWAKE
        posts = self._bell.drain()
        if posts:
            self._suspected_at = 0.0
        return posts

    def stay_awake(self) -> None:
        """Like `end_sleep`, but leave the posts that came: the loop that watches the bell will be
        called for them."""
        self._words[_SLEEPING_WORD] = layout.AWAKE

    def _anyone_ready(self) -> bool:
        for ready in tuple(self._waiting):  # noqa: SIM110  # a third of the time of any()
            if ready():
                return True
        return False

    def _wake_others(self) -> None:
        self._wakes = next(self._wake_numbers)  # first: who is not in the list yet looks at it then
        for woken in tuple(self._asleep):
            with contextlib.suppress(RuntimeError):  # it was woken before
                woken.release()

    def watch_for_lost_posts(self, found_by_bound: bool) -> None:
        """Take note of the end of a sleep; count a rescue once it is sure that no post came.

        Args:
            found_by_bound: the sleep's bound ended it, and there was work.
        """
        now = time.monotonic()
        if self._suspected_at and now - self._suspected_at > LATE_POST_S:
            self._words[layout.RESCUED_WAKEUPS // 8] += 1
            self._suspected_at = 0.0
        if found_by_bound and not self._suspected_at:
            self._suspected_at = now

    def close(self) -> None:
        """Let go of the inbox in this process; what is queued stays.  Idempotent.

        Does not block: whoever waits is woken, and the last to leave lets go.
        """
        if self._waiting:  # else the next owner would find the post
            self.wake()
        self._closed = True
        self._wake_others()
        self._release_when_unused()

    def _release_when_unused(self) -> None:
        # Who comes into `_waiting` from now on sees that it is closed, and touches nothing.
        if self._waiting or self._listener is not None:
            return
        try:
            release = self._unreleased.pop()
        except IndexError:
            return
        release()


def _never() -> bool:
    return False
