"""Serving: jobs are delivered in an asyncio event loop, between whatever else runs there.

The doorbell is a descriptor that the loop watches, so no thread is needed.  A handler may be an
``async def``: the next job begins when it has ended, or has failed.  Meanwhile its job is held.

asyncio is imported here, and this by who serves: a bare worker loads neither.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable
from typing import Final

from aembus.coroutines import Begun, Coroutines
from aembus.runner import Runner, log
from aembus.shm.doorbell import PipeBell
from aembus.shm.inbox import SLEEP_S_MAX, Inbox

TURN_END_S: Final = 0.0  # between two turns, whatever else is ready in the loop gets its own


class Server:
    """Delivers one member's jobs in the running event loop.

    Args:
        runner, inbox: the member's.
        bell: the inbox's, a pipe.
        coroutines: what its ``async def`` handlers have begun.
    """

    def __init__(
        self, runner: Runner, inbox: Inbox, bell: PipeBell, coroutines: Coroutines
    ) -> None:
        self._runner = runner
        self._inbox = inbox
        self._bell = bell
        self._coroutines = coroutines
        self._rung = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()

    async def serve(self) -> None:
        """Deliver until the runner is stopped, or this is cancelled."""
        self._loop.add_reader(self._bell.descriptor, self._handle_bell)
        self._inbox.listen(self)
        self._coroutines.served = True
        try:
            while not self._runner.is_stopping:
                self._rung.clear()
                self._inbox.answer_bell()
                handled = self._runner.deliver()
                begun = self._coroutines.take()
                if begun is not None:
                    await self._finish(begun)
                    self._runner.go_on()
                elif handled:
                    await asyncio.sleep(TURN_END_S)
                elif self._inbox.announce_sleep(self._runner.has_work):
                    await self._sleep()
        finally:
            self._coroutines.served = False
            self._loop.remove_reader(self._bell.descriptor)
            self._inbox.listen(None)
            self._inbox.answer_bell()
            self._runner.go_on()

    async def _finish(self, begun: Begun) -> None:
        # What is no Exception passes, and leaves the job in hand; a cancellation is one of these.
        event = begun.event
        event.work_on(begun.record)
        try:
            await begun.coroutine
        except Exception as error:
            log.exception("handler of %r failed, job=%s", event, begun.job)
            reason = "".join(traceback.format_exception_only(error)).strip()
            begun.job.fail(f"its handler raised {reason}")
        else:
            begun.job.done()
        finally:
            event.work_on(None)

    def _handle_bell(self) -> None:
        self._inbox.answer_bell()
        self._rung.set()

    async def _sleep(self) -> None:
        bound_s = min(SLEEP_S_MAX, self._runner.due_in_s())
        timer = self._loop.call_later(bound_s, self._rung.set)
        try:
            watching = not self._inbox.has_records()
            until = self._loop.time() + bound_s
            await self._rung.wait()
            by_bound = watching and self._loop.time() >= until
            self._inbox.watch_for_lost_posts(by_bound and self._inbox.has_records())
        finally:
            timer.cancel()

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """See shm.inbox.Listener: what blocks the loop hears the bell in its place."""
        try:
            return self._inbox.wait_for_bell(ready, timeout_s)
        finally:
            self._rung.set()
