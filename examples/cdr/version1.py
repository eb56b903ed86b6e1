"""The service "cdr", version 1: it answers a call when its records are on the disk.

Records that come while a batch is written make up the next batch, so the more there is to do, the
larger the batches.  Beyond ROOM_MAX nothing is taken before there is room again: who calls waits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aembus.services import Caller, HandOver, Host, Service, call

from . import store

ROOM_MAX = 1000  # records that wait for their batch


class CdrWriter(Service):
    """Writes call detail records, in batches."""

    name = "cdr"
    version = "1"
    points = ("cdr.written",)
    columns: tuple[str, ...] = store.COLUMNS

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._waiting: list[tuple[list[list[Any]], asyncio.Future[None]]] = []
        self._rows_waiting = 0
        self._changed = asyncio.Condition()
        self._written = 0
        self._repeated = 0

    async def start(self) -> None:
        """See Service."""
        await asyncio.to_thread(store.prepare)

    @call
    async def write(self, caller: Caller, records: list[list[Any]]) -> None:
        """Write records: lists of id, caller, callee, begun_at, ended_at; answered when it is done.

        The id makes a record one: who is not sure whether it was written may write it again.

        Raises: ValueError, TypeError: for what is none, with nothing written.
        """
        rows = [self.row(record) for record in records]  # here: what is none is its caller's fault
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with self._changed:
            await self._changed.wait_for(lambda: self._rows_waiting < ROOM_MAX)
            self._waiting.append((rows, done))
            self._rows_waiting += len(rows)
            self._changed.notify_all()
        await done

    async def run(self) -> None:
        """Write one batch after the other."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._waiting)
                batch, self._waiting, self._rows_waiting = self._waiting, [], 0
                self._changed.notify_all()
            rows = [row for given, _ in batch for row in given]
            try:
                new = await asyncio.to_thread(store.write, self.columns, rows)
            except Exception as error:
                for _, done in batch:
                    done.set_exception(error)
                continue
            self._written += new
            self._repeated += len(rows) - new
            for _, done in batch:
                done.set_result(None)
            self.activate("cdr.written", self._written)

    def row(self, record: list[Any]) -> list[Any]:
        """Return the row of a record: id, caller, callee, begun_at, ended_at."""
        number, caller, callee, begun_at, ended_at = record
        return [number, caller, callee, begun_at, ended_at, self.version]

    # What was taken is written, answered and counted by the version that took it.  What passes on
    # is how many there were before.

    def hand_over(self) -> HandOver:
        """See Service."""
        return HandOver([self._written, self._repeated])

    async def take_over(self, handed: HandOver) -> None:
        """See Service."""
        self._written, self._repeated = handed.data
        await self.start()

    def resume(self, handed: HandOver) -> None:
        """See Service: nothing was let go of."""

    def statistics(self) -> dict[str, int]:
        """See Service."""
        return {
            "written": self._written,
            "repeated": self._repeated,
            "waiting": self._rows_waiting,
        }
