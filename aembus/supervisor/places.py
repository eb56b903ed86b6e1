"""Places: what a member with a name has while no process of its is there.

A process of such a member dies, or closes its bus with keep=True: slot, inbox, registrations and
event ids stay, and jobs go on arriving.  The next process that connects with the name gets all of
it.  If none comes for DEGRADED_S, the member's groups give their new jobs to its siblings; if none
comes for as long as the member asked for, it departs.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from aembus.errors import NameInUse, OpenError
from aembus.routing import STATE_DEGRADED
from aembus.shm import names
from aembus.supervisor.control import Connection
from aembus.supervisor.departures import Departures
from aembus.supervisor.members import (
    KIND_CLIENT,
    STATE_AWAITED,
    STATE_LEAVING,
    Member,
    Members,
)
from aembus.supervisor.publication import Publication
from aembus.supervisor.requests import Requests

log = logging.getLogger("aembus")

DEGRADED_S: Final = 5.0
KEEP_S_MAX: Final = 7 * 24 * 3600.0
LEAVING_S_MAX: Final = 2.0  # a stopped member holds up departures; nobody waits longer for that
_MADE_UP: Final = re.compile(r"(client|worker)-[0-9]+|supervisor")


class Places:
    """The places of the members with a name.

    Args: the supervisor's parts.
    """

    def __init__(
        self,
        members: Members,
        publication: Publication,
        departures: Departures,
        requests: Requests,
    ) -> None:
        self._members = members
        self._publication = publication
        self._departures = departures
        self._requests = requests
        self._timers: dict[int, list[asyncio.TimerHandle]] = {}  # by inbox
        self._publishing: set[asyncio.Future[int]] = set()

    async def claim(self, connection: Connection, name: str, keep_s: float) -> Member | None:
        """Give the member of this name to a process; None if there is nothing to give.

        Raises: OpenError for a name or time that will not do, NameInUse.
        """
        names.check_bus_name(name, "member")
        if _MADE_UP.fullmatch(name):
            raise OpenError(f"such names are given to members without one, name={name!r}")
        if not 0 <= keep_s <= KEEP_S_MAX:
            raise OpenError(f"keep must be 0 to {KEEP_S_MAX:.0f} seconds, keep={keep_s}")
        while (member := self._members.named(name)) is not None:
            if member.kind != KIND_CLIENT:
                raise NameInUse(f"a worker has this name, name={name!r}, pid={member.pid}")
            if member.state == STATE_LEAVING:
                await self._departures.gone(member, LEAVING_S_MAX)
                if self._members.named(name) is member:
                    raise NameInUse(f"the last member of this name still leaves, name={name!r}")
            elif not connection.is_watched:
                break  # it has gone while it waited; `join` says so
            elif member.connection is None:
                self._take_over(member, connection)
                return member
            elif self._is_taken(member.connection, connection):
                raise NameInUse(
                    "a living process is the member of this name; stop it, or choose another "
                    f"name, name={name!r}, pid={member.pid}"
                )
        return None

    def _is_taken(self, owner: Connection, other: Connection) -> bool:
        if not owner.check_alive():  # its death was not noticed yet; now everybody has been told
            return False
        if owner.pid == other.pid and owner.hung_up:  # it has replaced its program, by exec
            member = owner.member
            owner.member = None
            owner.release()
            self.vacate(member)
            return False
        return True

    def _take_over(self, member: Member, connection: Connection) -> None:
        for timer in self._timers.pop(member.inbox_id, ()):
            timer.cancel()
        self._members.replace_process(member, connection.pid)
        member.restarts += 1
        log.info("member %s is back, pid %d", member.name, member.pid)

    def vacate(self, member: Member) -> None:
        """Let a member be without a process: its place is kept, or it departs at once."""
        if not member.keep_s:
            self._departures.retire(member)
            return
        member.state = STATE_AWAITED
        self._departures.let_go(member)
        self._departures.forget_process(member)
        self._requests.on_death(member, queued=False)
        self._publish()
        loop = asyncio.get_running_loop()
        self._timers[member.inbox_id] = [
            loop.call_later(DEGRADED_S, self._degrade, member),
            loop.call_later(member.keep_s, self._give_up, member),
        ]

    def _degrade(self, member: Member) -> None:
        member.state = STATE_DEGRADED
        self._requests.on_death(member, queued=True)
        self._publish()

    def _give_up(self, member: Member) -> None:
        log.warning("nobody came back as member %s in %g s", member.name, member.keep_s)
        for timer in self._timers.pop(member.inbox_id, ()):
            timer.cancel()
        self._departures.retire(member)

    def _publish(self) -> None:
        publishing = asyncio.ensure_future(self._publication.publish())
        self._publishing.add(publishing)
        publishing.add_done_callback(self._publishing.discard)

    def close(self) -> None:
        """Wait for nobody any more: the bus is about to stop."""
        for timers in self._timers.values():
            for timer in timers:
                timer.cancel()
        self._timers.clear()
