"""What a sender does when a lane is full."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aembus.codec import decode
from aembus.errors import InboxFull, JobTooLarge
from aembus.sender import FULL
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from tests.support.lanes import implementations, use
from tests.support.senders import SLOT, Activator, Registry
from tests.support.shared import inbox_made, inbox_open, take_turn

LANE_BYTES = 512  # eight units: eight records without payload, four with a little


class Owners:
    """Two inboxes, each with its owner."""

    def __init__(self, inboxes: list[Inbox]) -> None:
        self.inboxes = inboxes

    def take(self, number: int, count: int = 1000) -> list[Any]:
        """Take up to `count` jobs out of one inbox."""
        found: list[Any] = []
        inbox = self.inboxes[number]
        for lane, _ in inbox.turn():
            while len(found) < count and (record := inbox.take(lane)) is not None:
                lane.done(record)
                found.append(decode(record.payload)[0])
        return found

    def room_wanted(self, number: int) -> bool:
        """Say whether the sender asked this owner for room."""
        segment = self.inboxes[number]._segment
        control = layout.lane_control_offset(segment.slots, SLOT)
        return bool(segment.words[(control + layout.LANE_ROOM_WANTED) // layout.WORD])


@pytest.fixture(params=implementations(), ids=lambda module: module.IMPLEMENTATION)
def owners(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, bus_name: str
) -> Iterator[Owners]:
    """Inboxes 0 and 1, which belong to slots 0 and 2."""
    use(monkeypatch, request.param)
    with contextlib.ExitStack() as stack:
        for number in (0, 1):
            stack.enter_context(inbox_made(bus_name, number, lane_bytes=LANE_BYTES))
        yield Owners([stack.enter_context(inbox_open(bus_name, number)) for number in (0, 1)])


@contextlib.contextmanager
def activator(bus: str, *registrations: tuple[int, int, str | None]) -> Iterator[Activator]:
    """A sender among members 0 and 2, with these registrations."""
    found = Activator(bus, Registry({0: 0, 2: 1}, list(registrations)))
    try:
        yield found
    finally:
        found.sender.close()


def fill(alone: Activator, *, key_hash: int = -1) -> int:
    """Activate until there is no room; return how often."""
    count = 0
    while alone.try_activate("fill", key_hash=key_hash) != FULL:
        count += 1
    return count


def test_full_is_said_at_once_or_after_the_time(bus_name: str, owners: Owners) -> None:
    """`try_activate` returns FULL, `activate` raises in the end; nothing was sent either way."""
    with activator(bus_name, (1, 0, None)) as alone:
        jobs = fill(alone)
        assert alone.try_activate("late") == FULL
        with pytest.raises(
            InboxFull, match=r"nothing was sent.*for='here', timeout_s=0.0, members=."
        ):
            alone.activate("late", timeout_s=0.0)
        assert not owners.room_wanted(0)
        assert owners.take(0) == ["fill"] * jobs


def test_a_fan_out_that_finds_one_lane_full_sends_nothing(bus_name: str, owners: Owners) -> None:
    """Everybody gets a job or nobody does, and the room that was claimed is free again."""
    with activator(bus_name, (1, 0, None), (2, 2, None)) as both:
        with activator(bus_name, (2, 2, None)) as one:
            filled = fill(one)
        for _ in range(20):
            assert both.try_activate("job") == FULL
        assert owners.take(0) == []
        assert owners.take(1) == ["fill"] * filled
    with activator(bus_name, (1, 0, None), (2, 2, None)) as both:  # goes on behind the fill
        assert both.try_activate("job") == 2
        assert owners.take(0) == owners.take(1) == ["job"]


def test_two_events_of_one_member_are_all_or_nothing_too(bus_name: str, owners: Owners) -> None:
    """If there is room for one of two jobs in the same lane, neither is sent."""
    with activator(bus_name, (1, 0, None), (2, 0, None)) as alone:
        assert alone.try_activate("pair") == 2
        with activator(bus_name, (3, 0, None)) as single:
            assert single.try_activate("single") == 1
    with activator(bus_name, (1, 0, None), (2, 0, None)) as alone:
        assert alone.try_activate("pair") == FULL
        assert owners.take(0) == ["pair", "pair", "single"]
        assert alone.try_activate("pair") == 2
        assert owners.take(0) == ["pair", "pair"]


def test_a_job_that_is_too_large_is_an_error_for_all(bus_name: str, owners: Owners) -> None:
    """A job larger than half a lane is refused with the numbers, and nobody gets it."""
    largest = layout.payload_bytes_max(LANE_BYTES)
    with activator(bus_name, (1, 0, None), (2, 2, None)) as alone:
        with pytest.raises(JobTooLarge, match=f"size={largest + 1}, max={largest}"):
            alone.activate(b"x" * (largest - 2))  # and three bytes around it
        assert alone.activate(b"x" * (largest - 3)) == 2
        assert [len(owners.take(number)) for number in (0, 1)] == [1, 1]


def test_waiting_asks_for_room_and_takes_the_wish_back(bus_name: str, owners: Owners) -> None:
    """While `activate` waits, the lane's owner is asked to post; afterwards it is not."""
    wishes = []

    def wait(ready: Callable[[], bool], timeout_s: float) -> bool:
        assert 0 < timeout_s <= 10.0
        wishes.append(owners.room_wanted(0))
        while not ready():
            assert owners.take(0, 1) == ["fill"]
        return True

    with activator(bus_name, (1, 0, None)) as alone:
        alone.wait = wait
        for _ in range(3):
            jobs = fill(alone)
            assert alone.activate("waited") == 1
            assert not owners.room_wanted(0)
            assert owners.take(0)[-1] == "waited"
        assert jobs > 2
    assert wishes == [True] * 3


