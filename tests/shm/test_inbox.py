from __future__ import annotations

import contextlib
import os
from collections import Counter
from typing import Any, cast

import posix_ipc
import pytest

from aembus.errors import OutOfSharedMemory
from aembus.shm import inbox as inbox_module
from aembus.shm import lane as reference
from aembus.shm import layout, names
from aembus.shm.doorbell import unlink_bell
from aembus.shm.inbox import (
    BUDGET,
    BUDGET_BESIDE_URGENT,
    URGENT_BUDGET,
    URGENT_VISITS,
    Inbox,
    inbox_role,
)
from aembus.shm.peer import Peer
from tests.support.interruption import At, every_ctrl_c
from tests.support.shared import (
    LANE_BYTES,
    NONCE,
    SLOTS,
    Household,
    inbox_made,
    inbox_open,
    payloads,
    peer_open,
    put,
    take_turn,
)

NORMAL, URGENT, REPLY = layout.CLASS_NORMAL, layout.CLASS_URGENT, layout.CLASS_REPLY


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


@pytest.mark.usefixtures("each_lane")
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


@pytest.mark.usefixtures("each_lane")
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
    caplog.clear()  # the error that was logged keeps the lane, and that the memory


# --- whose turn it is -----------------------------------------------------------------------------


def test_urgent_comes_first_and_normal_is_not_starved(household: Household) -> None:
    """Urgent lanes share a budget, and then normal ones have theirs."""
    lane_records = LANE_BYTES // layout.UNIT
    household.peers[0].lane(URGENT)
    for number in range(lane_records):
        for slot in (0, 1, 2, 3):
            assert put(household.peers[slot], b"", URGENT)
        if number < 3:
            assert put(household.peers[3], b"", NORMAL)
    inbox = household.inbox
    budgets = [(inbox.lane_class(lane), budget) for lane, budget in inbox.turn()]
    urgent, normal = (URGENT, URGENT_BUDGET // 4), (NORMAL, BUDGET_BESIDE_URGENT)
    assert budgets == [urgent] * 4 + [normal]
    assert URGENT_BUDGET <= 8 * BUDGET_BESIDE_URGENT
    assert lane_records > URGENT_BUDGET // 4
    classes = [inbox.lane_class(record.lane) for record in take_turn(inbox)]
    assert classes == [URGENT] * URGENT_BUDGET + [NORMAL] * 3


def test_urgent_lanes_are_visited_again_and_again_in_a_turn(bus_name: str) -> None:
    """Among many normal lanes an urgent job waits for a few of them, not for the whole turn."""
    producers = 3 * URGENT_VISITS
    with (
        inbox_made(bus_name, slots=producers),
        inbox_open(bus_name) as inbox,
        contextlib.ExitStack() as stack,
    ):
        peers = [stack.enter_context(peer_open(bus_name, slot)) for slot in range(producers)]
        for peer in peers:
            assert put(peer, b"")
        assert [budget for _, budget in inbox.turn()] == [BUDGET] * producers
        assert put(peers[0], b"", URGENT)
        classes = [inbox.lane_class(lane) for lane, _ in inbox.turn()]
        assert classes == [URGENT, NORMAL, NORMAL, NORMAL] * URGENT_VISITS


def test_a_lane_gives_no_more_than_its_budget(bus_name: str) -> None:
    """A producer that fills its lane all the time leaves room for the others in every turn."""
    records = BUDGET + 10
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
    assert first == {0: BUDGET, 1: 1}
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


@pytest.mark.usefixtures("each_lane")
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


@pytest.mark.usefixtures("each_lane")
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


@pytest.mark.usefixtures("each_lane")
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
        with pytest.raises(OutOfSharedMemory):
            peer.lane(NORMAL)
    assert household.inbox._segment.memory[layout.DOORS] == layout.DOOR_CLOSED
    household.send(0)
    assert payloads(household.inbox) == [b"job"]
