"""The doorbell in an asyncio event loop: whoever serves or awaits there hears it together.

The bell is a descriptor that the loop watches while somebody needs it, so no thread is needed.  A
Server that delivers announces sleeps by itself.  While none does, or while it awaits a handler,
answers and room are listened for here.  Where another one listens already (interruptions), that one
takes the answers, and room is looked for again and again.

Used in one event loop at a time; asyncio is imported here, and this by who needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Self

from aembus.calls import Calls
from aembus.sender import Sender
from aembus.shm.doorbell import PipeBell
from aembus.shm.inbox import Inbox
from aembus.shm.sleeper import SLEEP_S_MAX

LOOK_S: Final = 0.002  # between two looks where another one listens


class LoopListener:
    """Hears one inbox's bell in the running event loop.

    Args:
        sender, inbox, calls: the member's.
        bell: the inbox's, a pipe.

    rung: set whenever something may have changed, for a Server.
    listens: the loop watches the bell.
    delivers: a Server is at work, and announces sleeps by itself.
    """

    def __init__(self, sender: Sender, inbox: Inbox, calls: Calls, bell: PipeBell) -> None:
        self._sender = sender
        self._inbox = inbox
        self._calls = calls
        self._bell = bell
        self.loop: Final = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.rung = asyncio.Event()
        self.delivers = False
        self._users = 0
        self.listens = False
        self._in_turn = False
        self._timer: asyncio.TimerHandle | None = None
        self._answers: set[asyncio.Future[None]] = set()
        self._rooms: dict[asyncio.Future[None], Callable[[], bool]] = {}

    @property
    def is_used(self) -> bool:
        """Whether anybody serves or awaits; in a loop that is closed nobody does."""
        return self._users > 0 and not self.loop.is_closed()

    def __enter__(self) -> Self:
        """Listen for one user more."""
        self._users += 1
        if self._users == 1:
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        """Listen for one user less."""
        self._users -= 1
        if not self._users:
            self._end()

    def _begin(self) -> None:
        if not self._inbox.is_listened_to:
            self.listens = True
            self.loop.add_reader(self._bell.descriptor, self._handle_bell)
            self._inbox.listen(self)
        self._tick()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.listens:
            self.listens = False
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.remove_reader(self._bell.descriptor)
            self._inbox.listen(None)

    def close(self) -> None:
        """Listen no more, since the bus is closed; who awaits something is told.

        From another thread it takes effect when the loop comes to it.
        """
        if threading.get_ident() != self.thread and not self.loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self.close)
            return
        self._end()
        self._wake_all()

    # --- what comes -----------------------------------------------------------------------------

    def _handle_bell(self) -> None:
        self._inbox.answer_bell()
        self.rung.set()
        self.look()

    def look(self) -> None:
        """Hand over what has come, and have the bell rung for what comes next."""
        while self._hand_over() and self.listens and not self.delivers:
            if self._inbox.announce_sleep(self.has_come):
                break

    def _hand_over(self) -> bool:
        if self._sender.refuses:
            self._wake_all()
            return False
        if self._answers and self._inbox.has_replies():
            self.take_turn(self._calls.take_replies)
        for future in [f for f, has_come in self._rooms.items() if has_come()]:
            del self._rooms[future]
            _wake(future)
        return bool(self._answers or self._rooms)

    def _wake_all(self) -> None:
        for future in (*self._answers, *self._rooms):
            _wake(future)
        self._rooms.clear()

    def has_come(self) -> bool:
        """Say whether something is there for who awaits; a Server asks before it sleeps."""
        for room_has_come in self._rooms.values():
            if room_has_come():
                return True
        return self._sender.refuses or bool(self._answers and self._inbox.has_replies())

    def take_turn(self, act: Callable[[], Any]) -> Any:
        """Do what may bring answers, in a turn of the loop; return what it returns."""
        self._in_turn = True
        try:
            return act()
        finally:
            self._in_turn = False

    def _tick(self) -> None:
        # Every sleep is bounded, and what has been due for that long was not posted.
        if self.listens and not self.delivers:
            self._inbox.watch_for_lost_posts(bool(self._answers) and self._inbox.has_replies())
        self.look()
        pause_s = SLEEP_S_MAX if self.listens or not self._rooms else LOOK_S
        self._timer = self.loop.call_later(pause_s, self._tick)

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """See shm.sleeper.Listener: what blocks the loop hears the bell in its place."""
        try:
            return self._inbox.wait_for_bell(ready, timeout_s)
        finally:
            self.rung.set()
            self.loop.call_soon(self.look)

    # --- who awaits something -------------------------------------------------------------------

    def answer(self) -> asyncio.Future[None]:
        """Return what is to be told by `arrived`, and awaited by `until_answered`."""
        future = self.loop.create_future()
        self._answers.add(future)
        return future

    def arrived(self, future: asyncio.Future[None]) -> None:
        """Tell it; whichever thread has taken the answer does."""
        if self._in_turn and threading.get_ident() == self.thread:
            _wake(future)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(_wake, future)

    async def until_answered(self, future: asyncio.Future[None], deadline: float) -> None:
        """Await an answer, until `deadline` at most (time.monotonic)."""
        timer = self.loop.call_later(deadline - time.monotonic(), _wake, future)
        if not self.delivers:
            self.look()
        try:
            await future
        finally:
            timer.cancel()

    def forget(self, future: asyncio.Future[None]) -> None:
        """Await it no longer."""
        self._answers.discard(future)

    async def until_room(self, has_come: Callable[[], bool]) -> None:
        """Await room, or the end of the bus."""
        future = self.loop.create_future()
        self._rooms[future] = has_come
        if not self.listens and self._timer is not None:
            self._timer.cancel()
            self._tick()
        elif not self.delivers:
            self.look()
        try:
            await future
        finally:
            self._rooms.pop(future, None)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        with contextlib.suppress(RuntimeError):  # the loop is closed
            future.set_result(None)
