"""aembus used in other ways than by `run` and `activate`, each as if it were a transport.

With ``--lane c --peers aembus-asyncio,aembus-uvloop`` (throughput) or ``aembus-call`` (round trips)
the column "aembus-c / it" says what `run` and `activate` are to them, pair by pair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter_ns
from typing import ClassVar

import aembus
from bench.driver import Consumer, Pinger, Ponger
from bench.drivers.aembus_bus import PING_POINT, AembusCDriver, _Consumer
from bench.work import END_NUMBER, TEXT, Batch

NO_SPIN: frozenset[bool] = frozenset({False})


class AsyncioDriver(AembusCDriver):
    """The consumer is served in an asyncio event loop; its handler is a plain one."""

    name = "aembus-asyncio"
    spins: ClassVar[frozenset[bool]] = frozenset()  # of the throughput alone

    def consumer(self, index: int) -> Consumer:
        """Join the bus."""
        return _ServedConsumer(self.bus, "consumers" if self.shape.route != "all" else None)


class UvloopDriver(AsyncioDriver):
    """The same in uvloop."""

    name = "aembus-uvloop"
    package = "uvloop"
    module = "uvloop"

    def consumer(self, index: int) -> Consumer:
        """Join the bus."""
        return _UvloopConsumer(self.bus, "consumers" if self.shape.route != "all" else None)


class CallDriver(AembusCDriver):
    """A round trip is one call, and what its handler returns."""

    name = "aembus-call"
    spins = NO_SPIN

    def pinger(self) -> Pinger:
        """Join the bus as the caller."""
        return _Caller(self.bus)

    def ponger(self) -> Ponger:
        """Join the bus as the one that is called."""
        return _Callee(self.bus)


class CallAsyncDriver(CallDriver):
    """The same, awaited in an asyncio event loop."""

    name = "aembus-call-async"

    def pinger(self) -> Pinger:
        """Join the bus as the caller."""
        return _AsyncCaller(self.bus)


class _ServedConsumer(_Consumer):
    def run(self) -> None:
        asyncio.run(self.bus.serve())


class _UvloopConsumer(_Consumer):
    def run(self) -> None:
        import uvloop

        uvloop.run(self.bus.serve())


class _Caller(Pinger):
    def __init__(self, bus: str) -> None:
        self.bus = aembus.connect(bus)
        self.point = self.bus.point(PING_POINT)

    def run(
        self, next_batch: Callable[[], Batch | None], report: Callable[[list[int]], None]
    ) -> None:
        call = self.point.call
        while (batch := next_batch()) is not None:
            times, blob = [], batch.blob
            for number in batch.numbers:
                began = perf_counter_ns()
                answer = call(number, TEXT, blob)
                times.append(perf_counter_ns() - began)
                _check(number, answer)
            self.point.activate(END_NUMBER, TEXT, blob)
            report(times)

    def close(self) -> None:
        self.bus.close()


class _AsyncCaller(_Caller):
    def run(
        self, next_batch: Callable[[], Batch | None], report: Callable[[list[int]], None]
    ) -> None:
        asyncio.run(self._run(next_batch, report))

    async def _run(
        self, next_batch: Callable[[], Batch | None], report: Callable[[list[int]], None]
    ) -> None:
        serving = asyncio.create_task(self.bus.serve())
        while (batch := next_batch()) is not None:
            times, blob = [], batch.blob
            for number in batch.numbers:
                began = perf_counter_ns()
                answer = await self.point.call_async(number, TEXT, blob)
                times.append(perf_counter_ns() - began)
                _check(number, answer)
            self.point.activate(END_NUMBER, TEXT, blob)
            report(times)
        self.bus.stop()
        await serving


def _check(number: int, answer: list[object]) -> None:
    if answer[0] != number:
        raise RuntimeError(f"a wrong answer, sent={number}, got={answer[0]}")


class _Callee(Ponger):
    def __init__(self, bus: str) -> None:
        self.bus = aembus.connect(bus)
        self.bus.register(PING_POINT, self._handle)

    def run(self, next_round: Callable[[], bool]) -> None:
        self.next_round = next_round
        if next_round():
            self.bus.run()

    def _handle(
        self, event: aembus.Event, number: int, text: str, blob: bytes
    ) -> tuple[int, str, bytes] | None:
        if number >= 0:
            return number, text, blob
        if not self.next_round():
            self.bus.stop()
        return None

    def close(self) -> None:
        self.bus.close()
