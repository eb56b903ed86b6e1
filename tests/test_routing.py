from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aembus.codec import key_hash
from aembus.options import RoutingOptions
from aembus.routing import EMPTY, STATE_DEGRADED, STATE_RUNNING, Routing, Target, WaitQueue

POINT = "call.setup"


def routing(
    registrations: list[tuple[int, int, str | None]],
    *,
    generation: int = 1,
    degraded: tuple[int, ...] = (),
    services: list[list[Any]] | None = None,
) -> Routing:
    """Return the routing of one point; a registration is event id, slot, group."""
    slots = {slot for _, slot, _ in registrations}
    members = [
        [
            slot,
            100 * generation + slot,
            slot,
            "worker",
            f"w-{slot}",
            1000 + slot,
            STATE_DEGRADED if slot in degraded else STATE_RUNNING,
        ]
        for slot in slots
    ]
    points = {
        POINT: [
            [event_id, slot, RoutingOptions(group=group).to_document()]
            for event_id, slot, group in registrations
        ]
    }
    return Routing(generation, {"members": members, "points": points, "services": services or []})


def test_without_a_group_everybody_gets_everything() -> None:
    """Events without a group are all woken by each activation, whatever the key."""
    queue = routing([(3, 1, None), (1, 2, None), (2, 1, None)]).queue(POINT)
    for chooser in range(10):
        assert queue.pick(chooser) == (Target(2, 1), Target(1, 2), Target(1, 3))
    assert len(queue) == 3


def test_of_a_group_one_is_picked_in_turn() -> None:
    """A chooser that grows by one visits the members of a group in turn, evenly."""
    queue = routing([(n, n, "calls") for n in range(1, 5)]).queue(POINT)
    picked = [queue.pick(chooser) for chooser in range(40)]
    assert all(len(targets) == 1 for targets in picked)
    assert picked[:4] == picked[4:8]
    assert Counter(target for (target,) in picked) == {Target(n, n): 10 for n in range(1, 5)}
    assert len(queue) == 1


def test_each_group_gets_one_and_the_others_all() -> None:
    """Groups and events without one do not disturb each other."""
    registrations = [(1, 1, "a"), (2, 2, "a"), (3, 1, "b"), (4, 2, None), (5, 3, None)]
    queue = routing(registrations).queue(POINT)
    for chooser in range(6):
        targets = queue.pick(chooser)
        assert targets[:2] == (Target(2, 4), Target(3, 5))
        assert targets[2] == (Target(1, 1), Target(2, 2))[chooser % 2]
        assert targets[3] == Target(1, 3)
    assert len(queue) == 4


def test_a_key_stays_with_its_member_when_members_are_replaced() -> None:
    """Neither new incarnations nor the order of the registry's document move a key."""
    registrations: list[tuple[int, int, str | None]] = [(7 * n % 11, n, "calls") for n in range(8)]
    before = routing(registrations).queue(POINT)
    after = routing(registrations[::-1], generation=9).queue(POINT)
    for number in range(500):
        chooser = key_hash(f"call-{number}")
        assert before.pick(chooser) == after.pick(chooser)


def test_the_order_is_that_of_the_event_ids() -> None:
    """Event ids, which outlive their member's restart, give the order; slots do not."""
    queue = routing([(5, 1, "calls"), (1, 9, "calls"), (3, 4, "calls")]).queue(POINT)
    assert [queue.pick(chooser)[0].event_id for chooser in range(3)] == [1, 3, 5]


def test_keys_are_spread_over_the_group() -> None:
    """Keys as applications have them reach every member of a group about equally often."""
    queue = routing([(n, n, "calls") for n in range(4)]).queue(POINT)
    picked = Counter(queue.pick(key_hash(f"{n}@host"))[0].slot for n in range(4000))
    assert set(picked) == {0, 1, 2, 3}
    assert max(picked.values()) < 1.2 * min(picked.values())


def test_a_degraded_member_gets_nothing_of_its_groups() -> None:
    """A member in back-off is left out where a sibling is able; what is its own it still gets."""
    registrations = [(1, 1, "calls"), (2, 2, "calls"), (3, 3, "calls"), (4, 2, None)]
    queue = routing(registrations, degraded=(2,)).queue(POINT)
    picked = {queue.pick(chooser) for chooser in range(12)}
    assert picked == {(Target(2, 4), Target(1, 1)), (Target(2, 4), Target(3, 3))}


def test_a_group_of_degraded_members_keeps_its_jobs() -> None:
    """If all of a group are in back-off, its jobs wait for them."""
    queue = routing([(1, 1, "calls"), (2, 2, "calls")], degraded=(1, 2)).queue(POINT)
    assert {queue.pick(chooser) for chooser in range(4)} == {(Target(1, 1),), (Target(2, 2),)}


def test_nobody_registered_wakes_nobody() -> None:
    """A point that the registry does not know has the empty wait queue."""
    queue = routing([(1, 1, None)]).queue("elsewhere")
    assert queue is EMPTY
    assert queue.pick(5) == ()
    assert len(queue) == 0


def test_a_wait_queue_is_compiled_once() -> None:
    """Asking again for a point's wait queue gives the same object, within one generation."""
    compiled = routing([(1, 1, None)])
    assert compiled.queue(POINT) is compiled.queue(POINT)
    assert isinstance(compiled.queue(POINT), WaitQueue)


def test_the_events_of_one_group_can_be_listed() -> None:
    """`group` gives the events of one group in the order of their ids."""
    registrations = [(9, 1, "a"), (2, 2, "b"), (4, 3, "a"), (1, 4, None)]
    compiled = routing(registrations)
    assert list(compiled.group(POINT, "a")) == [Target(3, 4), Target(1, 9)]
    assert list(compiled.group(POINT, None)) == [Target(4, 1)]
    assert list(compiled.group(POINT, "none such")) == []
    assert list(compiled.group("elsewhere", "a")) == []


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [
        ("timer", None, "2"),
        ("timer", "1", "1"),
        ("timer", "2", "2"),
        ("timer", "3", None),
        ("tcp", None, "1"),
        ("none such", None, None),
    ],
)
def test_a_service_is_found_by_name_and_version(
    name: str, version: str | None, found: str | None
) -> None:
    """Without a version the one loaded last is found, with one that one or none."""
    services = [
        [n, v, 0, {"call": 1}, None] for n, v in (("timer", "1"), ("tcp", "1"), ("timer", "2"))
    ]
    service = routing([], services=services).service(name, version)
    assert (None if service is None else service.version) == found
