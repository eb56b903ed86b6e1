"""Ctrl-C, and signal handlers that activate, at every bytecode of an activation."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

import aembus
from aembus.codec import decode, encode
from aembus.sender import IN_TURN, NEVER, Sender
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from aembus.shm.registry import RegistryReader
from tests.support.interruption import Arrival, At, every_bytecode, numbers, untraced
from tests.support.lanes import implementations, use
from tests.support.shared import NONCE, inbox_made, inbox_open, take_turn

POINT: Final = "here"


@contextlib.contextmanager
def handler(run: Callable[[], object]) -> Iterator[None]:
    """Have `run` called by Python's handler of SIGUSR1."""
    before = signal.signal(signal.SIGUSR1, lambda number, frame: run())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt() -> None:
    raise KeyboardInterrupt


def ctrl_c_at(number: int) -> At:
    """A Ctrl-C that arrives before a bytecode; Python raises where it next looks for signals."""
    return At({number: Arrival(signal.SIGUSR1)})


def handler_at(number: int) -> At:
    """A handler that runs before a bytecode, whether Python would look for signals there or not."""
    return At({number: lambda: signal.raise_signal(signal.SIGUSR1)})


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
        for peer in sender._peers.values():
            peer.close()
        sender._peers.clear()
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
            jobs = member.poll()
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

        with handler(interrupt):
            count = every_bytecode(ctrl_c_at, run)
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

        with handler(lambda point=point: fanout.bus.activate(point, "inner")):  # type: ignore[misc]
            count = every_bytecode(handler_at, run)
        print(f"{point}, first={first}: bytecodes={count}")
        assert count > 50


def test_a_handler_may_activate_and_raise(fanout: Fanout) -> None:
    """What a signal handler activated before it raised is delivered once, the other or not."""
    for point, first in CASES[:2]:

        def activate_and_raise(point: str = point) -> None:
            fanout.bus.activate(point, "inner")
            interrupt()

        def run(at: At, point: str = point) -> None:
            got, interrupted = fanout.activate(point, "outer", at)
            assert got.count("inner") == interrupted, at.where
            assert got.count("outer") <= 1, at.where
            assert fanout.activate(point, "next") == (["next"], False), at.where

        with handler(activate_and_raise):
            count = every_bytecode(ctrl_c_at, run)
        assert count > 50, first


def test_ctrl_c_loses_no_activation_that_was_put_aside(fanout: Fanout) -> None:
    """What a signal handler activated is delivered once, wherever Ctrl-C falls after it."""
    interrupts: list[bool] = []

    def nested_or_interrupt() -> None:
        if not interrupts:
            interrupts.append(True)
            fanout.bus.activate(Fanout.BOTH, "inner")
        else:
            interrupt()

    def nested_first(number: int) -> At:
        interrupts.clear()
        return At({
            inside: lambda: signal.raise_signal(signal.SIGUSR1),
            inside + number: Arrival(signal.SIGUSR1),
        })

    def run(at: At) -> None:
        fanout.forget_peers()
        got, _ = fanout.activate(Fanout.BOTH, "outer", at)
        assert got.count("inner") == 1, at.where
        assert got.count("outer") <= 1, at.where

    inside = bytecode_in(fanout, "commit")
    with handler(nested_or_interrupt):
        count = every_bytecode(nested_first, run)
    assert count > 50


def bytecode_in(fanout: Fanout, *functions: str) -> int:
    """Return the number of the first activation's first bytecode that lies in such a function."""
    for number in numbers():
        at = At({number: lambda: None})
        fanout.forget_peers()
        fanout.activate(Fanout.BOTH, "looking", at)
        if any(f" {function} " in at.where[0] for function in functions):
            return number
    raise AssertionError


# --- one sender alone, with a registry of its own -------------------------------------------------


