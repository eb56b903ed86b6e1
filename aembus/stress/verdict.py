"""What a stress run came to, and whether that is well.  Pure.

Each lane is judged by itself, from two sides that do not know of each other: the lane's cursors
(how many jobs were published, finished, dead-lettered) and the worker's ledger (which numbers came,
the lane's own and the producer's).

- Lost after publication: the lane was read past a job that no handler recorded.
- Lost before: the producer's numbers have a gap where the lane's have none.
- Never published: the producers say to have sent more than the lanes carried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aembus.stress.ledger import Row

JOBS_PER_S_MIN: Final = 1000.0
SHARE_WITH_KILLS: Final = 0.1
BYTES_PER_S_MIN: Final = 10e6  # jobs so large that this is less than JOBS_PER_S_MIN of them


class Lane(Protocol):
    """What is asked of a lane's cursors (aembus.shm.lane.LaneCounts)."""

    sent: int
    delivered: int
    dead_lettered: int
    forwarded: int
    queued: int


@dataclass(frozen=True, slots=True)
class Accounts:
    """Jobs, summed over lanes."""

    sent: int = 0
    delivered: int = 0
    redelivered: int = 0
    dead_lettered: int = 0
    queued: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0

    def __add__(self, other: Accounts) -> Accounts:
        return Accounts(
            self.sent + other.sent,
            self.delivered + other.delivered,
            self.redelivered + other.redelivered,
            self.dead_lettered + other.dead_lettered,
            self.queued + other.queued,
            self.lost + other.lost,
            self.duplicated + other.duplicated,
            self.reordered + other.reordered,
            self.corrupted + other.corrupted,
        )


def account(lane: Lane, row: Row) -> Accounts:
    """Return what became of the jobs of one lane."""
    lane_says, producer_says = row.by_lane, row.by_producer
    lost_behind = lane.delivered - lane_says.distinct
    lost_before = producer_says.missing - lane_says.missing
    return Accounts(
        sent=lane.sent - lane.forwarded,
        delivered=lane.delivered,
        redelivered=row.redelivered,
        dead_lettered=lane.dead_lettered,
        queued=lane.queued,
        lost=max(lost_behind, 0) + max(lost_before, 0),
        # The same event seen twice, unless it happened before the lane: there only one sees it.
        duplicated=max(lane_says.twice, producer_says.twice),
        reordered=max(lane_says.late, producer_says.late),
        corrupted=row.corrupted,
    )


def account_all(
    lanes: Iterable[tuple[Lane, Row]], said_to_be_sent: int, corrupt_records: int
) -> Accounts:
    """Return what became of all jobs.

    Args:
        lanes: each lane and what was recorded of it.
        said_to_be_sent: what the producers say, all together.
        corrupt_records: what the inboxes' owners gave up since it could not be followed.
    """
    total = Accounts(corrupted=corrupt_records)
    for lane, row in lanes:
        total += account(lane, row)
    return total + Accounts(lost=max(said_to_be_sent - total.sent, 0))


def jobs_floor(seconds: float, size: int, *, kills: bool) -> int:
    """Return how many jobs of `size` bytes must be delivered in this time.

    Args:
        kills: members are killed, so that most of them may be starting most of the time.
    """
    floor = seconds * min(JOBS_PER_S_MIN, BYTES_PER_S_MIN / max(size, 1))
    return int(floor * SHARE_WITH_KILLS if kills else floor)


def shortcomings(accounts: Accounts) -> list[str]:
    """Return what is wrong with the jobs, a line each."""
    kinds = (
        ("lost", accounts.lost),
        ("duplicated", accounts.duplicated),
        ("reordered", accounts.reordered),
        ("corrupted", accounts.corrupted),
        ("still queued at the end", accounts.queued),
    )
    return [f"{number} {kind}" for kind, number in kinds if number]


def idleness(delivered: int, floor: int, idle: Sequence[str]) -> list[str]:
    """Return why a run proves nothing, a line each: too little went through it.

    Args:
        floor: how many jobs must have been delivered.
        idle: workers that got nothing, producers from which nothing came.
    """
    wrong = []
    if delivered < floor:
        wrong.append(f"only {delivered} delivered, want at least {floor}")
    if idle:
        wrong.append(f"took no part: {', '.join(idle)}")
    return wrong
