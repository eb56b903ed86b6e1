from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import posix_ipc
import pytest

from aembus.shm import doorbell, layout, names
from aembus.shm import inbox as inbox_module
from aembus.shm import lane as reference
from aembus.shm.doorbell import Ringer, create_bell, fence, open_bell, unlink_bell
from aembus.shm.inbox import BUDGETS, Inbox, inbox_role
from aembus.shm.peer import Peer
from tests.support.interruption import Arrival, At, every_bytecode
from tests.support.lanes import implementations, use
from tests.support.shared import (
    LANE_BYTES,
    NONCE,
    SLOTS,
    inbox_made,
    inbox_open,
    peer_open,
    put,
    take_turn,
)

NORMAL, URGENT, REPLY = layout.CLASS_NORMAL, layout.CLASS_URGENT, layout.CLASS_REPLY
LONG_S = 20.0  # a time-out that is not meant to be reached


class Household:
    """An inbox, its owner's end of it, and producers in slots 0, 1, 2 ..."""

    def __init__(self, bus: str, stack: contextlib.ExitStack) -> None:
        self.bus = bus
        self.stack = stack
        self.name = stack.enter_context(inbox_made(bus))
        self.inbox = stack.enter_context(inbox_open(bus))
        self.peers = [stack.enter_context(peer_open(bus, slot)) for slot in range(4)]

    def word(self, offset: int) -> int:
        """Return one of the owner's words."""
        return int(self.inbox._words[offset // layout.WORD])

    def send(self, slot: int, payload: bytes = b"job", lane_class: int = NORMAL) -> None:
        """Send and ring, as a member does."""
        assert put(self.peers[slot], payload, lane_class)
        fence()
        self.peers[slot].ring()


@pytest.fixture(params=implementations(), ids=lambda module: module.IMPLEMENTATION)
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every implementation of the lane in turn; else a test has the one in use."""
    use(monkeypatch, request.param)


@pytest.fixture
def household(bus_name: str) -> Iterator[Household]:
    """An inbox and those who write into it."""
    with contextlib.ExitStack() as stack:
        yield Household(bus_name, stack)


def payloads(inbox: Inbox) -> list[bytes]:
    return [record.payload for record in take_turn(inbox)]


# --- doors and lanes ------------------------------------------------------------------------------


def test_memory_grows_with_the_lanes_that_are_used(household: Household) -> None:
    """An inbox begins with its controls alone; each lane takes its memory when it is opened."""
    path = names.DIRECTORY / household.name[1:]
    controls = layout.rings_offset(SLOTS)
    assert path.stat().st_blocks * 512 == controls
    for lanes, (slot, lane_class) in enumerate([(0, NORMAL), (0, REPLY), (3, URGENT)], 1):
        household.peers[slot].lane(lane_class)
        household.peers[slot].lane(lane_class)
        assert path.stat().st_blocks * 512 == controls + lanes * LANE_BYTES


@pytest.mark.usefixtures("lane")
def test_a_lane_is_found_when_its_door_opens(household: Household) -> None:
    """The owner takes up lanes as producers open them, and knows the producer of each."""
    inbox = household.inbox
    assert not inbox.has_jobs()
    for slot in (2, 0):
        household.send(slot, b"from %d" % slot)
        assert inbox.has_jobs()
        (record,) = take_turn(inbox)
        assert (record.payload, record.origin_slot) == (b"from %d" % slot, slot)
        assert inbox.lane_class(record.lane) == NORMAL
        assert not inbox.has_jobs()


def test_a_door_is_taken_up_once_whoever_looks(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that look for doors at the same time do not make two lanes of one."""
    inbox = household.inbox
    looking = [True]

    class Watched(reference.LaneConsumer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if looking:  # another thread, that looks just now
                looking.clear()
                inbox.look_for_doors()

    monkeypatch.setattr(inbox_module, "LaneConsumer", Watched)
    household.send(0, b"once")
    assert payloads(inbox) == [b"once"]
    assert len(list(inbox.turn())) == 1


def test_ctrl_c_makes_no_two_lanes_of_one(household: Household) -> None:
    """Wherever Ctrl-C falls while a lane is taken up, its jobs are delivered once."""

    def run(at: At) -> None:
        with contextlib.ExitStack() as stack:
            inbox = stack.enter_context(inbox_open(household.bus))
            with contextlib.suppress(KeyboardInterrupt), at:
                inbox.look_for_doors()
            household.send(0, b"once")
            assert payloads(inbox) == [b"once"], at.where
            assert len(list(inbox.turn())) == 1, at.where

    household.send(0, b"opens the door")
    payloads(household.inbox)
    assert every_ctrl_c(run) > 20


def test_a_strange_door_is_left_alone(household: Household) -> None:
    """A door that is neither open nor closed hides its lane, and no other."""
    household.send(0, b"seen")
    household.peers[1].lane(NORMAL)
    household.inbox._segment.memory[layout.DOORS + 1] = 77
    assert put(household.peers[1], b"unseen")
    assert payloads(household.inbox) == [b"seen"]


@pytest.mark.usefixtures("lane")
def test_a_lane_that_cannot_be_followed_is_counted_and_goes_on(
    household: Household, caplog: pytest.LogCaptureFixture
) -> None:
    """Records that make no sense are given up, counted and told; other lanes notice nothing."""
    inbox = household.inbox
    for number in range(3):
        household.send(0, b"bad %d" % number)
        household.send(1, b"good %d" % number)
    inbox._segment.memory[layout.ring_offset(SLOTS, LANE_BYTES, 0) + 4] = 99  # the first's kind
    assert payloads(inbox) == [b"good 0", b"good 1", b"good 2"]
    assert household.word(layout.CORRUPTED) == 3
    assert "corrupt lane from slot 0, 3 records given up" in caplog.text
    household.send(0, b"later")
    assert payloads(inbox) == [b"later"]


def test_a_lane_whose_head_makes_no_sense_stays_closed(
    household: Household, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner does not follow a head that lies outside of the ring, and says so."""
    control = layout.lane_control_offset(SLOTS, 0)
    household.inbox._words[(control + layout.LANE_HEAD) // 8] = layout.CURSOR_OFFSET_MASK
    household.send(0)
    household.send(1, b"good")
    assert payloads(household.inbox) == [b"good"]
    assert household.word(layout.CORRUPTED) == 1
    assert "head is outside the ring" in caplog.text


# --- whose turn it is -----------------------------------------------------------------------------


def test_urgent_comes_first_and_normal_is_not_starved(household: Household) -> None:
    """In each turn urgent lanes are emptied up to their budget, and then normal ones to theirs."""
    lane_records = LANE_BYTES // layout.UNIT
    household.peers[0].lane(URGENT)
    for number in range(lane_records):
        for slot in (0, 1, 2, 3):
            assert put(household.peers[slot], b"", URGENT)
        if number < 3:
            assert put(household.peers[3], b"", NORMAL)
    inbox = household.inbox
    budgets = [(inbox.lane_class(lane), budget) for lane, budget in inbox.turn()]
    assert budgets == [(URGENT, BUDGETS[URGENT])] * 4 + [(NORMAL, BUDGETS[NORMAL])]
    assert BUDGETS[URGENT] > BUDGETS[NORMAL] > 0
    classes = [inbox.lane_class(record.lane) for record in take_turn(inbox)]
    assert classes == [URGENT] * 4 * lane_records + [NORMAL] * 3


def test_a_lane_gives_no_more_than_its_budget(bus_name: str) -> None:
    """A producer that fills its lane all the time leaves room for the others in every turn."""
    records = BUDGETS[NORMAL] + 10
    with (
        inbox_made(bus_name, lane_bytes=16 * 1024),
        inbox_open(bus_name) as inbox,
        peer_open(bus_name, 0) as greedy,
        peer_open(bus_name, 1) as modest,
    ):
        for _ in range(records):
            assert put(greedy, b"")
        assert put(modest, b"")
        first = Counter(record.origin_slot for record in take_turn(inbox))
        second = Counter(record.origin_slot for record in take_turn(inbox))
    assert first == {0: BUDGETS[NORMAL], 1: 1}
    assert second == {0: 10}


def test_each_turn_begins_with_another_lane(household: Household) -> None:
    """Normal lanes are visited in a ring that begins one further in each turn."""
    for slot in range(4):
        household.peers[slot].lane(NORMAL)
    begins = []
    for _ in range(8):
        for slot in range(4):
            assert put(household.peers[slot], b"")
        origins = [record.origin_slot for record in take_turn(household.inbox)]
        assert sorted(origins) == [0, 1, 2, 3]
        assert origins == [(origins[0] + step) % 4 for step in range(4)]
        begins.append(origins[0])
    assert begins == [(begins[0] + step) % 4 for step in range(8)]


@pytest.mark.usefixtures("lane")
def test_replies_are_taken_apart(household: Household) -> None:
    """A reply is no job: no turn gives it, and taking replies touches no job."""
    inbox = household.inbox
    household.send(0, b"job")
    household.send(0, b"answer", REPLY)
    household.send(1, b"another", REPLY)
    assert inbox.has_jobs()
    assert inbox.has_replies()
    assert [record.payload for record in inbox.take_replies()] == [b"answer", b"another"]
    assert not inbox.has_replies()
    assert list(inbox.take_replies()) == []
    assert payloads(inbox) == [b"job"]


def test_a_reply_that_was_not_looked_at_is_not_lost(household: Household) -> None:
    """Who stops taking replies in the middle has finished those that were handed over only."""
    for number in range(3):
        household.send(0, b"%d" % number, REPLY)
    replies = household.inbox.take_replies()
    assert next(replies).payload == b"0"
    assert next(replies).payload == b"1"  # finishes the first
    cast(Any, replies).close()
    with inbox_open(household.bus) as replacement:
        assert [record.payload for record in replacement.take_replies()] == [b"1", b"2"]


@pytest.mark.usefixtures("lane")
def test_producers_that_want_room_are_named_when_they_have_it(household: Household) -> None:
    """A producer is to be posted once it asked for room and half of its lane is free."""
    inbox, peer = household.inbox, household.peers[2]
    while put(peer, b""):
        pass
    assert not put(peer, b"")
    peer.lane(NORMAL).want_room(True)
    assert inbox.producers_wanting_room() == []
    assert take_turn(inbox)
    assert inbox.producers_wanting_room() == [2]
    peer.lane(NORMAL).want_room(False)
    assert inbox.producers_wanting_room() == []


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
    looks: list[bool] = []
    began = time.monotonic()
    assert household.inbox.wait(lambda: looks.append(True) or len(looks) > 3, LONG_S)
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
        peer.lane(NORMAL)
    inbox.look_for_doors()
    normal = inbox.lanes[NORMAL]
    waiting = [threading.Event() for _ in normal]
    returned: list[int] = []

    def wait_for(number: int) -> None:
        def ready() -> bool:
            waiting[number].set()
            return normal[number].has_records()

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


def test_a_lost_post_is_rescued_and_counted(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without posts the bound finds the jobs, and `rescued_wakeups` says that it had to."""
    monkeypatch.setattr(inbox_module, "SLEEP_S_MAX", 0.005)
    monkeypatch.setattr(inbox_module, "LATE_POST_S", 0.02)
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
    monkeypatch.setattr(inbox_module, "SLEEP_S_MAX", 0.02)
    monkeypatch.setattr(inbox_module, "LATE_POST_S", 0.0)
    inbox = household.inbox
    ring = [lambda: household.send(0)] * 5
    ScriptedBell(inbox, *ring, lambda: put(household.peers[0], b"job"), *ring)
    for _ in range(11):
        assert inbox.wait(inbox.has_jobs, LONG_S)
        assert payloads(inbox) == [b"job"]
    assert household.word(layout.RESCUED_WAKEUPS) == 1


def test_a_late_post_is_no_lost_one(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer that was stopped before its post, and posts later, counts for nothing."""
    monkeypatch.setattr(inbox_module, "SLEEP_S_MAX", 0.005)
    monkeypatch.setattr(inbox_module, "LATE_POST_S", 0.02)
    inbox = household.inbox
    sleeping: list[int] = []

    def send_and_stop() -> None:
        assert put(household.peers[0], b"job")
        sleeping.append(household.word(layout.SLEEPING))

    ScriptedBell(
        inbox, send_and_stop, lambda: household.peers[0]._ringer.ring(sleeping[0])
    )
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


@contextlib.contextmanager
def handler(number: signal.Signals, run: Callable[[], object]) -> Iterator[None]:
    """Have `run` called by Python's handler of a signal."""
    before = signal.signal(number, lambda number, frame: run())
    try:
        yield
    finally:
        signal.signal(number, before)


def interrupt() -> None:
    raise KeyboardInterrupt


def every_ctrl_c(run: Callable[[At], object]) -> int:
    """Call `run` with a Ctrl-C that arrives at bytecode 1, 2, 3 ...; return how many there were."""
    with handler(signal.SIGUSR1, interrupt):
        return every_bytecode(lambda number: At({number: Arrival(signal.SIGUSR1)}), run)


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
        woken: list[bool] = []
        with contextlib.suppress(KeyboardInterrupt), at:
            inbox.wait(lambda: len(woken) > 1 or woken.append(True) or False, LONG_S)
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
    ended = []

    def run(at: At) -> None:
        with contextlib.suppress(KeyboardInterrupt), at:
            fence()
        thread = threading.Thread(target=lambda: ended.append(fence()), daemon=True)
        thread.start()
        thread.join(2)
        locked = thread.is_alive()
        if locked:  # for the sake of the tests after this one
            cast(Any, doorbell)._fence_lock.release()
            thread.join()
        assert not locked, f"the fence is locked for ever: {at.where}"

    assert every_ctrl_c(run) > 3


# --- what outlives the owner ----------------------------------------------------------------------


def test_the_owners_words_outlive_it(household: Household) -> None:
    """Failures and the application's counters go on where the dead owner left them."""
    for number in range(1, 4):
        with inbox_open(household.bus) as inbox:
            inbox.count_failed()
            inbox.add_to_counter(0, 5)
            inbox.add_to_counter(layout.COUNTERS_MAX - 1, 1)
            assert inbox.counter(0) == 5 * number
            assert inbox.counter(layout.COUNTERS_MAX - 1) == number
            assert household.word(layout.FAILED) == number


@pytest.mark.usefixtures("lane")
def test_what_is_queued_outlives_both_sides(household: Household) -> None:
    """New owner, new producer: the queue stays, and the sequence numbers go on."""
    for number in range(6):
        with (
            peer_open(household.bus, 1) as peer,
            inbox_open(household.bus) as inbox,
        ):
            assert put(peer, b"%d" % number)
            assert inbox.has_jobs()
    records = take_turn(household.inbox)
    assert [record.payload for record in records] == [b"%d" % number for number in range(6)]
    assert [record.sequence for record in records] == list(range(1, 7))


def test_opening_an_inbox_without_a_bell_leaves_nothing_open(household: Household) -> None:
    """If the bell is missing, the segment is let go of again."""
    unlink_bell(household.bus, NONCE, 0)
    descriptors = os.listdir("/proc/self/fd")
    name = names.shared_name(household.bus, NONCE, inbox_role(0))
    with pytest.raises(posix_ipc.ExistentialError):
        Inbox.open(household.bus, NONCE, 0, layout.BELL_SEMAPHORE, name)
    assert os.listdir("/proc/self/fd") == descriptors


def test_a_peer_that_cannot_have_its_lane_can_try_again(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a lane's memory cannot be had, its door stays closed, and later it can be opened."""

    def fail(*_: object) -> None:
        raise OSError(28, "as the test wants it")

    peer: Peer = household.peers[0]
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", fail)
        with pytest.raises(Exception, match="too little space"):
            peer.lane(NORMAL)
    assert household.inbox._segment.memory[layout.DOORS] == layout.DOOR_CLOSED
    household.send(0)
    assert payloads(household.inbox) == [b"job"]
