"""Publishing the registry, and waiting until every live member has passed a generation.

Many changes at once become one generation: the more members there are, the longer changes are
collected (milliseconds), since each of them reads each generation.  Members are asked to
acknowledge only when somebody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import msgpack

from aembus.shm import layout
from aembus.shm.registry import RegistryWriter, registry_full
from aembus.supervisor.members import Member, Members

PAUSE_S: Final = 0.001
PAUSE_S_A_MEMBER: Final = 0.0004
SETTLE_S_MAX: Final = 1.0
ROOM_FOR_MEMBERS: Final = 8  # at most one part in so many of the registry is kept for them


class Publication:
    """Turns changes of the members and services into generations of the registry.

    Args:
        writer: where to publish.
        members: whose acknowledgements count.
        document: returns the document as it should be now; with True, as it will be when all that
            was registered is published.
        on_published: called after each new generation.
    """

    def __init__(
        self,
        writer: RegistryWriter,
        members: Members,
        document: Callable[[bool], dict[str, Any]],
        on_published: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._members = members
        self._document = document
        self._on_published = on_published
        self._waiting: list[asyncio.Future[int]] = []
        self._scheduled: asyncio.TimerHandle | None = None
        self._acknowledgements: list[tuple[int, asyncio.Future[None]]] = []
        self._last = 0.0
        self._ended = False

    @property
    def generation(self) -> int:
        """The generation that is current."""
        return self._writer.generation

    def check_room(self) -> None:
        """Raise OutOfSharedMemory if what was registered would not fit the registry.

        Room is left for members: none is to be refused, and none left out, for others' events.
        """
        room = self._writer.room
        room -= min(self._members.coming_bytes, room // ROOM_FOR_MEMBERS)
        if self._writer.document_bytes + self._members.announced_bytes > room:
            need = len(msgpack.packb(self._document(True)))
            if need > room:
                raise registry_full(need, room)

    async def publish(self) -> int:
        """Publish what changed, together with others' changes; return the generation that has it.

        Raises OutOfSharedMemory if the document is too long.  Never returns after `end`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._waiting.append(future)
        if self._scheduled is None and not self._ended:
            pause = PAUSE_S + PAUSE_S_A_MEMBER * len(self._members)
            self._scheduled = loop.call_at(max(self._last + pause, loop.time()), self.publish_now)
        return await future

    def publish_now(self) -> None:
        """Publish at once (used at the start, and by `publish`'s timer)."""
        waiting, self._waiting = self._waiting, []
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        try:
            generation = self._writer.publish(self._document(False))
        except Exception as error:
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
            if not waiting:
                raise
            return
        for future in waiting:
            if not future.done():
                future.set_result(generation)
        self._on_published()
        if waiting:
            self._last = asyncio.get_running_loop().time()

    async def settle(self) -> None:
        """Wait until what has changed so far is published, or cannot be; not for long."""
        if self._scheduled is None or self._ended:
            return
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await asyncio.wait([future], timeout=SETTLE_S_MAX)
        if not future.cancel():
            future.exception()  # whoever has changed something hears of it

    async def end(self, timeout_s: float) -> None:
        """Publish that the bus is broken, and wait until nobody's activation runs any more.

        Nothing is published after that.  Who takes longer than `timeout_s` is not waited for.
        """
        self._ended = True
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._writer.publish_broken()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.passed(layout.GENERATION_BROKEN), timeout_s)

    async def passed(self, generation: int) -> None:
        """Wait until no live member has an activation under an older generation running.

        A stopped process is waited for, however long it takes: slow is not dead.
        """
        for member in self._members:
            if member.connection is not None:
                member.connection.push({"push": "generation", "generation": generation})
        if self._all_passed(generation):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acknowledgements.append((generation, future))
        await future

    async def welcome(self, member: Member) -> None:
        """Publish a member that has just joined: none of its activations can be older than that.

        Whoever waits for all to pass a generation may wait for this one alone by now, that has
        never been asked.
        """
        self.acknowledge(member, await self.publish())

    def acknowledge(self, member: Member, generation: int) -> None:
        """Take a member's acknowledgement."""
        member.acknowledged = max(member.acknowledged, generation)
        self.check_passed()

    def check_passed(self) -> None:
        """Wake those whose generation everybody has passed (call it too when a member is gone)."""
        for generation, future in list(self._acknowledgements):
            if future.done():
                self._acknowledgements.remove((generation, future))
            elif self._all_passed(generation):
                self._acknowledgements.remove((generation, future))
                future.set_result(None)

    def _all_passed(self, generation: int) -> bool:
        return all(m.connection is None or m.acknowledged >= generation for m in self._members)
