from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from aembus.codec import key_hash
from aembus.options import RoutingOptions
from aembus.routing import (
    EMPTY,
    STATE_DEGRADED,
    STATE_RUNNING,
    Routing,
    ServiceVersion,
    Target,
    WaitQueue,
)
from aembus.shm import layout

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


def test_a_group_by_load_asks_who_is_least_loaded() -> None:
    """Without a key a group by load is asked about by itself; with one it is as any other."""
    a, b, alone = Target(1, 1), Target(2, 2), Target(3, 3)
    queue = WaitQueue([alone], [], [[a, b]])
    asked: list[tuple[Sequence[Target], int]] = []

    def least_loaded(group: Sequence[Target], chooser: int) -> Target:
        asked.append((group, chooser))
        return b

    assert queue.pick(4, least_loaded) == (alone, b)
    assert asked == [((a, b), 4)]
    assert [queue.pick(chooser) for chooser in (4, 5)] == [(alone, a), (alone, b)]
    assert (queue.goes_by_load, len(queue), len(queue.groups())) == (True, 2, 2)
    assert not WaitQueue([alone], [[a, b]]).goes_by_load


def test_what_an_event_asks_for_is_in_its_target() -> None:
    """Urgent events have their lanes, and each event says what becomes of it when one is full."""
    options = [
        RoutingOptions(urgent=True),
        RoutingOptions(full="drop", group="g", policy="least_loaded"),
        RoutingOptions(),
    ]
    document = {
        "members": [[0, 1, 0, "worker", "w", 1, STATE_RUNNING]],
        "points": {POINT: [[n, 0, o.to_document()] for n, o in enumerate(options)]},
        "services": [],
    }
    queue = Routing(1, document).queue(POINT)
    urgent, plain, dropping = queue.pick(0)
    assert (urgent.lane_class, urgent.full) == (layout.CLASS_URGENT, "wait")
    assert (plain.lane_class, plain.full) == (layout.CLASS_NORMAL, "wait")
    assert (dropping.lane_class, dropping.full) == (layout.CLASS_NORMAL, "drop")
    assert queue.goes_by_load
    assert options[2].to_document() == {}


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


def test_a_service_arrives_as_it_was_sent() -> None:
    """The registry carries all of a loaded version."""
    version = ServiceVersion("cdr", "1+2", 0, {"write": 3}, None, 7, ("cdr.written",))
    assert routing([], services=[version.to_document()]).services == [version]
