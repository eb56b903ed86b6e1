"""Ctrl-C, and signal handlers that activate, at every bytecode of an activation."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final, cast

import pytest

import aembus
from aembus.codec import decode
from aembus.routes import NEVER
from aembus.sender import Sender
from aembus.shm import lane as reference
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from tests.support.interruption import (
    Arrival,
    At,
    every_bytecode,
    every_ctrl_c,
    every_handler,
    handler,
    interrupt,
    numbers,
    untraced,
)
from tests.support.lanes import implementations, use
from tests.support.senders import SLOT, Activator, Registry
from tests.support.shared import inbox_made, inbox_open, take_turn


class Fanout:
    """A member that activates, and two others: one point wakes one of them, another both."""

    ONE: Final = "one"
    BOTH: Final = "both"

    def __init__(self, bus: str, stack: contextlib.ExitStack) -> None:
        self.bus = stack.enter_context(aembus.connect(bus))
        self._got: list[list[str]] = [[], []]
        self._sequences = [0, 0]
        self._members = [stack.enter_context(aembus.connect(bus)) for _ in self._got]
        for number, member in enumerate(self._members):
            handle = functools.partial(self._handle, number)
            member.register(self.BOTH, handle, name="both")
            if number == 0:
                member.register(self.ONE, handle, name="one")
        for point in (self.ONE, self.BOTH):
            self.activate(point, "warm")

    def _handle(self, number: int, event: aembus.Event, data: str) -> None:
        assert event.job is not None
        self._sequences[number] += 1
        assert event.job.identity.sequence == self._sequences[number], "a gap in the numbers"
        self._got[number].append(data)

    def forget_peers(self) -> None:
        """Make the next activation read the registry and open everything, as the first one does."""
        sender = cast(Any, self.bus)._sender
        sender.peers.close_all()
        sender.routes.drop_publishers()
        sender.routing.generation = NEVER

    def activate(self, point: str, data: str, at: At | None = None) -> tuple[list[str], bool]:
        """Activate while both members sleep; return what arrived, and whether Ctrl-C came."""
        interrupted = False
        for inbox in self._inboxes():
            inbox.announce_sleep(lambda: False)
        try:
            with at or contextlib.nullcontext():
                assert self.bus.activate(point, data) == (1 if point == self.ONE else 2)
        except KeyboardInterrupt:
            interrupted = True
        posts = [inbox.end_sleep() for inbox in self._inboxes()]
        for number, member in enumerate(self._members):
            jobs = 0
            while more := member.poll():
                jobs += more
            assert not jobs or posts[number], "published, but nobody was told"
        first, second = self._got
        assert second == (first if point == self.BOTH else []), "published to one, not to the other"
        self._got = [[], []]
        return first, interrupted

    def _inboxes(self) -> list[Inbox]:
        return [cast(Any, member)._inbox for member in self._members]


@pytest.fixture(params=implementations(), ids=lambda module: module.IMPLEMENTATION)
def fanout(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, bus_name: str
) -> Iterator[Fanout]:
    """A bus with three members of this process."""
    use(monkeypatch, request.param)
    with contextlib.ExitStack() as stack:
        stack.enter_context(aembus.Supervisor(bus_name))
        yield Fanout(bus_name, stack)
    close_descriptors(bus_name)


def close_descriptors(bus: str) -> None:
    """Close what Ctrl-C left open: between opening a segment and the next line, nobody owns it."""
    gc.collect()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{number}").startswith(f"/dev/shm/aembus.{bus}."):
                os.close(int(number))


@pytest.fixture
def plain_fanout(monkeypatch: pytest.MonkeyPatch, bus_name: str) -> Iterator[Fanout]:
    """The same with the lane in plain Python, where an activation has bytecodes all the way."""
    use(monkeypatch, reference)
    with contextlib.ExitStack() as stack:
        stack.enter_context(aembus.Supervisor(bus_name))
        yield Fanout(bus_name, stack)


CASES: Final = [(Fanout.ONE, False), (Fanout.BOTH, False), (Fanout.BOTH, True)]  # True: the first


def test_ctrl_c_leaves_all_or_nothing(fanout: Fanout) -> None:
    """Wherever Ctrl-C falls, all get the job and are told, or none does; and all goes on."""
    for point, first in CASES:
        ends: set[tuple[bool, bool]] = set()

        def run(at: At, point: str = point, first: bool = first) -> None:
            if first:
                fanout.forget_peers()
            got, interrupted = fanout.activate(point, "job", at)
            assert got in ([], ["job"]), at.where
            assert interrupted or got == ["job"], at.where
            ends.add((interrupted, bool(got)))  # noqa: B023
            assert fanout.activate(point, "next") == (["next"], False), at.where

        count = every_ctrl_c(run)
        print(f"{point}, first={first}: bytecodes={count}")
        assert count > 50
        assert ends == {(False, True), (True, True), (True, False)}


def test_an_activation_by_a_handler_is_delivered_once(fanout: Fanout) -> None:
    """Wherever a signal handler activates, its job and the interrupted one both arrive, once."""
    for point, first in CASES:

        def run(at: At, point: str = point, first: bool = first) -> None:
            if first:
                fanout.forget_peers()
            got, _ = fanout.activate(point, "outer", at)
            assert sorted(got) == (["inner", "outer"] if at.happened else ["outer"]), at.where

        count = every_handler(run, functools.partial(fanout.bus.activate, point, "inner"))
        print(f"{point}, first={first}: bytecodes={count}")
        assert count > 50


def test_a_handler_may_activate_and_raise(fanout: Fanout) -> None:
    """What a signal handler activated before it raised is delivered once, the other or not."""
    for point, _ in CASES[:2]:

        def activate_and_raise(point: str = point) -> None:
            fanout.bus.activate(point, "inner")
            interrupt()

        def run(at: At, point: str = point) -> None:
            got, interrupted = fanout.activate(point, "outer", at)
            assert got.count("inner") == interrupted, at.where
            assert got.count("outer") <= 1, at.where
            assert fanout.activate(point, "next") == (["next"], False), at.where

        with handler(signal.SIGUSR1, activate_and_raise):
            count = every_bytecode(lambda number: At({number: Arrival(signal.SIGUSR1)}), run)
        assert count > 50


def test_ctrl_c_loses_no_activation_that_was_put_aside(plain_fanout: Fanout) -> None:
    """What a signal handler activated is delivered once, wherever Ctrl-C falls after it."""
    fanout = plain_fanout
    interrupts: list[bool] = []

    def nested_or_interrupt() -> None:
        if not interrupts:
            interrupts.append(True)
            fanout.bus.activate(Fanout.BOTH, "inner")
        else:
            interrupt()

    def nested_first(number: int) -> At:
        interrupts.clear()
        return At(
            {
                inside: lambda: signal.raise_signal(signal.SIGUSR1),
                inside + number: Arrival(signal.SIGUSR1),
            }
        )

    def run(at: At) -> None:
        got, _ = fanout.activate(Fanout.BOTH, "outer", at)
        assert got.count("inner") == 1, at.where
        assert got.count("outer") <= 1, at.where

    inside = bytecode_in(fanout, "_claim_and_commit", Fanout.BOTH, first=False)
    with handler(signal.SIGUSR1, nested_or_interrupt):
        count = every_bytecode(nested_first, run)
    assert count > 50


@pytest.mark.parametrize("point", [Fanout.ONE, Fanout.BOTH])
def test_what_signal_handlers_activate_keeps_its_order(fanout: Fanout, point: str) -> None:
    """Wherever a second handler comes after one that was put aside, it does not overtake it."""
    started = itertools.count()

    def activate_next() -> None:
        fanout.bus.activate(point, f"inner {next(started)}")

    def twice(number: int) -> At:
        come = lambda: signal.raise_signal(signal.SIGUSR1)  # noqa: E731
        return At({inside: come, inside + number: come})

    def run(at: At) -> None:
        fanout.forget_peers()
        got, _ = fanout.activate(point, "outer", at)
        inner = [int(data.split()[1]) for data in got if data != "outer"]
        assert inner == sorted(inner), at.where
        assert len(inner) == 2 or not at.happened, at.where

    inside = bytecode_in(fanout, "_claim_and_commit", point, first=True)
    with handler(signal.SIGUSR1, activate_next):
        count = every_bytecode(twice, run)
    assert count > 50


def test_a_signal_handler_may_activate_often(fanout: Fanout) -> None:
    """More activations than Python has frames are put aside by one handler; all come, in order."""
    many = 2 * sys.getrecursionlimit()

    def activate_many() -> None:
        for number in range(many):
            fanout.bus.activate(Fanout.ONE, str(number))

    inside = bytecode_in(fanout, "_claim_and_commit", Fanout.ONE, first=True)
    fanout.forget_peers()
    with handler(signal.SIGUSR1, activate_many):
        at = At({inside: lambda: signal.raise_signal(signal.SIGUSR1)})
        got, _ = fanout.activate(Fanout.ONE, "outer", at)
    assert got == ["outer", *map(str, range(many))]


def bytecode_in(fanout: Fanout, function: str, point: str, *, first: bool) -> int:
    """Return the number of an activation's first bytecode that lies in `function`.

    first: of one that opens everything.  A later one of one lane in C has few bytecodes.
    """
    for number in numbers():
        at = At({number: lambda: None})
        if first:
            fanout.forget_peers()
        fanout.activate(point, "looking", at)
        if f" {function} " in at.where[0]:
            return number
    raise AssertionError


# --- one sender alone, with a registry of its own -------------------------------------------------


def received(inbox: Inbox) -> list[str]:
    """Take what has arrived."""
    return [decode(record.payload)[0] for record in take_turn(inbox)]


@pytest.fixture
def inboxes(monkeypatch: pytest.MonkeyPatch, bus_name: str) -> Iterator[tuple[Inbox, Inbox]]:
    """Two inboxes, 0 and 1; each holds four small records from each producer."""
    use(monkeypatch, reference)
    with contextlib.ExitStack() as stack:
        for inbox_id in (0, 1):
            stack.enter_context(inbox_made(bus_name, inbox_id, lane_bytes=512))
        yield (
            stack.enter_context(inbox_open(bus_name, 0)),
            stack.enter_context(inbox_open(bus_name, 1)),
        )
    close_descriptors(bus_name)


@pytest.mark.parametrize("by", ["activation", "refresh"])
@pytest.mark.parametrize("what", ["ctrl-c", "handler"])
def test_a_change_of_the_bus_is_taken_in_whole(
    bus_name: str, inboxes: tuple[Inbox, Inbox], by: str, what: str
) -> None:
    """However reading the registry is interrupted, nothing goes to who was in the slot before."""
    registry = Registry({0: 0}, [(1, 0, None)])
    alone = Activator(bus_name, registry)
    old, new = inboxes

    def run(at: At) -> None:
        registry.members[0] = 0
        registry.publish()
        alone.activate("old")
        assert received(old) == ["old"]
        registry.members[0] = 1
        registry.publish()
        with contextlib.suppress(KeyboardInterrupt), at:
            if by == "refresh":
                alone.sender.refresh()
            else:
                alone.activate("first")
        alone.activate("second")
        assert received(old) == [], at.where
        expected = ["second"]
        if by == "activation":
            expected = ["first", *expected]
        if what == "handler" and at.happened:
            expected = ["inner", *expected]
        got = received(new)
        assert got[-1] == "second", at.where
        if what == "handler" or not at.happened:
            assert sorted(got) == expected if by == "refresh" else sorted(expected), at.where

    if what == "handler":
        count = every_handler(run, lambda: alone.activate("inner"))
    else:
        count = every_ctrl_c(run)
    alone.sender.close()
    assert count > 100


@pytest.mark.parametrize("module", implementations(), ids=lambda module: module.IMPLEMENTATION)
def test_who_is_refused_in_the_middle_sends_nothing_later(
    monkeypatch: pytest.MonkeyPatch, bus_name: str, inboxes: tuple[Inbox, Inbox], module: ModuleType
) -> None:
    """Wherever another thread finds the supervisor gone: no later activation is taken."""
    use(monkeypatch, module)
    old, _ = inboxes
    came: set[bool] = set()

    def run(at: At) -> None:
        alone = Activator(bus_name, Registry({0: 0}, [(1, 0, None)]))
        senders.append(alone.sender)
        refused = False
        try:
            with at:
                assert alone.activate("in the middle") == 1, at.where
        except aembus.BusBroken:
            refused = True
        came.add(refused)
        assert at.happened or not refused
        if at.happened:
            with pytest.raises(aembus.BusBroken):
                alone.activate("later")
        assert received(old) == ([] if refused else ["in the middle"]), at.where
        alone.sender.close()

    senders: list[Sender] = []
    count = every_bytecode(
        lambda number: At({number: lambda: senders[-1].refuse(aembus.BusBroken("gone"))}), run
    )
    assert count > 100
    assert came == {True, False}


def test_ctrl_c_while_waiting_for_room_takes_the_wish_back(
    bus_name: str, inboxes: tuple[Inbox, Inbox]
) -> None:
    """Wherever Ctrl-C falls, the lane's owner is not asked for room that nobody waits for."""
    alone = Activator(bus_name, Registry({0: 0}, [(1, 0, None)]))
    old, _ = inboxes
    wishes = set()

    def make_room(ready: Callable[[], bool], timeout_s: float) -> bool:
        wishes.add(room_wanted(old))
        while not ready():
            with untraced():
                take_turn(old)
        return True

    def run(at: At) -> None:
        while alone.try_activate("fill") == 1:
            pass
        with contextlib.suppress(KeyboardInterrupt), at:
            alone.activate("waited")
        assert not room_wanted(old), at.where
        take_turn(old)
        assert alone.activate("next") == 1
        assert received(old) == ["next"], at.where

    alone.wait = make_room
    count = every_ctrl_c(run)
    alone.sender.close()
    assert wishes == {1}
    assert count > 100


def room_wanted(inbox: Inbox) -> int:
    """Return the flag by which the sender asks this inbox's owner for room."""
    segment = inbox._segment
    control = layout.lane_control_offset(segment.slots, SLOT)
    return int(segment.words[(control + layout.LANE_ROOM_WANTED) // 8])
