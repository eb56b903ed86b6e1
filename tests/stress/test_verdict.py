from __future__ import annotations

import os
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from aembus.errors import OutOfSharedMemory
from aembus.shm import layout
from aembus.stress import message, room, verdict
from aembus.stress.chain import ChainCounts
from aembus.stress.ledger import Row
from aembus.stress.verdict import Accounts


@dataclass
class Lane:
    """The cursors of a lane."""

    sent: int = 10
    delivered: int = 10
    dead_lettered: int = 0
    forwarded: int = 0
    queued: int = 0


ALL = ChainCounts(10)


def row(
    by_lane: ChainCounts = ALL,
    by_producer: ChainCounts = ALL,
    corrupted: int = 0,
    redelivered: int = 0,
) -> Row:
    """Return what was recorded, if not otherwise, of ten jobs without any fault."""
    return Row(by_lane, by_producer, corrupted, redelivered)


@pytest.mark.parametrize(
    ("lane", "recorded", "expected"),
    [
        (Lane(), row(), Accounts(10, 10)),
        (Lane(12, 10, 0, 0, 2), row(), Accounts(12, 10, queued=2)),
        # One of them became a dead letter: in the middle, at the end.
        (Lane(10, 9, 1), row(ChainCounts(10, 1), ChainCounts(10, 1)), Accounts(10, 9, 0, 1)),
        (Lane(11, 10, 1), row(), Accounts(11, 10, 0, 1)),
        # The lane was read past a job that no handler saw: in the middle, at the end.
        (Lane(), row(ChainCounts(10, 1), ChainCounts(10, 1)), Accounts(10, 10, lost=1)),
        (Lane(11, 11), row(), Accounts(11, 11, lost=1)),
        # It never came into the lane.
        (Lane(9, 9), row(ChainCounts(9), ChainCounts(10, 1)), Accounts(9, 9, lost=1)),
        # It was delivered twice; it was published twice.
        (Lane(), row(ChainCounts(10, 0, 0, 1), ChainCounts(10, 0, 0, 1)),
         Accounts(10, 10, duplicated=1)),
        (Lane(11, 11), row(ChainCounts(11), ChainCounts(10, 0, 0, 1)),
         Accounts(11, 11, duplicated=1)),
        (Lane(), row(ChainCounts(10, 0, 2), ChainCounts(10, 0, 2)), Accounts(10, 10, reordered=2)),
        (Lane(), row(corrupted=1, redelivered=3), Accounts(10, 10, redelivered=3, corrupted=1)),
    ],
)  # fmt: skip
def test_a_lane_is_judged_from_both_sides(lane: Lane, recorded: Row, expected: Accounts) -> None:
    """Its cursors, and what its worker recorded."""
    assert verdict.account(lane, recorded) == expected


def test_lanes_add_up() -> None:
    """And what producers say to have sent can only add to what is missing."""
    lanes = [(Lane(), row()), (Lane(11, 11), row())]
    assert verdict.account_all(lanes, 20, 0) == Accounts(21, 21, lost=1)
    assert verdict.account_all(lanes, 24, 2) == Accounts(21, 21, lost=4, corrupted=2)


def test_every_wrong_count_is_named() -> None:
    """Nothing else is."""
    fine = Accounts(sent=10, delivered=7, redelivered=2, dead_lettered=3)
    assert verdict.shortcomings(fine) == []
    wrong = Accounts(lost=1, duplicated=2, reordered=3, corrupted=4, queued=5)
    assert verdict.shortcomings(wrong) == [
        "1 lost", "2 duplicated", "3 reordered", "4 corrupted", "5 still queued at the end",
    ]  # fmt: skip


def test_too_little_proves_nothing() -> None:
    """A floor, and everybody's part."""
    assert verdict.idleness(1000, 1000, []) == []
    assert verdict.idleness(999, 1000, ["worker w", "producer 3"]) == [
        "only 999 delivered, want at least 1000",
        "took no part: worker w, producer 3",
    ]


def test_the_floor_depends_on_what_is_asked_for() -> None:
    """A job of a megabyte cannot come a thousand times a second; the dead deliver nothing."""
    assert verdict.jobs_floor(2.0, 48, kills=False) == 2000
    assert verdict.jobs_floor(2.0, 0, kills=False) == 2000
    assert verdict.jobs_floor(2.0, 1_000_000, kills=False) == 20
    assert verdict.jobs_floor(2.0, 48, kills=True) == 200


def space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let /dev/shm seem to have so much free space."""
    found = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: found)


def test_lanes_are_as_large_as_the_space_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for many jobs where there is space, for a few where there is little."""
    space(monkeypatch, 1 << 34)
    large = room.choose(56, 8, 48, replaced=False)
    assert large.slots >= 1 + 56 + 8
    assert large.lane_bytes >= room.LANE_JOBS * layout.record_units(48) * layout.UNIT
    space(monkeypatch, 16 << 20)
    small = room.choose(56, 8, 48, replaced=False)
    assert layout.LANE_BYTES_MIN <= small.lane_bytes < large.lane_bytes


def test_too_little_space_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the numbers."""
    space(monkeypatch, 1 << 20)
    with pytest.raises(OutOfSharedMemory, match=r"need=\d+, free=1048576, producers=56"):
        room.choose(56, 8, 48, replaced=False)


def test_replaced_producers_need_slots_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed one may still have its slot when its replacement joins."""
    space(monkeypatch, 1 << 34)
    without, replaced = (room.choose(10, 2, 48, replaced=r) for r in (False, True))
    assert replaced.slots >= without.slots + 10


@pytest.mark.parametrize("size", [0, 48, 100_000, room.job_size_max()])
def test_a_job_fits_into_its_lane(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the largest that is allowed."""
    space(monkeypatch, 1 << 40)
    lane_bytes = room.choose(2, 2, size, replaced=False).lane_bytes
    assert message.job_bytes(size) <= layout.payload_bytes_max(lane_bytes)
    assert lane_bytes & (lane_bytes - 1) == 0
