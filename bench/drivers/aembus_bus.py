"""aembus: producers and consumers are members of one bus.

A consumer registers its handler and calls `Bus.run`, a producer activates a point that it keeps.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns
from typing import ClassVar, Final

import aembus
from bench.driver import FOREVER_S, NO_TRIP, Consumer, Driver, Pinger, Ponger, Producer, Trip
from bench.work import END_NUMBER, TEXT, Batch, Shape, keys

SPIN_US: Final = 1000
LANE_VARIABLE: Final = "AEMBUS_LANE"
SPIN_VARIABLE: Final = "AEMBUS_SPIN_US"
JOB_POINT: Final = "bench.job"
END_POINT: Final = "bench.end"  # without a group: every consumer gets it
PING_POINT: Final = "bench.ping"
PONG_POINT: Final = "bench.pong"


class AembusDriver(Driver):
    """A bus with a supervisor of its own; its lanes' implementation is set by the environment."""

    lane: ClassVar[str]

    def __init__(self, shape: Shape, scratch: Path, trip: Trip = NO_TRIP) -> None:
        super().__init__(shape, scratch, trip)
        self.bus = f"bench-{os.getpid()}-{self.serial}"

    @classmethod
    def missing(cls) -> str | None:
        """Return why this implementation of the lanes cannot be measured."""
        found = lane_in_use(cls.lane)
        if found == cls.lane:
            return None
        return f"{LANE_VARIABLE}={cls.lane} gives: {found}"

    @classmethod
    def version(cls) -> str:
        """Return the version of aembus."""
        return f"{aembus.__version__}, lanes in {cls.lane}"

    @property
    def environment(self) -> dict[str, str]:
        """Choose the lanes, and spinning."""
        spin = {SPIN_VARIABLE: str(SPIN_US)} if self.trip.spin else {}
        return {LANE_VARIABLE: self.lane, **spin}

    def open(self, stack: ExitStack) -> None:
        """Start a supervisor without workers; its members join as clients."""
        state = Path(self.scratch) / self.bus
        # After Ctrl-C its members are killed, and it would warn of each.
        bus = aembus.Supervisor(self.bus, state_directory=state, log_level="ERROR")
        stack.enter_context(bus)

    def producer(self, index: int) -> Producer:
        """Join the bus and keep the point."""
        bus = aembus.connect(self.bus)
        return _KeyedProducer(bus) if self.shape.route == "key" else _Producer(bus)

    def consumer(self, index: int) -> Consumer:
        """Join the bus."""
        return _Consumer(self.bus, "consumers" if self.shape.route in ("key", "turn") else None)

    def pinger(self) -> Pinger:
        """Join the bus as the one that begins."""
        return _Pinger(self.bus)

    def ponger(self) -> Ponger:
        """Join the bus as the one that answers."""
        return _Ponger(self.bus)


class AembusCDriver(AembusDriver):
    """aembus with its lanes in C."""

    name = "aembus-c"
    lane = "c"


class AembusPythonDriver(AembusDriver):
    """aembus with its lanes in plain Python."""

    name = "aembus-python"
    lane = "python"


def lane_in_use(lane: str) -> str:
    """Return which lanes a process uses that is told to use `lane`, or what it complains of."""
    said = subprocess.run(
        [sys.executable, "-c", "from aembus.shm import lanes; print(lanes.IMPLEMENTATION)"],
        env={**os.environ, LANE_VARIABLE: lane},
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or said.stderr.strip().rpartition("\n")[2]


class _Producer(Producer):
    def __init__(self, bus: aembus.Bus) -> None:
        self.bus = bus
        self.job, self.through = bus.point(JOB_POINT), bus.point(END_POINT)

    def send(self) -> None:
        activate, blob = self.job.activate, self.batch.blob
        for number in self.batch.numbers:
            try:
                activate(number, TEXT, blob)
            except aembus.InboxFull:  # for a whole second
                activate(number, TEXT, blob, timeout=FOREVER_S)

    def end(self) -> None:
        self.through.activate(END_NUMBER, TEXT, b"", timeout=FOREVER_S)

    def close(self) -> None:
        self.bus.close()


class _KeyedProducer(_Producer):
    def send(self) -> None:
        activate, blob = self.job.activate, self.batch.blob
        for number, key in zip(self.batch.numbers, keys(), strict=False):
            try:
                activate(number, TEXT, blob, key=key)
            except aembus.InboxFull:  # for a whole second
                activate(number, TEXT, blob, key=key, timeout=FOREVER_S)


class _Consumer(Consumer):
    takes_event = True

    def __init__(self, bus: str, group: str | None) -> None:
        self.bus = aembus.connect(bus)
        self.group = group

    def start(self, handle: Callable[..., None]) -> None:
        self.bus.register(JOB_POINT, handle, group=self.group)
        self.bus.register(END_POINT, handle)

    def run(self) -> None:
        self.bus.run()

    def quit(self) -> None:
        self.bus.stop()

    def close(self) -> None:
        self.bus.close()


class _Pinger(Pinger):
    def __init__(self, bus: str) -> None:
        self.bus = aembus.connect(bus)
        self.bus.register(PONG_POINT, self._handle)
        self.ping = self.bus.point(PING_POINT)
        self.numbers = iter(range(0))
        self.times: list[int] = []
        self.number = self.began = 0

    def run(
        self, next_batch: Callable[[], Batch | None], report: Callable[[list[int]], None]
    ) -> None:
        self.next_batch, self.report = next_batch, report
        self._begin()
        self.bus.run()

    def _begin(self) -> None:
        batch = self.next_batch()
        if batch is None:
            self.bus.stop()
            return
        self.times = []
        self.numbers, self.blob = iter(batch.numbers), batch.blob
        self._send(next(self.numbers))

    def _send(self, number: int) -> None:
        self.number = number
        self.began = perf_counter_ns()
        self.ping.activate(number, TEXT, self.blob)

    def _handle(self, event: aembus.Event, number: int, text: str, blob: bytes) -> None:
        self.times.append(perf_counter_ns() - self.began)
        if number != self.number:
            raise RuntimeError(f"a wrong answer, sent={self.number}, got={number}")
        following = next(self.numbers, None)
        if following is not None:
            self._send(following)
        else:
            self.ping.activate(END_NUMBER, TEXT, self.blob)
            self.report(self.times)
            self._begin()

    def close(self) -> None:
        self.bus.close()


class _Ponger(Ponger):
    def __init__(self, bus: str) -> None:
        self.bus = aembus.connect(bus)
        self.bus.register(PING_POINT, self._handle)
        self.pong = self.bus.point(PONG_POINT)

    def run(self, next_round: Callable[[], bool]) -> None:
        self.next_round = next_round
        if next_round():
            self.bus.run()

    def _handle(self, event: aembus.Event, number: int, text: str, blob: bytes) -> None:
        if number >= 0:
            self.pong.activate(number, text, blob)
        elif not self.next_round():
            self.bus.stop()

    def close(self) -> None:
        self.bus.close()