class Alone:
    """A sender whose only target is in slot 0, in the inbox that the registry names."""

    def __init__(self, bus: str) -> None:
        self.words = [1] * (RegistryReader.generation_word + 1)
        self._inbox_id = 0
        reader = SimpleNamespace(words=self.words, read=self._read)
        reader.generation_word = RegistryReader.generation_word
        self.wait: Callable[[Callable[[], bool], float], bool] = lambda ready, timeout_s: ready()
        self.sender = Sender(
            bus, NONCE, 1, 1, cast(Any, reader), lambda ready, timeout_s: self.wait(ready, timeout_s)
        )
        self.route = self.sender.route(POINT)

    def _read(self) -> tuple[int, dict[str, Any]]:
        member = [0, 1, self._inbox_id, "client", "", 0, "running"]
        document = {"members": [member], "points": {POINT: [[1, 0, None]]}, "services": []}
        return self.words[-1], document

    def move(self, inbox_id: int) -> None:
        """Publish that somebody else, with another inbox, is in slot 0 now."""
        self._inbox_id = inbox_id
        self.words[-1] += 1

    def activate(self, data: str) -> int:
        return self.sender.activate(self.route, encode((data,)), IN_TURN, 10.0)


def received(inbox: Inbox) -> list[str]:
    return [decode(record.payload)[0] for record in take_turn(inbox)]


@pytest.fixture
def inboxes(bus_name: str) -> Iterator[tuple[Inbox, Inbox]]:
    """Two inboxes, 0 and 1; one holds eight small records from each producer."""
    with contextlib.ExitStack() as stack:
        for inbox_id in (0, 1):
            stack.enter_context(inbox_made(bus_name, inbox_id, lane_bytes=512))
        yield (
            stack.enter_context(inbox_open(bus_name, 0)),
            stack.enter_context(inbox_open(bus_name, 1)),
        )


@pytest.mark.parametrize("by", ["activation", "refresh"])
@pytest.mark.parametrize("what", ["ctrl-c", "handler"])
def test_a_change_of_the_bus_is_taken_in_whole(
    bus_name: str, inboxes: tuple[Inbox, Inbox], by: str, what: str
) -> None:
    """However reading the registry is interrupted, nothing goes to who was in the slot before."""
    alone = Alone(bus_name)
    old, new = inboxes

    def run(at: At) -> None:
        alone.move(0)
        alone.activate("old")
        assert received(old) == ["old"]
        alone.move(1)
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

    inner = (lambda: alone.activate("inner")) if what == "handler" else interrupt
    with handler(inner):
        count = every_bytecode(handler_at if what == "handler" else ctrl_c_at, run)
    alone.sender.close()
    assert count > 100


def test_ctrl_c_while_waiting_for_room_takes_the_wish_back(
    bus_name: str, inboxes: tuple[Inbox, Inbox]
) -> None:
    """Wherever Ctrl-C falls, the lane's owner is not asked for room that nobody waits for."""
    alone = Alone(bus_name)
    old, _ = inboxes
    wishes = set()

    def make_room(ready: Callable[[], bool], timeout_s: float) -> bool:
        wishes.add(room_wanted(old))
        while not ready():
            with untraced():
                take_turn(old)
        return True

    def run(at: At) -> None:
        while alone.sender.try_activate(alone.route, encode(("fill",)), IN_TURN) == 1:
            pass
        with contextlib.suppress(KeyboardInterrupt), at:
            alone.activate("waited")
        assert not room_wanted(old), at.where
        take_turn(old)
        assert alone.activate("next") == 1
        assert received(old) == ["next"], at.where

    alone.wait = make_room
    with handler(interrupt):
        count = every_bytecode(ctrl_c_at, run)
    alone.sender.close()
    assert wishes == {1}
    assert count > 100


def room_wanted(inbox: Inbox) -> int:
    segment = inbox._segment
    control = layout.lane_control_offset(segment.slots, 1)
    return int(segment.words[(control + layout.LANE_ROOM_WANTED) // 8])
