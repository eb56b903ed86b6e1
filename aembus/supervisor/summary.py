"""What a run of the bus came to, as `Supervisor.run` returns it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from aembus.shm import layout
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import Member


@dataclass(slots=True)
class Summary:
    """What a run of the bus came to.

    counters: the workers' application counters, summed by name.
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
    counters: Counter[str] = Counter()
    failed = 0
    for member in members:
        failed += inboxes.word(member.inbox_id, layout.FAILED)
        for name, index in member.counters.items():
            counters[name] += inboxes.word(member.inbox_id, layout.COUNTERS + 8 * index)
    delivered = inboxes.survey().totals.delivered
    return Summary(uptime_s, delivered, failed, dead_lettered, restarts, dict(counters))
