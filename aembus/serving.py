"""Serving: jobs are delivered in an asyncio event loop, between whatever else runs there.

The doorbell is a descriptor that the loop watches (`aembus.listening`), so no thread is needed.  A
handler may be an ``async def``: its job is held until it has ended, or has failed.  So many of them
as `concurrency` says run at once, and while they do nothing else is begun.

asyncio is imported here, and this by who serves: a bare worker loads neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Final

from aembus.coroutines import Begun, Coroutines
from aembus.errors import BusBroken, BusClosed, JobNotInHand
from aembus.event import Awaited, awaited
from aembus.listening import LoopListener
from aembus.runner import Runner
from aembus.shm.inbox import Inbox
from aembus.shm.sleeper import SLEEP_S_MAX

TURN_END_S: Final = 0.0  # between two turns, whatever else is ready in the loop gets its own


class Server:
    """Delivers one member's jobs in the running event loop.

    Args:
        runner, inbox: the member's.
        listener: hears its bell.
        coroutines: its handlers that are ``async def``.
        concurrency: how many of their jobs may be under way at once.
    """

    def __init__(
        self,
        runner: Runner,
        inbox: Inbox,
        listener: LoopListener,
        coroutines: Coroutines,
        concurrency: int,
    ) -> None:
        self._runner = runner
        self._inbox = inbox
        self._listener = listener
        self._coroutines = coroutines
        self._concurrency = concurrency
        self._begun: Begun | None = None  # what is awaited here, if nothing else may run
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancelled_before = 0  # how often who serves had been, when it began
        self._ending = False  # and the handlers that are awaited are cancelled
        self._passing: BaseException | None = None  # what one of the tasks has raised

    async def serve(self) -> None:
        """Deliver until the runner is stopped, or this is cancelled."""
        loop = self._listener.loop
        self._coroutines.start, self._coroutines.loop = self._start, loop
        self._coroutines.has_work = self._runner.has_work
        self._cancelled_before = _times_cancelled()
        self._runner.go_on()  # a loop that was closed in the middle of it has left it paused
        with self._listener as listener:
            listener.delivers = True
            try:
                await self._serve(listener)
                await self._until_all_have_ended()
            finally:
                if not loop.is_closed():  # else nothing can be awaited, and the bus may be closed
                    await self._cancel()
                    self._coroutines.start, self._coroutines.loop = None, None
                    for told in tuple(self._coroutines.on_end):
                        told()
                    listener.delivers = False
                    self._inbox.answer_bell()
                    self._runner.go_on()
                    listener.look()

    async def _serve(self, listener: LoopListener) -> None:
        runner = self._runner
        while not runner.is_stopping:
            self._pass_on()
            listener.rung.clear()
            self._inbox.answer_bell()
            handled = listener.take_turn(runner.deliver)
            listener.look()
            begun, self._begun = self._begun, None
            if begun is not None:
                self._leave_bell(True)
                await self._finish(begun)
                self._leave_bell(False)
                runner.go_on()
            elif len(self._tasks) >= self._concurrency:
                await self._until_one_has_ended()
                runner.go_on()
            elif handled:
                await asyncio.sleep(TURN_END_S)  # what was begun comes to its first `await`
                runner.go_on()
            elif self._inbox.announce_sleep(self._has_work):
                await self._sleep()

    def _has_work(self) -> bool:
        return self._runner.has_work() or self._listener.has_come()

    def _leave_bell(self, leave: bool) -> None:
        # While nothing is delivered, the bell rings for what the handlers await.
        self._listener.delivers = not leave
        if leave:
            self._listener.look()

    # --- handlers that are awaited ----------------------------------------------------------------

    def _start(self, begun: Begun) -> None:
        self._runner.pause()  # what comes next begins after it
        if self._concurrency == 1:
            self._begun = begun  # cheaper than a task of its own
            return
        task = self._listener.loop.create_task(self._finish(begun))
        self._tasks.add(task)
        task.add_done_callback(self._handle_end)

    def _handle_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._passing = self._passing or task.exception()
        self._listener.rung.set()

    def _pass_on(self) -> None:
        # What is no Exception passes from a task, too, as it does from a handler that runs alone.
        if self._passing is not None:
            raise self._passing

    async def _until_all_have_ended(self) -> None:
        while self._tasks:
            await self._until_one_has_ended()
        self._pass_on()

    async def _until_one_has_ended(self) -> None:
        self._leave_bell(True)
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave_bell(False)

    async def _finish(self, begun: Begun) -> None:
        # What is no Exception passes, and leaves the job in hand; the cancellation of who serves is
        # one of these, that of something which the handler has awaited is not.
        work = Awaited(begun.event, begun.record, begun.chain, self._concurrency == 1)
        token = awaited.set(work)
        try:
            try:
                result = await begun.coroutine
            except asyncio.CancelledError as error:
                if self._is_cancelled():
                    raise
                complete = functools.partial(begun.job.raised, error)
            except Exception as error:
                complete = functools.partial(begun.job.raised, error)
            else:
                complete = functools.partial(begun.job.done, result)
            # The handler may have completed its job itself; and if the bus is gone, others tell.
            with contextlib.suppress(JobNotInHand, BusBroken, BusClosed):
                complete()
        finally:
            work.ended = True
            with contextlib.suppress(ValueError):  # it is let go of elsewhere: its loop was closed
                awaited.reset(token)

    def _is_cancelled(self) -> bool:
        if self._concurrency > 1:  # each in a task of its own, which nobody else cancels
            return self._ending
        return _times_cancelled() > self._cancelled_before

    async def _cancel(self) -> None:
        self._ending = True
        if self._begun is not None:
            self._begun.coroutine.close()
            self._begun = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- sleeping ---------------------------------------------------------------------------------

    async def _sleep(self) -> None:
        loop, rung = self._listener.loop, self._listener.rung
        bound_s = min(SLEEP_S_MAX, self._runner.due_in_s())
        timer = loop.call_later(bound_s, rung.set)
        try:
            watching = not self._inbox.has_records()
            until, asleep = loop.time() + bound_s, self._inbox.announced
            await rung.wait()
            # A post may have come together with the bound, and been answered.
            by_bound = watching and loop.time() >= until and self._inbox.announced == asleep
            self._inbox.watch_for_lost_posts(by_bound and self._inbox.has_records())
        finally:
            timer.cancel()


def _times_cancelled() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
