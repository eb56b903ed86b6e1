from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from aembus.shm import doorbell, layout, sleeper
from aembus.shm.doorbell import Ringer, create_bell, fence, open_bell, unlink_bell
from aembus.shm.inbox import Inbox
from tests.support.interruption import At, every_ctrl_c, handler
from tests.support.shared import NONCE, Household, inbox_open, payloads, put

LONG_S = 20.0  # a time-out that is not meant to be reached


# --- the doorbell ---------------------------------------------------------------------------------


def test_a_producer_posts_once_for_each_sleep(household: Household) -> None:
    """Many jobs to one sleeper make one post from each producer; to one awake they make none."""
    inbox = household.inbox
    household.send(0)
    assert inbox.end_sleep() == 0
    for _ in range(3):
        inbox.announce_sleep(lambda: False)
        for _ in range(5):
            household.send(0)
            household.send(1)
        assert inbox.end_sleep() == 2


def test_a_sleep_without_numbers_is_ended_by_jobs(household: Household) -> None:
    """Who would rather not be posted for calls of numbers is posted for all else, once a sleep."""
    inbox = household.inbox
    inbox.announce_sleep_without_numbers()
    household.send(0)
    inbox.announce_sleep_without_numbers()
    household.send(0)
    household.send(0)
    assert inbox.end_sleep() == 2


def test_a_replacements_sleeps_are_new_ones(household: Household) -> None:
    """A producer that posted for the dead owner's n-th sleep posts for its replacement's too."""
    for sleeps in (1, 1, 2, 3, 2):
        with inbox_open(household.bus) as inbox:
            for _ in range(sleeps - 1):
                inbox.announce_sleep(lambda: False)
                assert inbox.end_sleep() == 0
            inbox.announce_sleep(lambda: False)
            household.send(0)
            assert inbox.end_sleep() == 1


def test_nobody_sleeps_when_there_is_something_to_do(household: Household) -> None:
    """Announcing a sleep looks at the lanes once more, the doors included."""
    inbox = household.inbox
    assert inbox.announce_sleep(inbox.has_jobs)
    inbox.end_sleep()
    household.send(0)
    assert not inbox.announce_sleep(inbox.has_jobs)
    inbox.end_sleep()
    assert household.word(layout.SLEEPING) == layout.AWAKE


def test_a_bell_that_is_gone_is_left_alone(household: Household) -> None:
    """Ringing at a member that has left is nobody's error, nor is ringing after a close."""
    household.inbox.announce_sleep(lambda: False)
    unlink_bell(household.bus, NONCE, 0)
    household.send(0)
    household.peers[1].close()
    household.peers[1].ring()
    household.inbox.end_sleep()


@pytest.mark.parametrize("kind", [layout.BELL_SEMAPHORE, layout.BELL_DESCRIPTOR])
def test_a_bell_of_either_kind(bus_name: str, kind: int) -> None:
    """What a producer posts, the owner waits for, however the bell is made."""
    create_bell(bus_name, NONCE, 5, kind)
    bell = open_bell(bus_name, NONCE, 5, kind)
    ringer = Ringer(bus_name, NONCE, 5)
    try:
        assert bell.kind == kind
        assert not bell.timed_wait(0.001)
        ringer.ring(layout.BELL_TICKET | kind)
        ringer.ring(layout.BELL_TICKET | kind)  # the same sleep: once is enough
        assert bell.timed_wait(LONG_S)
        assert bell.drain() == (0 if kind == layout.BELL_SEMAPHORE else 1)
        for ticket in range(2, 5):
            ringer.ring(ticket * layout.BELL_TICKET | kind)
        bell.post()
        assert bell.timed_wait(LONG_S)
        assert bell.drain() == (3 if kind == layout.BELL_SEMAPHORE else 4)
        assert not bell.timed_wait(0.001)
    finally:
        ringer.close()
        bell.close()
        unlink_bell(bus_name, NONCE, 5)


def test_a_pipe_that_is_full_of_posts_is_enough(bus_name: str) -> None:
    """Posts beyond what a pipe holds are dropped: the owner is awake by then."""
    create_bell(bus_name, NONCE, 5, layout.BELL_DESCRIPTOR)
    bell = open_bell(bus_name, NONCE, 5, layout.BELL_DESCRIPTOR)
    ringer = Ringer(bus_name, NONCE, 5)
    for ticket in range(1, 100_000):
        ringer.ring(ticket * layout.BELL_TICKET | layout.BELL_DESCRIPTOR)
    assert 0 < bell.drain() < 100_000
    ringer.close()
    bell.close()
    unlink_bell(bus_name, NONCE, 5)


# --- waiting --------------------------------------------------------------------------------------


class ScriptedBell:
    """The real bell; each time that the owner goes to sleep on it, the script's next step runs."""

    def __init__(self, inbox: Inbox, *steps: Callable[[], object]) -> None:
        self._bell = inbox._bell
        self._steps = list(steps)
        self.sleepers = 0
        self.sleepers_max = 0
        inbox._bell = self

    kind = layout.BELL_SEMAPHORE

    def timed_wait(self, timeout_s: float) -> bool:
        self.sleepers += 1
        self.sleepers_max = max(self.sleepers, self.sleepers_max)
        try:
            if self._steps:
                self._steps.pop(0)()
            return self._bell.timed_wait(timeout_s)
        finally:
            self.sleepers -= 1

    def post(self) -> None:
        self._bell.post()

    def drain(self) -> int:
        return self._bell.drain()

    def close(self) -> None:
        self._bell.close()


