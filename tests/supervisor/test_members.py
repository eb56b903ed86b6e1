from __future__ import annotations

from typing import Any

import pytest

from aembus.supervisor import members
from aembus.supervisor.members import Member, Members

CLOSED_MAX = 10


@pytest.fixture
def some(monkeypatch: pytest.MonkeyPatch) -> Members:
    """Members that remember few closed events."""
    monkeypatch.setattr(members, "CLOSED_MAX", CLOSED_MAX)
    return Members(8)


def joined(some: Members, name: str) -> Member:
    """Let a member join."""
    return some.add("client", name, 1, "running")


def registered(some: Members, member: Member, name: str, spawn: list[Any] | None = None) -> int:
    """Register an event and publish it; return its id."""
    (event_id,) = some.register(member, [["point", name, {}, spawn]])
    some.publish(member, [])
    return event_id


def test_closed_events_are_forgotten_after_very_many(some: Members) -> None:
    """A member may have an event for each call of its life; those that are open stay."""
    member = joined(some, "a")
    stays = registered(some, member, "stays")
    for number in range(10 * CLOSED_MAX):
        event_id = registered(some, member, f"{number}")
        some.unregister(member, [event_id])
        assert some.registration(event_id) is not None
    assert some.registration(stays) is not None
    assert len(some._known) == len(some._stable_ids) == 1 + CLOSED_MAX
    some.remove(member)
    assert not some._known
    assert not some._stable_ids
    assert not some._closed


def test_an_event_that_is_registered_again_has_its_id(some: Members) -> None:
    """However often it was closed, and is not forgotten for its former life."""
    member = joined(some, "a")
    event_id = registered(some, member, "again")
    for number in range(3):
        some.unregister(member, [event_id])
        assert registered(some, member, "again") == event_id
        for other in range(2 * CLOSED_MAX):
            some.unregister(member, [registered(some, member, f"{number} {other}")])
    assert some.registration(event_id) is not None
    document = some.document("bus", "nonce", [])
    assert document["points"]["point"] == [[event_id, member.slot, {}]]


def test_what_a_replacement_does_not_register_again_is_closed(some: Members) -> None:
    """Names that differ in each process do not add up either."""
    member = joined(some, "a")
    for number in range(10 * CLOSED_MAX):
        some.replace_process(member, number)
        (event_id,) = some.register(member, [["point", f"{number}", {}, None]])
        some.publish_all(member, [])
        assert list(member.events) == [event_id]
    assert len(some._known) == 1 + CLOSED_MAX


def test_spawned_events_of_members_that_have_gone_are_forgotten(some: Members) -> None:
    """Jobs that the spawn host has may need them for a while."""
    for number in range(10 * CLOSED_MAX):
        member = joined(some, f"{number}")
        event_id = registered(some, member, "spawned", [1])
        some.remove(member)
        assert some.registration(event_id) is not None
    assert len(some._known) == CLOSED_MAX
    assert not some._stable_ids


def test_what_a_process_has_not_published_is_forgotten_with_it(some: Members) -> None:
    """Its successor may register something else, however often it dies; ids stay a while."""
    member = joined(some, "a")
    for number in range(10 * CLOSED_MAX):
        (event_id,) = some.register(member, [["point", f"{number}", {}, None]])
        some.replace_process(member, number)
        assert some.registration(event_id) is not None
    assert len(some._known) == len(some._stable_ids) == CLOSED_MAX
