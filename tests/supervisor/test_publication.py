from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aembus.shm import names, registry
from aembus.shm.registry import RegistryWriter
from aembus.supervisor.members import Member, Members
from aembus.supervisor.publication import Publication
from tests.support.shared import NONCE, SLOTS

LIMIT_S = 20.0


class Pushed:
    """A member's connection, on which the supervisor says something."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def push(self, message: dict[str, Any]) -> None:
        self.said.append(message)


def joined(members: Members, name: str) -> Member:
    """Let a member join."""
    member = members.add("client", name, 1, "running")
    member.connection = Pushed()
    return member


def test_who_joins_holds_up_no_departure(bus_name: str) -> None:
    """A member that joins while a departure waits for the others is waited for, and not asked.

    It has passed when it is published: if it is the last one, that ends the waiting.
    """

    async def scene(publication: Publication, members: Members) -> None:
        before = joined(members, "before")
        generation = await publication.publish()
        passing = asyncio.ensure_future(publication.passed(generation))
        await asyncio.sleep(0)
        assert before.connection.said == [{"push": "generation", "generation": generation}]
        late = joined(members, "late")
        welcoming = asyncio.ensure_future(publication.welcome(late))
        await asyncio.sleep(0)  # it is about to be published
        publication.acknowledge(before, generation)
        await asyncio.sleep(0)
        assert not passing.done()
        await welcoming
        await asyncio.wait_for(passing, LIMIT_S)
        assert late.connection.said == []

    run(bus_name, scene)


def test_what_has_changed_is_published_when_it_has_settled(bus_name: str) -> None:
    """Who looks at the supervisor's tables may wait until activations go by them."""

    async def scene(publication: Publication, members: Members) -> None:
        await publication.settle()  # nothing has changed
        publishing = [asyncio.ensure_future(publication.publish()) for _ in range(2)]
        await asyncio.sleep(0)
        assert publication.generation == 0
        await asyncio.wait_for(publication.settle(), LIMIT_S)
        assert publication.generation == 1
        assert [await published for published in publishing] == [1, 1]

    run(bus_name, scene)


def test_nothing_settles_once_the_bus_has_ended(bus_name: str) -> None:
    """Who looks then is not held up: nothing is published any more."""

    async def scene(publication: Publication, members: Members) -> None:
        publishing = asyncio.ensure_future(publication.publish())
        await asyncio.sleep(0)
        await publication.end(LIMIT_S)
        await asyncio.wait_for(publication.settle(), LIMIT_S)
        assert not publishing.done()
        publishing.cancel()

    run(bus_name, scene)


def run(bus_name: str, scene: Callable[[Publication, Members], Coroutine[Any, Any, None]]) -> None:
    """Run a scene with a registry of its own."""
    members = Members(SLOTS)
    writer = RegistryWriter(names.shared_name(bus_name, NONCE, registry.ROLE))
    try:
        publication = Publication(
            writer, members, lambda _: members.document(bus_name, NONCE, []), lambda: None
        )
        asyncio.run(scene(publication, members))
    finally:
        writer.close()
