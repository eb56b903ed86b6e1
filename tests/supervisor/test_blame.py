"""Which deaths count against which jobs, in the lanes of both implementations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from aembus.events import DEATHS_MAX
from aembus.shm import layout
from aembus.shm.lanes import Record
from aembus.supervisor.blame import SPARED_MAX, blame
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import Member, Members
from tests.support.lanes import implementations, use
from tests.support.shared import LANE_BYTES, NONCE, SLOTS, inbox_open, peer_open, put

LIVES_MAX = 100


class Place:
    """A member with an inbox, in which one process after the other works and dies."""

    def __init__(self, bus: str, inboxes: Inboxes, producers: list[Any]) -> None:
        self.bus = bus
        self.inboxes = inboxes
        self.producers = producers
        self.member: Member = Members(SLOTS).add("worker", "w", 1, "running")
        inboxes.create(self.member.inbox_id)

    def live_and_die(self, *steps: tuple[int, str]) -> list[int]:
        """Begin the next job of each producer, and perhaps hold it; return how much counts then.

        The steps: whose job, and "works" or "holds".  A job that the process does not come to is
        as the last one left it.
        """
        with inbox_open(self.bus) as inbox:
            for slot, what in steps:
                record = self._take(inbox, slot)
                record.lane.start(record)
                if what == "holds":
                    record.lane.hold(record)
        blame(self.member, self.inboxes)
        with inbox_open(self.bus) as inbox:
            states = [self._take(inbox, slot).header[4] for slot in range(len(self.producers))]
        return [layout.state_deaths(state) - layout.state_spared(state) for state in states]

    @staticmethod
    def _take(inbox: Any, slot: int) -> Record:
        inbox.look_for_doors()
        for lane in inbox.lanes[layout.CLASS_NORMAL]:
            if inbox._origins[lane][1] == slot:
                record: Record | None = lane.take()
                assert record is not None
                return record
        raise AssertionError(f"no lane from slot {slot}")


@pytest.fixture(params=implementations(), ids=lambda module: module.IMPLEMENTATION)
def place(
    request: pytest.FixtureRequest, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A place with one job from each of three producers."""
    module: ModuleType = request.param
    use(monkeypatch, module)
    with contextlib.ExitStack() as stack:
        inboxes = Inboxes(bus_name, NONCE, SLOTS, LANE_BYTES)
        stack.callback(inboxes.remove_all)
        found = Place(bus_name, inboxes, [])
        for slot in range(3):
            found.producers.append(stack.enter_context(peer_open(bus_name, slot)))
            assert put(found.producers[slot], b"job")
        yield found


def test_a_death_counts_against_the_job_that_was_worked_on(place: Place) -> None:
    """What was held meanwhile is spared; what nobody had begun counts nothing."""
    assert place.live_and_die((0, "holds"), (1, "works")) == [0, 1, 0]
    assert place.live_and_die((0, "holds"), (1, "works")) == [0, 2, 0]


def test_without_a_job_that_was_worked_on_it_counts_against_all_that_were_held(
    place: Place,
) -> None:
    """One of them is at fault, and nobody can tell which."""
    assert place.live_and_die((0, "holds"), (1, "holds")) == [1, 1, 0]


def test_what_a_process_did_not_come_to_tells_nothing_of_its_death(place: Place) -> None:
    """A job that the process before died of excuses nobody, and is spared nothing itself."""
    assert place.live_and_die((0, "holds"), (1, "works")) == [0, 1, 0]
    assert place.live_and_die((0, "holds")) == [1, 1, 0]
    assert place.live_and_die((2, "works")) == [1, 1, 1]
    assert place.live_and_die() == [1, 1, 1]


def test_a_held_job_that_kills_is_put_aside_in_the_end(place: Place) -> None:
    """It is spared for as long as others are at work, but so often only."""
    for life in range(1, LIVES_MAX):
        if place.live_and_die((0, "holds"), (1, "works"))[0] >= DEATHS_MAX:
            assert life == SPARED_MAX + DEATHS_MAX
            return
    raise AssertionError("it goes on for ever")