def test_a_wait_ends_with_a_job(household: Household) -> None:
    """`wait` returns True once there is what it waits for, at once or after a sleep."""
    inbox = household.inbox
    ScriptedBell(inbox, lambda: household.send(0))
    for _ in range(2):
        assert inbox.wait(inbox.has_jobs, LONG_S)
    assert payloads(inbox) == [b"job"]
    assert household.word(layout.SLEEPING) == layout.AWAKE


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 0.03, 0.15])
def test_a_wait_ends_with_its_time(household: Household, timeout_s: float) -> None:
    """`wait` returns False when the time is over, and not before."""
    began = time.monotonic()
    assert not household.inbox.wait(lambda: False, timeout_s)
    assert timeout_s <= time.monotonic() - began < timeout_s + 5
    assert household.word(layout.SLEEPING) == layout.AWAKE


def test_a_sleep_is_bounded_whatever_the_time_out(household: Household) -> None:
    """A change that nobody rings for is found within the bound of a sleep."""
    looks = itertools.count()
    began = time.monotonic()
    assert household.inbox.wait(lambda: next(looks) > 3, LONG_S)
    assert time.monotonic() - began < LONG_S / 2


def test_waking_makes_the_waiter_look_again(household: Household) -> None:
    """`wake` ends a sleep, for a change that no lane shows; also if it comes before the sleep."""
    inbox = household.inbox
    changed: list[bool] = []

    def change() -> None:
        changed.append(True)
        inbox.wake()

    ScriptedBell(inbox, change)
    assert inbox.wait(lambda: bool(changed), LONG_S)
    inbox.wake()
    assert not inbox.wait(lambda: False, 0.001)


