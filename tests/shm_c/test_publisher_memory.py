"""What the Publisher in C holds on to, and lets go of, and the nonsense that it refuses."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from aembus.shm import layout
from tests.support.publishing import GENERATION, WORDS, Member, Registry, lane_c


def test_it_lets_go_of_all_memory() -> None:
    """When it is gone, what it looked at can be unmapped."""
    registry, member = Registry(), Member()
    publisher = registry.publisher([member.destination(1)])
    assert publisher.publish(b"x", -1) == 1
    registry.words.release()
    with pytest.raises(BufferError):
        registry.memory.release()
    del publisher
    registry.memory.release()
    member.inbox.release()


def test_a_cycle_through_a_peer_is_collected() -> None:
    """A member whose bell leads back to the Publisher is no leak."""
    member: Any = Member()
    registry = Registry()
    member.publisher = registry.publisher([member.destination(1)])
    gone = weakref.ref(member)
    del member
    gc.collect()
    assert gone() is None
    registry.words.release()
    registry.memory.release()


class Changing(int):
    """A number that takes away the list that it stands in."""

    def __new__(cls, number: int, group: list[Any]) -> Changing:
        changing = super().__new__(cls, number)
        changing.group = group
        return changing

    group: list[Any]

    def __index__(self) -> int:
        self.group.clear()
        return int(self)


def test_a_group_that_changes_while_it_is_read() -> None:
    """Nothing that is taken from the caller's lists depends on them afterwards."""
    member = Member()
    group: list[Any] = []
    group += [(*member.destination(1)[:3], Changing(layout.SLEEPING, group), 1, False)] * 50
    publisher = lane_c.Publisher(Registry().memory, layout.GENERATION, GENERATION, 0, [group])
    del group
    assert publisher.publish(b"x", -1) in {0, 1}


@pytest.mark.parametrize(
    "groups",
    [
        pytest.param([[]], id="empty group"),
        pytest.param([()], id="group is a tuple"),
        pytest.param([[None]], id="no destination"),
        pytest.param([[()]], id="empty destination"),
        pytest.param([[(5, None, None, 0, 1)]], id="no lane"),
        pytest.param([[(None, None, None, 0, -1)]], id="negative id"),
        pytest.param([[(None, None, None, 0, 1 << 32)]], id="id too large"),
        pytest.param([[(None, None, None, "0", 1)]], id="no offset"),
        pytest.param([[("lane", "peer", b"read only", 0, 1, False)]], id="read-only memory"),
        pytest.param([[("lane", "peer", "inbox", 4, 1, False)]], id="unaligned"),
        pytest.param([[("lane", "peer", "inbox", WORDS, 1, False)]], id="behind the end"),
        pytest.param([[("lane", "peer", "inbox", -8, 1, False)]], id="before the beginning"),
        pytest.param([[("lane", "peer", "inbox", 1 << 80, 1, False)]], id="far away"),
        pytest.param([[("lane", "peer", "inbox", 0, 1, False)], "x"], id="second group is none"),
        pytest.param("x", id="no list"),
    ],
)
def test_nonsense_is_refused(groups: Any) -> None:
    """What is no destination raises, and holds nothing afterwards."""
    member = Member()
    known = {"lane": member.producer, "peer": member, "inbox": member.inbox}
    if isinstance(groups, list):
        groups = [
            [
                tuple(known.get(v, v) if isinstance(v, str) else v for v in item)
                if isinstance(item, tuple)
                else item
                for item in group
            ]
            if isinstance(group, list)
            else group
            for group in groups
        ]
    registry = Registry()
    with pytest.raises((TypeError, ValueError, OverflowError, BufferError)):
        lane_c.Publisher(registry.memory, layout.GENERATION, GENERATION, 0, groups)
    registry.words.release()
    registry.memory.release()
    member.inbox.release()


@pytest.mark.parametrize("offset", [-8, 4, layout.REGISTRY_HALVES, 1 << 40])
def test_a_generation_that_is_nowhere(offset: int) -> None:
    """The generation's word must lie in the registry."""
    with pytest.raises(ValueError, match="no word there"):
        lane_c.Publisher(Registry().memory, offset, GENERATION, 0, [])


@pytest.mark.parametrize("generation", [-1, 1 << 64])
def test_a_generation_that_is_none(generation: int) -> None:
    """A negative number is not taken for the largest one, which says that the bus is broken."""
    with pytest.raises(OverflowError):
        Registry().publisher(generation=generation)
    with pytest.raises(OverflowError):
        Registry().publisher(turn=generation)


def test_numbers_travel_in_the_header() -> None:
    """`publish_numbers` writes a record of the kind it was made for, with two whole numbers."""
    registry, member = Registry(), Member()
    publisher = lane_c.Publisher(
        *(registry.memory, layout.GENERATION, GENERATION, 0, [[member.destination(3)]]),
        *(layout.KIND_TIMER, 5, 77),
    )
    member.sleep()
    top = (1 << 64) - 1
    assert publisher.publish_numbers(top, 12) == 1
    assert member.rings == 1
    (record,) = member.take()
    assert (record.kind, record.flags, record.addressee) == (layout.KIND_TIMER, 5, 77)
    assert (record.reply_id, record.deadline_ns, record.payload) == (top, 12, b"")
    for wrong in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            publisher.publish_numbers(1, wrong)
    member.fill()
    assert publisher.publish_numbers(1, 2) == 0
    registry.publish(GENERATION + 1)
    member.take()
    assert publisher.publish_numbers(1, 2) == 0
    assert member.take() == []


def test_a_call_of_numbers_spares_who_looks_by_itself() -> None:
    """A sleep without numbers is ended by all but calls of numbers, another one by these too."""
    registry, member = Registry(), Member()
    numbers = lane_c.Publisher(
        *(registry.memory, layout.GENERATION, GENERATION, 0, [[member.destination(1)]]),
        *(layout.KIND_CALL, layout.FLAG_NUMBERS, 0),
    )
    jobs = registry.publisher([member.destination(1)])
    asleep = layout.BELL_TICKET | layout.BELL_DESCRIPTOR
    member.sleep(asleep | layout.BELL_NOT_FOR_NUMBERS)
    assert numbers.publish_numbers(1, 2) == 1
    assert member.rings == 0
    assert jobs.publish(b"x", -1) == 1
    assert member.rings == 1
    member.sleep(asleep)
    assert numbers.publish_numbers(1, 2) == 1
    assert member.rings == 2
