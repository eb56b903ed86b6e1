"""Awaitable activations and calls: what `activate` and `call` do, while the event loop goes on.

Nothing blocks but the first talk of two members, which reserves their lane's memory.  Who finds a
lane full waits behind those who came before, in order, until its owner has made room and said so.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aembus.calls import MEMBER_GONE, Answer, Calls, Waiting, answer_of
from aembus.errors import AembusError, CallFailed, CallTimeout
from aembus.listening import LoopListener
from aembus.options import WAIT
from aembus.picking import IN_TURN
from aembus.refusals import deadline_after
from aembus.routes import Route
from aembus.routing import Target
from aembus.sender import FAILS, FULL, LOOK_AGAIN_S, Job, Sender
from aembus.shm import layout


class Awaiting:
    """What one member awaits in one event loop.

    Args:
        sender, calls: the member's.
        listener: hears its bell.
    """

    def __init__(self, sender: Sender, calls: Calls, listener: LoopListener) -> None:
        self._sender = sender
        self._calls = calls
        self.listener = listener
        self._queues: dict[object, asyncio.Lock] = {}  # who waits for room, by route or lane

    async def activate(
        self,
        route: Route,
        job: Job,
        timeout_s: float,
    ) -> int:
        """See ActivationPoint.activate_async."""
        if self._is_waited_for(route):
            jobs = FULL
            self._sender.pick(route, job)  # takes a turn, as an attempt does
        else:
            jobs = self._sender.try_activate_with(route, job)
        if jobs >= 0:
            return jobs
        chosen = route.turn if job.key_hash == IN_TURN else job.key_hash  # as Sender.activate
        targets = functools.partial(self._sender.chosen, route, chosen, job)
        if jobs == FAILS:
            raise self._sender.no_room(route.point, 0.0, targets())
        attempt = functools.partial(self._sender.try_activate_chosen, route, chosen, job)
        return await self._when_room(route, attempt, targets, timeout_s, route.point)

    async def call(
        self, point: str, data: bytes, key_hash: int, timeout_s: float, redeliver: bool
    ) -> Any:
        """See ActivationPoint.call_async."""
        deadline = deadline_after(time.monotonic(), timeout_s)
        flags = layout.FLAG_REDELIVER if redeliver else 0
        with self.listener:
            while True:
                target = self._calls.the_one(point, key_hash)
                with self._call() as (waiting, future):
                    job = self._calls.request(
                        waiting, target, point, data, key_hash, flags, deadline
                    )
                    send = functools.partial(self._sender.try_send, target, job)
                    if await self._send(target, send, deadline, point):
                        self._calls.copy(point, data, key_hash)
                        await self._until_answered(future, deadline)
                        if not waiting.returned:
                            return self._calls.result(waiting, target, point, timeout_s)
                    elif time.monotonic() >= deadline:
                        raise CallTimeout(f"nobody stayed, point={point!r}, timeout_s={timeout_s}")
                await asyncio.sleep(0)  # its member has left: whom the registry names next is asked

    async def call_all(self, point: str, data: bytes, timeout_s: float) -> list[Answer]:
        """See ActivationPoint.call_all_async."""
        targets, names = self._calls.everyone(point)
        with self.listener:
            return await asyncio.gather(
                *(
                    self._ask(target, name, point, data, timeout_s)
                    for target, name in zip(targets, names, strict=True)
                )
            )

    async def _ask(
        self, target: Target, name: str, point: str, data: bytes, timeout_s: float
    ) -> Answer:
        deadline = deadline_after(time.monotonic(), timeout_s)
        refusal: AembusError | None = None
        with self._call() as (waiting, future):
            try:
                job = self._calls.request(waiting, target, point, data, IN_TURN, 0, deadline)
                send = functools.partial(self._sender.try_send, target, job)
                if not await self._send(target, send, deadline, point):
                    raise CallFailed(MEMBER_GONE, f"it went just now, point={point!r}")
            except AembusError as error:
                self._sender.refresh()  # raises if nothing can be called any more
                refusal = error
            else:
                await self._until_answered(future, deadline)
            timed_out = f"no answer in time, point={point!r}, timeout_s={timeout_s}"
            return answer_of(name, waiting, refusal, timed_out)

    @contextlib.contextmanager
    def _call(self) -> Iterator[tuple[Waiting, asyncio.Future[None]]]:
        future = self.listener.answer()
        waiting = self._calls.begin(functools.partial(self.listener.arrived, future))
        try:
            yield waiting, future
        finally:
            self._calls.end(waiting)
            self.listener.forget(future)

    async def _until_answered(self, future: asyncio.Future[None], deadline: float) -> None:
        await self.listener.until_answered(future, deadline)
        self._sender.refresh()  # raises if the supervisor died meanwhile

    # --- room -------------------------------------------------------------------------------------

    async def _send(
        self, target: Target, send: Callable[[], int], deadline: float, what: str
    ) -> int:
        queue = target.slot, target.lane_class
        sent = FULL if self._is_waited_for(queue) else send()
        if sent == FULL:
            if target.full != WAIT:
                raise self._sender.no_room(what, 0.0, (target,))
            left_s = deadline - time.monotonic()
            sent = await self._when_room(queue, send, lambda: (target,), left_s, what)
        return sent

    def _is_waited_for(self, queue: object) -> bool:
        lock = self._queues.get(queue)
        return lock is not None and lock.locked()

    async def _when_room(
        self,
        queue: object,
        attempt: Callable[[], int],
        targets: Callable[[], Sequence[Target]],
        timeout_s: float,
        what: str,
    ) -> int:
        # `queue` is the route or the lane: whoever waits in the same one goes first.
        lock = self._queues.setdefault(queue, asyncio.Lock())
        with self.listener:
            try:
                async with asyncio.timeout(timeout_s), lock:
                    while True:
                        jobs = attempt()
                        if jobs != FULL:
                            break
                        with self._sender.room_wanted(targets()) as has_come:
                            jobs = attempt()
                            if jobs != FULL:
                                break
                            with contextlib.suppress(TimeoutError):
                                async with asyncio.timeout(LOOK_AGAIN_S):
                                    await self.listener.until_room(has_come)
            except TimeoutError:
                raise self._sender.no_room(what, timeout_s, targets()) from None
        if jobs == FAILS:
            raise self._sender.no_room(what, 0.0, targets())
        return jobs
