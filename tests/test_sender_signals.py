"""Ctrl-C, and signal handlers that activate, at every bytecode of an activation."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

import aembus
from aembus.codec import decode, encode
from aembus.routing import Routing
from aembus.sender import NEVER, Job, Sender
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from tests.support.interruption import Arrival, At, every_bytecode
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
    """A member that activates, and two whose events both get each activation."""

    def __init__(self, bus: str, stack: contextlib.ExitStack) -> None:
        self.bus = stack.enter_context(aembus.connect(bus))
        self.point = self.bus.point(POINT)
        self.got: list[list[str]] = [[], []]
        self._sequences = [0, 0]
        self._members = [stack.enter_context(aembus.connect(bus)) for _ in self.got]
        for number, member in enumerate(self._members):
            member.register(POINT, lambda event, data, n=number: self._handle(n, event, data))

    def _handle(self, number: int, event: aembus.Event, data: str) -> None:
        assert event.job is not None
        self._sequences[number] += 1
        assert event.job.identity.sequence == self._sequences[number]
        self.got[number].append(data)

    def forget_peers(self) -> None:
        """Make the next activation read the registry and open everything, as the first one does."""
        sender = cast(Any, self.bus)._sender
        for peer in sender._peers.values():
            peer.close()
        sender._peers.clear()
        sender.routing.generation = NEVER

    def activate(self, data: str, at: At | None = None) -> bool:
        """Activate while both sleep; return whether Ctrl-C came.  All or nothing must arrive."""
        interrupted = False
        for inbox in self._inboxes():
            inbox.announce_sleep(lambda: False)
        try:
            with at or contextlib.nullcontext():
                assert self.point.activate(data) == 2
        except KeyboardInterrupt:
            interrupted = True
        posts = [inbox.end_sleep() for inbox in self._inboxes()]
        for number, member in enumerate(self._members):
            jobs = member.poll()
            assert not jobs or posts[number], "published, but nobody was told"
        assert self.got[0] == self.got[1], "published to one, not to the other"
        return interrupted

    def take(self) -> list[str]:
        """Return what arrived since the last call."""
        got = list(self.got[0])
        self.got[0].clear()
        self.got[1].clear()
        return got

    def _inboxes(self) -> list[Inbox]:
        return [cast(Any, member)._inbox for member in self._members]


@pytest.fixture
def fanout(bus_name: str) -> Iterator[Fanout]:
    """A bus with three members of this process."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(aembus.Supervisor(bus_name))
        yield Fanout(bus_name, stack)


@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
def test_ctrl_c_leaves_all_or_nothing(fanout: Fanout, first: bool) -> None:
    """Wherever Ctrl-C falls, both get the job and are told, or none does; and all goes on."""
    ends: set[tuple[bool, bool]] = set()

    def run(at: At) -> None:
        if first:
            fanout.forget_peers()
        interrupted = fanout.activate("job", at)
        got = fanout.take()
        assert got in ([], ["job"]), at.where
        assert interrupted or got == ["job"], at.where
        ends.add((interrupted, bool(got)))
        assert not fanout.activate("next")
        assert fanout.take() == ["next"], at.where

    fanout.activate("warm")
    fanout.take()
    with handler(interrupt):
        count = every_bytecode(ctrl_c_at, run)
    print(f"bytecodes={count}")
    assert count > 100
    assert ends == {(False, True), (True, True), (True, False)}


@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
def test_an_activation_by_a_handler_is_delivered_once(fanout: Fanout, first: bool) -> None:
    """Wherever a signal handler activates, its job and the interrupted one both arrive, once."""

    def run(at: At) -> None:
        if first:
            fanout.forget_peers()
        assert not fanout.activate("outer", at)
        assert sorted(fanout.take()) == ["inner", "outer"] if at.happened else ["outer"], at.where

    fanout.activate("warm")
    fanout.take()
    with handler(lambda: fanout.point.activate("inner")):
        count = every_bytecode(handler_at, run)
    print(f"bytecodes={count}")
    assert count > 100


def test_ctrl_c_loses_no_activation_that_was_put_aside(fanout: Fanout) -> None:
    """What a signal handler activated is delivered once, wherever Ctrl-C falls after it."""
    interrupts: list[bool] = []

    def nested_or_interrupt() -> None:
        if not interrupts:
            interrupts.append(True)
            fanout.point.activate("inner")
        else:
            interrupt()

    def nested_first(number: int) -> At:
        interrupts.clear()
        return At({
            inside: lambda: signal.raise_signal(signal.SIGUSR1),
            inside + number: Arrival(signal.SIGUSR1),
        })

    def run(at: At) -> None:
        fanout.activate("outer", at)
        got = fanout.take()
        assert got.count("inner") == 1, at.where
        assert got.count("outer") <= 1, at.where

    fanout.activate("warm")
    fanout.take()
    with handler(nested_or_interrupt):
        inside = bytecode_in(fanout, "_claim_and_commit")
        fanout.take()
        count = every_bytecode(nested_first, run)
    assert count > 100


def bytecode_in(fanout: Fanout, function: str) -> int:
    """Return the number of the first bytecode of an activation that lies in `function`."""
    number, where = 0, ""
    while f" {function} " not in where:
        number += 1
        at = At({number: lambda: None})
        fanout.activate("looking", at)
        (where,) = at.where
    return number


# --- one sender alone, with a registry of its own -------------------------------------------------


class Alone:
    """A sender whose only target is in slot 0, in the inbox that the registry names."""

    def __init__(self, bus: str) -> None:
        self.words = [1]
        self._inbox_id = 0
        reader = SimpleNamespace(words=self.words, generation_word=0, read=self._read)
        self.wait: Callable[[Callable[[], bool], float], bool] = lambda ready, timeout_s: ready()
        self.sender = Sender(
            bus, NONCE, 1, 1, cast(Any, reader), lambda ready, timeout_s: self.wait(ready, timeout_s)
        )
        self.route = self.sender.route(POINT)

    def _read(self) -> tuple[int, dict[str, Any]]:
        member = [0, 1, self._inbox_id, "client", "", 0, "running"]
        document = {"members": [member], "points": {POINT: [[1, 0, None]]}, "services": []}
        return self.words[0], document

    def move(self, inbox_id: int) -> None:
        """Publish that somebody else, with another inbox, is in slot 0 now."""
        self._inbox_id = inbox_id
        self.words[0] += 1

    def activate(self, data: str) -> int:
        return self.sender.activate(self.route, Job(encode((data,))), 10.0, keyed=False)


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
            take_turn(old)
        return True

    def run(at: At) -> None:
        while alone.sender.try_activate(alone.route, Job(encode(("fill",))), keyed=False) == 1:
            pass
        with contextlib.suppress(KeyboardInterrupt), at:
            alone.activate("waited")
        assert not room_wanted(old), at.where
        assert not any(alone.sender._waiting_for_room.values()), at.where
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


def test_routing_is_what_the_registry_says(bus_name: str) -> None:
    """The stand-in for the registry of these tests has the shape of the real one."""
    alone = Alone(bus_name)
    assert isinstance(alone.sender.routing, Routing)
    assert alone.sender.routing.members[0].inbox_id == 0
