"""Requests that a dead process leaves behind, and the services that see to them.

A request is a job that a service has sent: bytes of a connection, whose peer waits for an answer.
Usually it is delivered again.  A service may rather answer it by itself, at once; and it is told
when a request is given up, so that no peer is left waiting for ever.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from aembus.hosting.hosting import Hosting
from aembus.shm import layout
from aembus.shm.lanes import Record
from aembus.supervisor.blame import blame
from aembus.supervisor.departures import Departures
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import Member, Members
from aembus.supervisor.service_hosts import ServiceHosts

log = logging.getLogger("aembus")

SERVICES_SLOT: Final = 0  # whose jobs are the services': the supervisor's
ANSWERED: Final = "its member died and its service has seen to it"


class Requests:
    """The services' jobs, and the calls of members, in inboxes whose owner died.

    Args: the supervisor's parts.
    """

    def __init__(
        self,
        members: Members,
        inboxes: Inboxes,
        departures: Departures,
        hosting: Hosting,
        hosts: ServiceHosts,
    ) -> None:
        self._members = members
        self._inboxes = inboxes
        self._departures = departures
        self._hosting = hosting
        self._hosts = hosts

    def on_death(self, member: Member, *, queued: bool) -> None:
        """Let the services see to what a dead process had in hand.

        Args:
            member: whose process is dead; no other one has taken its place yet.
            queued: to what waits for it, too: nobody will take that up soon.
        """
        blame(member, self._inboxes)

        def choose(lane_class: int, record: Record) -> int:
            started = record.header[4] & layout.STATE_MASK in layout.STATES_IN_HAND
            seen_to = (started or queued) and self._see_to(member, lane_class, record)
            return layout.STATE_DEAD if seen_to else 0

        self._inboxes.withdraw(member.inbox_id, SERVICES_SLOT, choose, queued=queued)
        self._departures.callers.on_death(member, queued=queued)

    def _see_to(self, member: Member, lane_class: int, record: Record) -> bool:
        event = self._members.registration(record.event_id)
        if event is None or not self._hosting.on_request_lost(event.point, record.payload, False):
            return False
        try:
            self._departures.keep(member, lane_class, record.header, record.payload, ANSWERED, "")
        except OSError as error:
            log.error("dead letter cannot be kept, member=%s: %s", member.name, error)
        return True

    def on_given_up(self, header: list[int] | tuple[int, ...], payload: bytes) -> None:
        """Tell the services of a job that is not delivered again, if it is one of theirs."""
        event = self._members.registration(header[11])
        if event is None:
            return
        if header[3] == SERVICES_SLOT:
            self._hosting.on_request_lost(event.point, payload, True)
        else:
            self._hosts.tell_slot(header[3], "given_up", point=event.point, payload=payload)


def deaths(header: list[int] | tuple[int, ...] | Any) -> int:
    """Return how many processes had a job in hand and died."""
    return layout.state_deaths(header[4])
