"""The services of a bus: who is bound to which version, and what may be asked about them.

What a request changes is in the registry before it is answered.  A version that drains goes when
nobody is bound to it; what becomes of the host's part of that is in `aembus.hosting.versions`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from aembus.errors import AembusError, ControlError, ServiceError
from aembus.hosting.hosted import STATE_DRAINING, Hosted
from aembus.hosting.hosting import Hosting
from aembus.hosting.versions import STOP_S_MAX, Change
from aembus.routing import ServiceVersion
from aembus.supervisor.bindings import Bindings, User
from aembus.supervisor.control import Connection, Operation
from aembus.supervisor.members import Member, Members, member_of
from aembus.supervisor.publication import Publication
from aembus.supervisor.service_hosts import RemoteHost, ServiceHosts

log = logging.getLogger("aembus")

RETIRE_S_MAX: Final = 24 * 3600.0  # a version may be in use for long after its last user


class Services:
    """The services of one bus.

    Args: the supervisor's parts.
    """

    def __init__(
        self, hosting: Hosting, hosts: ServiceHosts, members: Members, publication: Publication
    ) -> None:
        self._hosting = hosting
        self._hosts = hosts
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
        own = [hosted.version for hosted in running if hosted.version is not None]
        return [*own, *self._hosts.running()]

    def on_registry_changed(self) -> None:
        """Tell every service."""
        self._hosting.on_registry_changed()
        self._hosts.tell("registry")
        self._retire_unused()  # a host may have come back with what was to go

    def on_clock_step(self) -> None:
        """Tell every service that the wall clock was set."""
        self._hosting.on_clock_step()
        self._hosts.tell("clock_step")

    def on_member_gone(self, slot: int, incarnation: int) -> None:
        """Let a process that is gone let go, and tell every service of it."""
        self._bindings.release_all(User(slot, incarnation))
        self._hosting.on_member_gone(slot, incarnation)
        self._hosts.on_member_gone(slot)
        self._hosts.tell("gone", slot=slot, incarnation=incarnation)
        self._retire_unused()

    # --- for members ----------------------------------------------------------------------------

    async def bind(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Bind a member to the newest version of a service, or to the one it names."""
        member = member_of(connection)
        user = User(member.slot, member.incarnation)
        version = await self._find(member, request["name"], request["version"])
        if connection.member is not member or member.incarnation != user.incarnation:
            raise ControlError(f"the process has left meanwhile, pid={connection.pid}")
        self._bindings.bind(version.number, user)
        return {"service": version.to_document()}

    async def _find(self, member: Member, name: str, label: str | None) -> ServiceVersion:
        # A host that is being replaced is waited for: the member may be, too.
        await self._hosts.until_up(name)
        found = [v for v in self._hosts.running() if v.name == name and label in (None, v.version)]
        if found:
            newest = [v for v in found if v.version == found[-1].version]
            return newest[member.slot % len(newest)]
        hosted = self._hosting.versions.find(name, label)
        assert hosted.version is not None
        return hosted.version

    async def release(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Let a member let go of a version."""
        member = member_of(connection)
        self._bindings.release(request["number"], User(member.slot, member.incarnation))
        self._retire_unused()
        return {}

    # --- for the command line -------------------------------------------------------------------

    async def show(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Return every loaded version, with its users."""
        await self.look()
        return {"services": self.statistics()}

    async def load(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Load a version beside those that are loaded."""
        hosted = await self._hosting.versions.load(request["spec"])
        await self._publication.publish()
        return {"service": self._statistics_of(hosted)}

    async def unload(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Let a version drain; it goes when its last user lets go."""
        if hosts := self._hosts.of(request["name"]):
            shown = await self._ask_each(hosts, "unload", request, "name", "version")
            users = self._users(shown["service"]["number"])
            shown["service"] |= {"host": hosts[0].name, "users": users}
        else:
            hosted = self._hosting.versions.drain(request["name"], request["version"])
            shown = {"service": self._statistics_of(hosted)}
        self._retire_unused()
        await self._publication.publish()
        return shown

    async def upgrade(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Load a version in place of the newest one."""
        if hosts := self._hosts.of(request["name"]):
            return await self._change_each(hosts, "upgrade", request, "name", "spec", "hand_over")
        change = await self._hosting.versions.upgrade(
            request["name"], request["spec"], request["hand_over"]
        )
        return await self._changed(change)

    async def rollback(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Upgrade to the version that the newest one has replaced."""
        if hosts := self._hosts.of(request["name"]):
            return await self._change_each(hosts, "rollback", request, "name", "hand_over")
        change = await self._hosting.versions.rollback(request["name"], request["hand_over"])
        return await self._changed(change)

    async def _ask_each(
        self, hosts: Sequence[RemoteHost], what: str, request: dict[str, Any], *fields: str
    ) -> dict[str, Any]:
        # One host after the other: if the first refuses, nothing has changed.
        answers = []
        try:
            for host in hosts:
                wanted = {name: request[name] for name in fields}
                answers.append(await self._hosts.ask(host, what, **wanted))
        except AembusError as error:
            if not answers:
                raise
            done = [host.name for host in hosts[: len(answers)]]
            raise ServiceError(f"{error}; the hosts before it have changed, hosts={done}") from None
        return answers[0]

    async def _change_each(
        self, hosts: Sequence[RemoteHost], what: str, request: dict[str, Any], *fields: str
    ) -> dict[str, Any]:
        before = {host.name: [version.number for version in host.running] for host in hosts}
        shown = await self._ask_each(hosts, what, request, *fields)
        if shown["handed_over"]:
            for host in hosts:
                old = [n for n in before[host.name] if n not in {v.number for v in host.running}]
                new = [v.number for v in host.running if v.number not in before[host.name]]
                for old_number, new_number in zip(old, new, strict=False):
                    self._bindings.move(old_number, new_number)
        for side in ("old", "new"):
            users = self._users(shown[side]["number"])
            shown[side] = {**shown[side], "host": hosts[0].name, "users": users}
        self._retire_unused()
        await self._publication.publish()
        return shown

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
        for host in self._hosts:
            for loaded in host.loaded:
                number = loaded["number"]
                if (
                    loaded["state"] == STATE_DRAINING
                    and number not in self._retiring
                    and not self._bindings.users(number)
                ):
                    self._retiring[number] = asyncio.ensure_future(self._retire(host, number))

    async def _retire(self, host: RemoteHost, number: int) -> None:
        try:
            await self._hosts.ask(host, "retire", RETIRE_S_MAX, number=number)
        except AembusError as error:
            log.error("service host %s does not let go of a version: %s", host.name, error)
            del self._retiring[number]  # asked again when somebody else lets go

    async def stop(self) -> None:
        """Wait for the end of versions that are on their way out; the host has been stopped."""
        if self._retiring:
            await asyncio.wait(self._retiring.values(), timeout=STOP_S_MAX)

    # --- statistics -----------------------------------------------------------------------------

    async def look(self) -> None:
        """Have the hosts say what they have now, for `statistics`."""
        await self._hosts.look()

    def statistics(self) -> list[dict[str, Any]]:
        """Return a map for each loaded version, oldest first, those of hosts behind."""
        own = [self._statistics_of(hosted) for hosted in self._hosting.versions]
        others = [
            {**loaded, "host": host.name, "users": self._users(loaded["number"])}
            for host in self._hosts
            for loaded in host.loaded
        ]
        return [*own, *others]

    def _statistics_of(self, hosted: Hosted) -> dict[str, Any]:
        return {**hosted.statistics(), "users": self._users(hosted.number)}

    def _users(self, number: int) -> list[str]:
        return [self._name(user) for user in self._bindings.users(number)]

    def _name(self, user: User) -> str:
        member: Member | None = self._members.get(user.slot)
        return member.name if member is not None else f"slot {user.slot}"
