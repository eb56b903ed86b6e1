"""The services of a bus: who is bound to which version, and what may be asked about them.

What a request changes is in the registry before it is answered.  A version that drains goes when
nobody is bound to it; what becomes of the host's part of that is in `aembus.hosting.versions`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aembus.hosting.hosted import STATE_DRAINING, Hosted
from aembus.hosting.hosting import Hosting
from aembus.hosting.versions import STOP_S_MAX, Change
from aembus.routing import ServiceVersion
from aembus.supervisor.bindings import Bindings, User
from aembus.supervisor.control import Connection, Operation
from aembus.supervisor.members import Member, Members, member_of
from aembus.supervisor.publication import Publication


class Services:
    """The services of one bus.

    Args: the supervisor's parts.
    """

    def __init__(self, hosting: Hosting, members: Members, publication: Publication) -> None:
        self._hosting = hosting
        self._members = members
        self._publication = publication
        self._bindings = Bindings()
        self._retiring: dict[int, asyncio.Task[None]] = {}  # by the version's number

    def table(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "bind": self.bind,
            "release": self.release,
            "services": self.show,
            "load_service": self.load,
            "unload_service": self.unload,
            "upgrade_service": self.upgrade,
            "rollback_service": self.rollback,
        }

    async def load_first(self, specs: Sequence[str]) -> None:
        """Load what the configuration names; the registry is published by the caller.

        Raises: ServiceLoadError.
        """
        for spec in specs:
            await self._hosting.versions.load(spec)

    def versions(self) -> list[ServiceVersion]:
        """Return what the registry shows: what can be bound, oldest first."""
        running = self._hosting.versions.running()
        return [hosted.version for hosted in running if hosted.version is not None]

    def on_member_gone(self, slot: int, incarnation: int) -> None:
        """Let a process that is gone let go, and tell every service of it."""
        self._bindings.release_all(User(slot, incarnation))
        self._hosting.on_member_gone(slot, incarnation)
        self._retire_unused()

    # --- for members ----------------------------------------------------------------------------

    async def bind(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Bind a member to the newest version of a service, or to the one it names."""
        member = member_of(connection)
        hosted = self._hosting.versions.find(request["name"], request["version"])
        assert hosted.version is not None
        self._bindings.bind(hosted.number, User(member.slot, member.incarnation))
        return {"service": hosted.version.to_document()}

    async def release(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Let a member let go of a version."""
        member = member_of(connection)
        self._bindings.release(request["number"], User(member.slot, member.incarnation))
        self._retire_unused()
        return {}

    # --- for the command line -------------------------------------------------------------------

    async def show(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Return every loaded version, with its users."""
        return {"services": self.statistics()}

    async def load(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Load a version beside those that are loaded."""
        hosted = await self._hosting.versions.load(request["spec"])
        await self._publication.publish()
        return {"service": self._statistics_of(hosted)}

    async def unload(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Let a version drain; it goes when its last user lets go."""
        hosted = self._hosting.versions.drain(request["name"], request["version"])
        shown = self._statistics_of(hosted)
        self._retire_unused()
        await self._publication.publish()
        return {"service": shown}

    async def upgrade(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Load a version in place of the newest one."""
        change = await self._hosting.versions.upgrade(
            request["name"], request["spec"], request["hand_over"]
        )
        return await self._changed(change)

    async def rollback(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Upgrade to the version that the newest one has replaced."""
        change = await self._hosting.versions.rollback(request["name"], request["hand_over"])
        return await self._changed(change)

    async def _changed(self, change: Change) -> dict[str, Any]:
        if change.handed_over:
            self._bindings.move(change.old.number, change.new.number)
        shown = {
            "old": self._statistics_of(change.old),
            "new": self._statistics_of(change.new),
            "handed_over": change.handed_over,
            "at_switch": change.at_switch,
            "pause_s": change.pause_s,
            "calls_kept": change.calls_kept,
        }
        self._retire_unused()
        await self._publication.publish()
        return shown

    # --- the end of a version -------------------------------------------------------------------

    def _retire_unused(self) -> None:
        for hosted in self._hosting.versions:
            number = hosted.number
            if (
                hosted.state == STATE_DRAINING
                and number not in self._retiring
                and not self._bindings.users(number)
            ):
                task = asyncio.ensure_future(self._hosting.versions.retire(hosted))
                self._retiring[number] = task

    async def stop(self) -> None:
        """Wait for the end of versions that are on their way out; the host has been stopped."""
        if self._retiring:
            await asyncio.wait(self._retiring.values(), timeout=STOP_S_MAX)

    # --- statistics -----------------------------------------------------------------------------

    def statistics(self) -> list[dict[str, Any]]:
        """Return a map for each loaded version, oldest first."""
        return [self._statistics_of(hosted) for hosted in self._hosting.versions]

    def _statistics_of(self, hosted: Hosted) -> dict[str, Any]:
        users = [self._name(user) for user in self._bindings.users(hosted.number)]
        return {**hosted.statistics(), "users": users}

    def _name(self, user: User) -> str:
        member: Member | None = self._members.get(user.slot)
        return member.name if member is not None else f"slot {user.slot}"
