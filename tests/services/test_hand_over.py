"""The timer and exit services pass their state on to another version of themselves."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

import aembus
from aembus.codec import decode, encode
from aembus.sender import FULL
from aembus.services.base import Caller, HandOver
from aembus.services.exit import KNOWN, ExitService
from aembus.services.timer import TimerService
from aembus.services.wheel import timer_id
from aembus.shm import layout
from tests.support.running import until

MS: Final = 1_000_000
BEGIN_NS: Final = 10**15
WALL_NS: Final = 1_700_000_000 * 10**9


@dataclass
class Clocks:
    """The clocks of a host; only a test moves them."""

    now_ns: int = BEGIN_NS
    wall_ns: int = WALL_NS


@dataclass
class HandHost:
    """A host whose clocks and room a test has in hand; it notes what it was asked to send."""

    clocks: Clocks
    has_room: bool = True
    expiries: list[tuple[int, int, int]] = field(default_factory=list)  # ms, slot, id
    activations: list[tuple[int, str, Any]] = field(default_factory=list)  # ms, point, data
    sent: list[Any] = field(default_factory=list)
    sources: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def now_ns(self) -> int:
        """See Host."""
        return self.clocks.now_ns

    def wall_ns(self) -> int:
        """See Host."""
        return self.clocks.wall_ns

    def passed_ms(self) -> int:
        """Return the time since the beginning."""
        return (self.clocks.now_ns - BEGIN_NS) // MS

    def numbers_route(self, slot: int, kind: int, addressee: int) -> Any:
        """See Host."""
        return HandRoute(self, slot)

    def new_source(self) -> int:
        """See Host."""
        return next(self.sources)

    def activate(
        self,
        point: str,
        payload: bytes,
        key_hash: int | None,
        source: int = 0,
        repeats: bool = False,
    ) -> int:
        """See Host."""
        self.activations.append((self.passed_ms(), point, decode(payload)))
        return 1

    def send(self, target: Any, job: Any, source: int = 0) -> int:
        """See Host."""
        self.sent.append((target.slot, job))
        return 1

    def incarnation(self, slot: int) -> int:
        """See Host."""
        return slot * 10

    def want_room(self, slot: int, wanted: bool) -> None:
        """See Host."""

    def work_is_due(self, service: Any) -> None:
        """See Host."""


@dataclass
class HandRoute:
    """A way to one member, as far as the timer service uses it."""

    host: HandHost
    slot: int
    publisher: None = None

    def try_send(self, first: int, second: int) -> int:
        """See NumbersRoute."""
        if not self.host.has_room:
            return FULL
        self.host.expiries.append((self.host.passed_ms(), self.slot, first))
        return 1

    def close(self) -> None:
        """See NumbersRoute."""


def travelled(handed: HandOver) -> HandOver:
    """Return what arrives."""
    return HandOver(msgpack.unpackb(msgpack.packb(handed.data)), handed.descriptors)


def pass_time(service: TimerService, host: HandHost, until_ms: int) -> None:
    """Let a service do its work whenever it is due."""
    while (due_ns := service.next_due_ns()) is not None:
        if due_ns > BEGIN_NS + until_ms * MS:
            break
        passed = max(due_ns - host.clocks.now_ns, 0)
        host.clocks.now_ns += passed
        host.clocks.wall_ns += passed
        if not service.do_work(host.clocks.now_ns):
            host.clocks.now_ns += MS  # it was early for what had to be brought down
            host.clocks.wall_ns += MS


@pytest.mark.parametrize("fails", [False, True])
def test_no_timer_is_lost_doubled_or_early_by_a_hand_over(fails: bool) -> None:
    """Of 3,000 timers of two processes each fires once; periodic ones keep their beat."""
    chance = random.Random(fails)
    clocks = Clocks()
    host = HandHost(clocks)
    service: TimerService = TimerService(host)  # type: ignore[arg-type]
    first = BEGIN_NS // MS
    due: dict[tuple[int, int], int] = {}
    for slot in (1, 2):
        numbers: list[int] = []
        for index in range(1500):
            delay = chance.choice((chance.randrange(1, 500), chance.randrange(1, 100_000)))
            started = timer_id(index, 1 + index % 3)
            due[slot, started] = delay
            numbers += (started, first + delay)
        service.set(Caller(slot, slot * 10), numbers)
    starter = Caller(1, 10)
    service.start_handler(starter, 1 << 61, BEGIN_NS + 70 * MS, 70 * MS, False)
    data = encode(("data",))
    service.start_point(starter, 1 << 62, BEGIN_NS + 7 * MS, 7 * MS, False, "beat", data, 5, "b")
    service.start_point(starter, 2 + (1 << 62), WALL_NS + 900 * MS, 0, True, "at", data, None, None)
    pass_time(service, host, 250)
    host.has_room = False
    pass_time(service, host, 260)
    assert service.statistics()["owed"] > 0
    running = service.statistics()["running"]
    handed = service.hand_over()
    assert service.next_due_ns() is None
    assert service.do_work(clocks.now_ns + 10**12) == 0
    if fails:
        service.resume(handed)
        successor = service
    else:
        successor = TimerService(host)  # type: ignore[arg-type]
        asyncio.run(successor.take_over(travelled(handed)))
    host.has_room = True
    assert successor.statistics()["running"] == running
    # Names and ids are known there.
    successor.start_point(Caller(2, 20), 9 + (1 << 62), BEGIN_NS, 0, False, "no", data, None, "b")
    cancelled = [key for key, delay in due.items() if delay > 300][::7]
    for slot, started in cancelled:
        successor.set(Caller(slot, slot * 10), (started, 0))
        del due[slot, started]
    pass_time(successor, host, 1000)
    successor.cancel(Caller(2, 20), 0, "b")
    successor.cancel(starter, 1 << 61, None)
    pass_time(successor, host, 100_000)
    plain = [e for e in host.expiries if e[2] != 1 << 61]
    assert sorted((slot, started) for _, slot, started in plain) == sorted(due)
    late = [passed - due[slot, started] for passed, slot, started in plain]
    assert min(late) >= 0
    assert max(late) <= 30  # those that found no room, until it is looked for again
    beats = [passed for passed, point, _ in host.activations if point == "beat"]
    assert beats[:5] == [7, 14, 21, 28, 35]
    assert all(beat % 7 == 0 for beat in beats)
    assert len(beats) == 1000 // 7
    handler_beats = [passed for passed, _, started in host.expiries if started == 1 << 61]
    assert len(handler_beats) == 14
    assert [e for e in host.activations if e[1] != "beat"] == [(900, "at", ["data"])]
    assert successor.statistics()["running"] == 0


def test_a_hand_over_keeps_who_is_gone() -> None:
    """What a dead process sent arrives after its death and the hand-over: it starts nothing."""
    host = HandHost(Clocks())
    service = TimerService(host)  # type: ignore[arg-type]
    service.set(Caller(1, 10), (timer_id(0, 1), BEGIN_NS // MS))
    service.on_member_gone(1, 10)
    successor = TimerService(host)  # type: ignore[arg-type]
    asyncio.run(successor.take_over(travelled(service.hand_over())))
    successor.set(Caller(1, 10), (timer_id(1, 1), BEGIN_NS // MS))
    assert successor.statistics()["running"] == 0
    successor.set(Caller(1, 11), (timer_id(0, 1), BEGIN_NS // MS))
    assert successor.statistics()["running"] == 1


@pytest.mark.parametrize("fails", [False, True])
def test_watches_are_passed_on_with_their_descriptors(fails: bool) -> None:
    """A process that ends before the hand-over is through, and one after it: each told once."""
    children = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", f"input(); raise SystemExit({number})"],
            stdin=subprocess.PIPE,
        )
        for number in (1, 2)
    ]
    host = HandHost(Clocks())

    def end(child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.close()

    async def told(count: int) -> None:
        while len(host.sent) + len(host.activations) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def scene() -> None:
        service = ExitService(host)  # type: ignore[arg-type]
        await service.start()
        service.watch(Caller(1, 10), children[0].pid, 7, None, b"", None, None)
        data = encode(("data",))
        service.watch(Caller(1, 10), children[1].pid, 8, "gone", data, None, "name")
        handed = service.hand_over()
        end(children[0])
        await asyncio.to_thread(os.waitid, os.P_PID, children[0].pid, os.WEXITED | os.WNOWAIT)
        successor = service
        if fails:
            for descriptor in handed.descriptors:
                os.close(descriptor)
            service.resume(handed)
        else:
            successor = ExitService(host)  # type: ignore[arg-type]
            await successor.take_over(travelled(handed))
            await service.stop()
        await asyncio.wait_for(told(1), 20)
        successor.watch(Caller(1, 10), children[1].pid, 9, "gone", data, None, "name")
        assert successor.statistics()["watches"] == 1
        end(children[1])
        await asyncio.wait_for(told(2), 20)
        await successor.stop()

    try:
        asyncio.run(scene())
    finally:
        for child in children:
            child.kill()
            child.wait()
    ((slot, job),) = host.sent
    assert (slot, job.kind, job.reply_id, job.deadline_ns, job.addressee) == (
        *(1, layout.KIND_EXIT, 7, KNOWN + 1, 10),
    )
    assert host.activations == [(0, "gone", [children[1].pid, 2, "data"])]


def test_timers_and_watches_go_on_over_an_upgrade(bus_name: str, tmp_path: Path) -> None:
    """On a bus: what was started before the upgrade fires once, and can still be cancelled."""
    fired: list[int] = []
    told: list[Any] = []
    beats: list[int] = []
    with (
        aembus.Supervisor(bus_name, services=["timer", "exit"], state_directory=tmp_path),
        aembus.connect(bus_name) as member,
        aembus.ServiceBox(bus_name) as box,
        subprocess.Popen(["sh", "-c", "read line; exit 4"], stdin=subprocess.PIPE) as child,
    ):
        timer = member.service("timer")
        timers = [
            timer.after(0.2 + number * 0.002, lambda event, n: fired.append(n), number)
            for number in range(400)
        ]
        timer.every(0.01, lambda event: beats.append(1))
        member.service("exit").watch(child.pid, lambda event, *what: told.append(what), "data")
        for name in ("timer", "exit", "timer"):
            change = box.upgrade(name, hand_over=True)
            assert change.handed_over
        for started in timers[1::2]:
            started.cancel()
        seen = len(beats)
        assert child.stdin is not None
        child.stdin.close()
        timer.after(1.2, lambda event: fired.append(-1))
        until("all have fired", lambda: member.poll(0.1) * 0 or -1 in fired)
        until("it is told", lambda: member.poll(0.1) * 0 or told)
        even = [number for number in fired if number >= 0 and number % 2 == 0]
        assert even == [*range(0, 400, 2)]
        assert len(set(fired)) == len(fired)
        assert len(beats) > seen
        assert told == [(child.pid, 4, "data")]