def test_one_thread_sleeps_on_the_bell_and_all_get_their_jobs(household: Household) -> None:
    """Of several waiting threads one is elected; each wakes for what it waits for itself."""
    inbox = household.inbox
    bell = ScriptedBell(inbox)
    for peer in household.peers:
        peer.lane(layout.CLASS_NORMAL)
    inbox.look_for_doors()
    normal = inbox.lanes[layout.CLASS_NORMAL]
    waiting = [threading.Event() for _ in normal]
    returned: list[int] = []

    def wait_for(number: int) -> None:
        def ready() -> bool:
            waiting[number].set()
            return bool(normal[number].has_records())

        assert inbox.wait(ready, LONG_S)
        returned.append(number)

    threads = [threading.Thread(target=wait_for, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for event in waiting:
        assert event.wait(LONG_S)
    for number in (2, 0, 3, 1):
        household.send(number)
        threads[number].join(LONG_S)
        assert not threads[number].is_alive()
    assert returned == [2, 0, 3, 1]
    assert bell.sleepers_max == 1
    assert inbox._waiting == []
    assert household.word(layout.RESCUED_WAKEUPS) == 0


def mappings(inbox: Inbox) -> tuple[int, int]:
    """Return how often this process has the inbox's segment, and its semaphore, mapped."""
    segment = inbox._segment.name[1:]
    semaphore = f"sem.{segment.rpartition('.')[0]}.bell"
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(segment in line for line in lines), sum(semaphore in line for line in lines)


def test_an_inbox_closed_under_its_sleeper_is_let_go_of_by_that(household: Household) -> None:
    """What a thread sleeps on stays mapped until it has left, also if that takes long."""
    inbox = household.inbox
    segments, semaphores = before = mappings(inbox)
    found = []

    def close() -> None:  # while the sleeper is in its sleep
        inbox.close()
        found.append(mappings(inbox))

    ScriptedBell(inbox, close)
    assert not inbox.wait(lambda: False, LONG_S)
    assert found == [before]
    assert mappings(inbox) == (segments - 1, semaphores - 1)
    assert not inbox.wait(inbox.has_jobs, LONG_S)
    inbox.wake()
    inbox.close()


def test_of_many_who_wait_the_last_lets_go(household: Household) -> None:
    """A close comes to all who wait, sleeping on the bell or not, and none touches what is gone."""
    inbox = household.inbox
    segments, semaphores = mappings(inbox)
    ends: list[bool] = []
    threads = [
        threading.Thread(target=lambda: ends.append(inbox.wait(inbox.has_records, LONG_S)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while len(inbox._waiting) < len(threads):
        time.sleep(0)
    inbox.close()
    for thread in threads:
        thread.join(LONG_S)
    assert ends == [False] * 4
    assert mappings(inbox) == (segments - 1, semaphores - 1)


def test_a_lost_post_is_rescued_and_counted(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without posts the bound finds the jobs, and `rescued_wakeups` says that it had to."""
    monkeypatch.setattr(sleeper, "SLEEP_S_MAX", 0.005)
    monkeypatch.setattr(sleeper, "LATE_POST_S", 0.02)
    monkeypatch.setattr(Ringer, "ring", lambda self, sleeping: None)
    inbox = household.inbox
    ScriptedBell(inbox, *[lambda: household.send(0)] * 20)
    for _ in range(20):
        assert inbox.wait(inbox.has_jobs, LONG_S)
        assert payloads(inbox) == [b"job"]
    assert household.word(layout.RESCUED_WAKEUPS) > 0


def test_one_lost_post_among_many_is_counted(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A post that is lost once shows, though the sleeps around it are ended by theirs."""
    monkeypatch.setattr(sleeper, "SLEEP_S_MAX", 0.02)
    monkeypatch.setattr(sleeper, "LATE_POST_S", 0.0)
    inbox = household.inbox
    ring = [lambda: household.send(0)] * 5
    ScriptedBell(inbox, *ring, lambda: put(household.peers[0], b"job"), *ring)
    for _ in range(11):
        assert inbox.wait(inbox.has_jobs, LONG_S)
        assert payloads(inbox) == [b"job"]
    assert household.word(layout.RESCUED_WAKEUPS) == 1


def test_a_late_post_is_no_lost_one(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that was stopped before its post, and posts later, counts for nothing."""
    monkeypatch.setattr(sleeper, "SLEEP_S_MAX", 0.005)
    monkeypatch.setattr(sleeper, "LATE_POST_S", 0.02)
    inbox = household.inbox
    sleeping: list[int] = []

    def send_and_stop() -> None:
        assert put(household.peers[0], b"job")
        sleeping.append(household.word(layout.SLEEPING))

    ScriptedBell(inbox, send_and_stop, lambda: household.peers[0]._ringer.ring(sleeping[0]))
    assert inbox.wait(inbox.has_jobs, LONG_S)
    assert payloads(inbox) == [b"job"]
    assert not inbox.wait(inbox.has_jobs, 0.1)
    assert household.word(layout.RESCUED_WAKEUPS) == 0


def test_healthy_waiting_rescues_nothing(household: Household) -> None:
    """A thread that sends while the owner sleeps and works, in any order, needs no rescue."""
    inbox = household.inbox
    jobs = 2000

    def send_all() -> None:
        for number in range(jobs):
            while not put(household.peers[0], b"%d" % number):
                os.sched_yield()
            fence()
            household.peers[0].ring()

    producer = threading.Thread(target=send_all)
    producer.start()
    got: list[bytes] = []
    while len(got) < jobs:
        assert inbox.wait(inbox.has_jobs, LONG_S)
        got += payloads(inbox)
    producer.join()
    assert got == [b"%d" % number for number in range(jobs)]
    assert household.word(layout.RESCUED_WAKEUPS) == 0


# --- signals --------------------------------------------------------------------------------------


def test_a_signal_handler_that_sends_during_a_wait_loses_nothing(household: Household) -> None:
    """A handler runs in the middle of a sleep; what it sends is found, and the sleep goes on."""
    inbox = household.inbox
    arm = [lambda: signal.setitimer(signal.ITIMER_REAL, 0.001)] * 5
    ScriptedBell(inbox, *arm)
    handled: list[bool] = []

    def handle() -> None:
        handled.append(True)
        if len(handled) == 5:
            household.send(0)

    with handler(signal.SIGALRM, handle):
        assert inbox.wait(inbox.has_jobs, LONG_S)
    assert len(handled) == 5
    assert payloads(inbox) == [b"job"]
    assert household.word(layout.RESCUED_WAKEUPS) == 0


def test_ctrl_c_leaves_a_wait_as_if_it_had_not_been(household: Household) -> None:
    """Wherever Ctrl-C falls in a wait, the next wait works, and nobody is thought to wait."""
    inbox = household.inbox
    bell = ScriptedBell(inbox)

    def run(at: At) -> None:
        bell._steps[:] = [inbox.wake]
        looks = itertools.count()
        with contextlib.suppress(KeyboardInterrupt), at:
            inbox.wait(lambda: next(looks) > 2, LONG_S)
        assert inbox._waiting == [], at.where
        # The next one sleeps on the bell itself, so a post ends it long before the bound.
        bell._steps[:] = [lambda: household.send(0)]
        assert inbox.wait(inbox.has_jobs, LONG_S), at.where
        assert not bell._steps, f"nobody is elected any more: {at.where}"
        assert payloads(inbox) == [b"job"], at.where
        assert household.word(layout.SLEEPING) == layout.AWAKE, at.where

    assert every_ctrl_c(run) > 50


def test_ctrl_c_never_locks_the_fence() -> None:
    """Wherever Ctrl-C falls in a fence, the next fence goes through."""

    def run(at: At) -> None:
        with contextlib.suppress(KeyboardInterrupt), at:
            fence()
        thread = threading.Thread(target=fence, daemon=True)
        thread.start()
        thread.join(2)
        locked = thread.is_alive()
        if locked:  # for the sake of the tests after this one
            cast(Any, doorbell)._fence_lock.release()
            thread.join()
        assert not locked, f"the fence is locked for ever: {at.where}"

    assert every_ctrl_c(run) > 3
