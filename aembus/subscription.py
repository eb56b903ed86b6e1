"""Subscriptions: ``async for job in point.subscribe()``.

A subscription is an event whose handler is the loop's body: it hands a job to who iterates, and
ends when the next one is asked for.  So the job is in hand as long as the loop works on it, comes
again if the process dies meanwhile, and nothing is taken ahead: what waits, waits in the lanes,
and a full lane makes its producer wait.

asyncio is imported here, and this by who subscribes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, Protocol, Self, TypeVar, final

from aembus.coroutines import Coroutines
from aembus.errors import JobFailed
from aembus.event import Event
from aembus.job import Job

LEFT: Final = (
    "its loop was left before the next job was asked for; iterate inside of `async with`, or call "
    "job.done() before"
)

GO_ON_S_MAX: Final = 1.0  # jobs may come without an end

_T = TypeVar("_T")


class Subscriber(Protocol):
    """What a subscription needs of its bus object."""

    @property
    def coroutines(self) -> Coroutines:
        """Who begins and awaits its ``async def`` handlers."""

    @property
    def register(self) -> Callable[..., Event]:
        """See Bus.register."""

    def serve(self) -> Coroutine[Any, Any, None]:
        """See Bus.serve."""


class _Handed(NamedTuple):
    """A job, and what ends the handler that has handed it over."""

    job: Job
    turn: asyncio.Future[None]


class _OwnServing:
    """Serves a bus that nobody else serves, as long as there are subscriptions."""

    def __init__(self, bus: Subscriber, before: _OwnServing | None) -> None:
        self._bus = bus
        self.users = 0
        self.ending = False
        self.task = asyncio.get_running_loop().create_task(self._serve(before))

    async def _serve(self, before: _OwnServing | None) -> None:
        if before is not None:
            await asyncio.wait([before.task])
        await self._bus.serve()

    async def leave(self) -> None:
        """Serve for one subscription less; the last one waits for the end."""
        self.users -= 1
        try:
            if not self.users:
                await self._until_all_is_taken()
        finally:  # also where who leaves is cancelled: nobody else ends it
            if not self.users and not self.ending:
                self.ending = True
                self.task.cancel()
        if self.ending:
            await asyncio.wait([self.task])
            if self._bus.coroutines.own_serving is self:
                self._bus.coroutines.own_serving = None

    async def _until_all_is_taken(self) -> None:
        # Nobody else would send on what was queued for the event that was closed.
        loop, coroutines = asyncio.get_running_loop(), self._bus.coroutines
        until = loop.time() + GO_ON_S_MAX
        while not coroutines.served or coroutines.has_work():
            if self.users or self.task.done() or loop.time() >= until:
                break
            await asyncio.sleep(0)


def _join_own_serving(bus: Subscriber) -> _OwnServing | None:
    serving: _OwnServing | None = bus.coroutines.own_serving
    if serving is None and bus.coroutines.served:
        return None
    if serving is None or serving.ending:
        serving = bus.coroutines.own_serving = _OwnServing(bus, serving)
    serving.users += 1
    return serving


class _Feed:
    """The event of a subscription, and who serves it if nobody else does."""

    def __init__(
        self, bus: Subscriber, point: str, options: dict[str, Any], convert: Callable[..., Any]
    ) -> None:
        self._bus = bus
        self._convert = convert
        self.loop: Final = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._handed: deque[_Handed] = deque()
        self._in_hand: _Handed | None = None
        self._handling = 0
        self._ended = False
        self.closed = False
        self._event = bus.register(point, self._handle, **{"name": "subscription", **options})
        self._serving = _join_own_serving(bus)
        if self._serving is None:
            bus.coroutines.on_end.add(self._end)
        else:
            self._serving.task.add_done_callback(lambda _: self._end())

    async def _handle(self, event: Event, *data: Any) -> None:
        job = event.job
        assert job is not None
        job.data = self._convert(data)
        handed = _Handed(job, self.loop.create_future())
        self._handed.append(handed)
        self._arrived.set()
        self._handling += 1
        try:
            await handed.turn
        finally:
            self._handling -= 1
            with contextlib.suppress(ValueError):  # it was taken
                self._handed.remove(handed)

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()

    async def next(self) -> Job | None:
        """End the job in hand, and return the next one; None if no more will come."""
        self.complete(None)
        while not self._handed and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        if self._handed and not self.closed:
            self._in_hand = self._handed.popleft()
            return self._in_hand.job
        if self._serving is not None and not self.closed:
            task = self._serving.task
            if task.done() and not task.cancelled():
                task.result()  # raises what serving has ended of
        return None

    def complete(self, error: Exception | None) -> None:
        """End the job in hand, if there is one: as a handler that returns, or raises `error`."""
        handed, self._in_hand = self._in_hand, None
        if handed is not None and not handed.turn.done():
            if error is None:
                handed.turn.set_result(None)
            else:
                handed.turn.set_exception(error)

    async def close(self, error: Exception | None) -> None:
        """Take the event off its wait queue, end the job in hand, and serve no more."""
        if self.closed:
            return
        self.closed = True
        try:
            self._event.close()
        finally:  # also if the bus is gone: who serves it must not wait for this one
            self.complete(error)
            for handed in self._handed:  # nobody has looked at it
                if not handed.turn.done():
                    handed.turn.set_exception(JobFailed("its subscription was closed"))
            self._end()
            await self._leave()

    async def _leave(self) -> None:
        if self._serving is None:
            self._bus.coroutines.on_end.discard(self._end)
            return
        while self._handling and not self._serving.task.done():  # noqa: ASYNC110
            await asyncio.sleep(0)  # its handler ends in the next rounds of the loop
        await self._serving.leave()


@final
class Subscription(Generic[_T]):
    """An asynchronous iterator over the jobs of one point; get it from `ActivationPoint.subscribe`.

    Use it as an asynchronous context manager: leaving the block ends the job in hand as a handler
    would, done or failed.
    """

    def __init__(
        self,
        bus: Subscriber,
        point: str,
        options: dict[str, Any],
        convert: Callable[[tuple[Any, ...]], _T],
    ) -> None:
        self._bus = bus
        self._point = point
        self._options = options
        self._convert = convert
        self._feed: _Feed | None = None

    def _begin(self) -> _Feed:
        if self._feed is None:
            self._feed = _Feed(self._bus, self._point, self._options, self._convert)
        return self._feed

    def __aiter__(self) -> Self:
        self._begin()
        return self

    async def __anext__(self) -> Job:
        """Return the next job; the one before is done with that.

        Raises: StopAsyncIteration once the bus is stopped or closed, or this is; BusBroken.
        """
        job = await self._begin().next()
        if job is None:
            raise StopAsyncIteration
        return job

    async def aclose(self) -> None:
        """End the subscription, and the job in hand as done.  Idempotent.

        What is queued for it goes to its group, or to the dead letters.
        """
        if self._feed is not None:
            await self._feed.close(None)

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._feed is None or error is None:
            await self.aclose()
        elif isinstance(error, Exception):
            await self._feed.close(error)
        else:
            await self._feed.close(JobFailed(f"its loop was ended by {type(error).__name__}"))

    def __del__(self) -> None:
        feed = self._feed
        if feed is not None and not feed.closed and feed.loop.is_running():
            feed.loop.call_soon_threadsafe(_drop, feed)


_dropping: Final[set[asyncio.Task[None]]] = set()


def _drop(feed: _Feed) -> None:
    task = feed.loop.create_task(feed.close(JobFailed(LEFT)))
    _dropping.add(task)
    task.add_done_callback(_dropping.discard)