def test_two_that_wait_for_one_lane_share_the_wish(bus_name: str, owners: Owners) -> None:
    """A thread that has got its room leaves the wish to the one that still waits."""
    both_wait = threading.Barrier(2)
    waiting: list[str] = []
    go_on = {"first": threading.Event(), "second": threading.Event()}

    def wait(ready: Callable[[], bool], timeout_s: float) -> bool:
        name = threading.current_thread().name
        both_wait.wait(10)
        waiting.append(name)
        assert go_on[name].wait(10)
        return ready()

    with activator(bus_name, (1, 0, None)) as alone:
        fill(alone)
        alone.wait = wait
        threads = [
            threading.Thread(target=alone.activate, args=(name,), name=name) for name in go_on
        ]
        for thread in threads:
            thread.start()
        while len(waiting) < 2:
            time.sleep(0)
        assert owners.room_wanted(0)
        owners.take(0)
        for thread, name, wanted in zip(threads, go_on, (True, False), strict=True):
            go_on[name].set()
            thread.join(10)
            assert owners.room_wanted(0) == wanted
        assert owners.take(0) == ["first", "second"]


def counting(
    waits: list[int], step: Callable[[], object], *, waits_max: int = 50
) -> Callable[[Callable[[], bool], float], bool]:
    """Return a wait during which `step` is done, when and only when it is not over at once."""

    def wait(ready: Callable[[], bool], timeout_s: float) -> bool:
        waits.append(1)
        assert len(waits) <= waits_max, "this spins: it waits for what is there already"
        for _ in range(100):
            if ready():
                return True
            step()
        return False

    return wait


def test_who_is_waited_for_is_who_was_full(bus_name: str, owners: Owners) -> None:
    """An activation in turn waits for the member of the group that it will go to."""
    with activator(bus_name, (1, 0, "calls"), (2, 2, "calls")) as alone:
        assert alone.try_activate("fill") == alone.try_activate("fill") == 1
        while alone.try_activate("fill", key_hash=0) != FULL:
            pass
        owners.take(1)
        waits: list[int] = []
        alone.wait = counting(waits, lambda: owners.take(0, 1))
        for number in range(4):
            assert alone.activate(number) == 1
        assert sorted([*owners.take(0), *owners.take(1)], key=str)[:4] == [0, 1, 2, 3]


def test_a_long_job_does_not_spin_while_there_is_room_for_short_ones(
    bus_name: str, owners: Owners
) -> None:
    """Half a lane free may be too little at the ring's end: what is waited for is more."""
    longest = b"x" * (layout.payload_bytes_max(LANE_BYTES) - 3)
    with activator(bus_name, (1, 0, None)) as alone:
        for shift in range(8):
            for _ in range(shift):  # to begin at each offset of the ring
                assert alone.try_activate("s") == 1
                owners.take(0)
            waits: list[int] = []
            alone.wait = counting(waits, lambda: owners.take(0, 1), waits_max=8)
            while alone.try_activate("s") == 1:
                pass
            assert alone.activate(longest) == 1
            assert owners.take(0)[-1] == longest


def test_a_member_that_leaves_is_not_waited_for(bus_name: str, owners: Owners) -> None:
    """If the full lane's owner leaves meanwhile, the activation goes to those who are there."""
    registry = Registry({0: 0, 2: 1}, [(1, 0, None), (2, 2, None)])
    alone = Activator(bus_name, registry)
    fill(alone)
    owners.take(0)

    def leave(ready: Callable[[], bool], timeout_s: float) -> bool:
        del registry.members[2]
        del registry.registrations[1]
        registry.publish()
        alone.sender.refresh()  # as an activation of another thread does
        assert ready()
        return True

    alone.wait = leave
    assert alone.activate("left") == 1
    assert owners.take(0) == ["left"]
    alone.sender.close()


def test_nobody_left_is_no_jobs(bus_name: str, owners: Owners) -> None:
    """If the only one concerned leaves while it is waited for, the activation makes no job."""
    registry = Registry({0: 0}, [(1, 0, None)])
    alone = Activator(bus_name, registry)
    fill(alone)

    def leave(ready: Callable[[], bool], timeout_s: float) -> bool:
        registry.members.clear()
        registry.registrations.clear()
        registry.publish()
        alone.sender.refresh()
        assert ready()
        return True

    alone.wait = leave
    assert alone.activate("too late") == 0
    alone.sender.close()


def test_the_time_out_counts_from_the_beginning(bus_name: str, owners: Owners) -> None:
    """However often room is made and taken by others, the time-out is one for all attempts."""
    with activator(bus_name, (1, 0, None)) as alone:
        fill(alone)

        def wait(ready: Callable[[], bool], timeout_s: float) -> bool:
            take_turn(owners.inboxes[0])
            fill(alone)  # another thread was faster
            return True

        alone.wait = wait
        began = time.monotonic()
        with pytest.raises(InboxFull, match=r"timeout_s=0\.05"):
            alone.activate("unlucky", timeout_s=0.05)
        assert 0.05 <= time.monotonic() - began < 5
