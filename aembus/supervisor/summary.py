"""What a run of the bus came to, as `Supervisor.run` returns it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import Member


@dataclass(slots=True)
class Summary:
    """What a run of the bus came to.

    delivered, failed, dead_lettered: of all members, those that have left included.
    counters: what the application has counted, as `application_counters` returns it.
    """

    uptime_s: float
    delivered: int
    failed: int
    dead_lettered: int
    restarts: int
    counters: dict[str, int] = field(default_factory=dict)


def summarise(
    uptime_s: float, members: Iterable[Member], inboxes: Inboxes, dead_lettered: int, restarts: int
) -> Summary:
    """Return it, by what is in the inboxes at the end."""
    totals = inboxes.survey().totals
    counters = dict(application_counters(members, inboxes))
    return Summary(uptime_s, totals.delivered, totals.failed, dead_lettered, restarts, counters)


def application_counters(members: Iterable[Member], inboxes: Inboxes) -> Counter[str]:
    """Return the members' own counters, summed by name; those that have left are in it."""
    found = Counter(inboxes.removed_counters)
    for member in members:
        found.update(inboxes.counters(member.inbox_id, member.counters))
    return found
