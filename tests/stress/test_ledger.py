from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from aembus.shm import layout
from aembus.shm.segment import Segment
from aembus.stress import ledger
from aembus.stress.chain import ChainCounts
from aembus.stress.histogram import Histogram
from aembus.stress.ledger import Ledger, Row
from aembus.stress.message import Head

SLOTS = 6
PRODUCERS = 3


class Killed(Exception):
    """Stands for the end of a process."""


class MortalWords:
    """Words whose writer is killed before a certain store."""

    def __init__(self, words: memoryview[int]) -> None:
        self._words = words
        self.stores_left = 1 << 60

    def __getitem__(self, at: int) -> int:
        return self._words[at]

    def __setitem__(self, at: int, word: int) -> None:
        if not self.stores_left:
            raise Killed
        self.stores_left -= 1
        self._words[at] = word


class Worker:
    """A ledger in private memory, and the jobs of a lane that comes to it."""

    def __init__(self) -> None:
        size = Ledger.size_bytes(SLOTS, PRODUCERS)
        self.words = MortalWords(memoryview(bytearray(size)).cast("Q"))
        segment: Any = SimpleNamespace(words=self.words, slots=SLOTS)
        self.ledger = Ledger(segment, PRODUCERS)

    def gets(self, *jobs: tuple[int, int, int], slot: int = 4, attempt: int = 1) -> None:
        """Take (number in the lane, incarnation, number in the stream; 0: corrupted) ..."""
        for lane_number, incarnation, sequence in jobs:
            head = Head(incarnation % PRODUCERS, 1, sequence, 1000) if sequence else None
            self.ledger.record(slot, incarnation, lane_number, attempt, head, 3000)

    def row(self, slot: int = 4) -> Row:
        return self.ledger.row(slot)


def test_each_lane_has_a_row() -> None:
    """And is in order by itself."""
    worker = Worker()
    worker.gets((1, 7, 1), (2, 7, 2), slot=2)
    worker.gets((1, 8, 1), slot=SLOTS - 1)
    worker.gets((3, 7, 3), slot=2)
    assert worker.row(2) == Row(ChainCounts(3), ChainCounts(3), 0, 0)
    assert worker.row(SLOTS - 1) == Row(ChainCounts(1), ChainCounts(1), 0, 0)
    assert worker.row(3) == Row(ChainCounts(), ChainCounts(), 0, 0)
    assert worker.ledger.producers_seen() == {7 % PRODUCERS, 8 % PRODUCERS}


def test_latencies_are_from_activation_to_handler() -> None:
    """In nanoseconds; clocks that disagree give 0, not a crash."""
    worker = Worker()
    worker.ledger.record(1, 7, 1, 1, Head(0, 0, 1, 5000), 45000)
    worker.ledger.record(1, 7, 2, 1, Head(0, 0, 2, 5000), 4000)
    found = Histogram()
    worker.ledger.add_latencies(found)
    assert (found.total, found.max) == (2, 40000)


def test_a_new_producer_in_a_slot_begins_at_1() -> None:
    """While the lane's numbers go on; only its own first jobs could be missing."""
    worker = Worker()
    worker.gets((1, 7, 1), (2, 7, 2), (3, 9, 1), (4, 9, 2), (5, 9, 3))
    assert worker.row() == Row(ChainCounts(5), ChainCounts(3), 0, 0)
    worker.gets((6, 10, 3))
    assert worker.row().by_producer == ChainCounts(3, missing=2)


def test_a_corrupted_job_is_that_and_nothing_else() -> None:
    """The next one is in order."""
    worker = Worker()
    worker.gets((1, 7, 1), (2, 7, 0), (3, 7, 3))
    assert worker.row() == Row(ChainCounts(3), ChainCounts(3), 1, 0)


def test_a_job_for_another_worker_is_corrupted() -> None:
    """A producer has one stream to each worker."""
    worker = Worker()
    worker.gets((1, 7, 1))
    worker.ledger.record(4, 7, 2, 1, Head(1, 0, 5, 1000), 3000)
    assert worker.row() == Row(ChainCounts(2), ChainCounts(1), 1, 0)


def test_a_producer_that_does_not_exist_is_not_believed() -> None:
    """It would be counted outside of the ledger's rows."""
    worker = Worker()
    worker.ledger.record(4, 7, 1, 1, Head(PRODUCERS, 0, 1, 1000), 3000)
    assert worker.row().corrupted == 1


def test_a_redelivered_job_is_no_duplicate() -> None:
    """It counts once, however often it comes, and its latency once."""
    worker = Worker()
    worker.gets((1, 7, 1), (2, 7, 2))
    worker.gets((2, 7, 2), attempt=2)
    worker.gets((2, 7, 2), attempt=3)
    worker.gets((3, 7, 3))
    assert worker.row() == Row(ChainCounts(3), ChainCounts(3), 0, 1)
    found = Histogram()
    worker.ledger.add_latencies(found)
    assert found.total == 3


def test_the_same_job_without_a_mark_is_a_duplicate() -> None:
    """Only what is marked as another attempt may come again."""
    worker = Worker()
    worker.gets((1, 7, 1), (1, 7, 1), (2, 7, 2))
    assert worker.row() == Row(ChainCounts(2, twice=1), ChainCounts(2, twice=1), 0, 0)


@pytest.mark.parametrize(
    ("before", "job", "after"),
    [
        ([], (1, 7, 1), Row(ChainCounts(1), ChainCounts(1), 0, 1)),
        ([(1, 7, 1)], (2, 7, 2), Row(ChainCounts(2), ChainCounts(2), 0, 1)),
        ([(1, 7, 1)], (2, 9, 1), Row(ChainCounts(2), ChainCounts(1), 0, 1)),
        # Between them one became a dead letter.
        ([(1, 7, 1)], (3, 7, 3), Row(ChainCounts(3, 1), ChainCounts(3, 1), 0, 1)),
    ],
    ids=["first", "next", "of a new producer", "after a dead letter"],
)
def test_a_kill_at_any_store_changes_nothing(
    before: list[tuple[int, int, int]], job: tuple[int, int, int], after: Row
) -> None:
    """The replacement gets the job again, and the row says what it would have said."""
    stores = 0
    while True:
        worker = Worker()
        worker.gets(*before)
        worker.words.stores_left = stores
        try:
            worker.gets(job)
        except Killed:
            stores += 1
        else:
            break
        worker.words.stores_left = 1 << 60
        worker.gets(job, attempt=2)
        assert worker.row() == after
        following = (job[0] + 1, job[1], job[2] + 1)
        worker.gets(following)
        assert worker.row().by_lane.distinct == after.by_lane.distinct + 1
        assert worker.row().by_producer.missing == after.by_producer.missing
    assert stores >= 3


@pytest.fixture
def name(bus_name: str) -> Iterator[str]:
    """The name of a ledger."""
    name = Ledger.name(bus_name, "nonce", "stress-1")
    yield name
    Segment.open(name, ledger.MAGIC).unlink()


def test_a_replacement_goes_on_with_the_ledger(name: str) -> None:
    """It finds the rows as they were; others can read them meanwhile and later."""
    first = Ledger.take_up(name, SLOTS, PRODUCERS)
    first.record(2, 7, 1, 1, Head(0, 0, 1, 1000), 2000)
    first.close()
    second = Ledger.take_up(name, SLOTS, PRODUCERS)
    second.record(2, 7, 2, 1, Head(0, 0, 2, 1000), 2000)
    reader = Ledger.open(name, PRODUCERS)
    assert reader.row(2).by_lane.distinct == 2
    assert reader.lane in ("python", "c")
    second.close()
    assert reader.row(2).by_lane.distinct == 2
    reader.close()


def test_rows_are_apart_from_the_header_and_each_other() -> None:
    """Every slot and producer fits."""
    assert Ledger.size_bytes(SLOTS, PRODUCERS) % layout.WORD == 0
    worker = Worker()
    for slot in range(SLOTS):
        worker.gets((1, 7 + slot, 1), slot=slot)
    assert all(worker.row(slot).by_lane == ChainCounts(1) for slot in range(SLOTS))
    assert worker.ledger.producers_seen() == {*range(PRODUCERS)}
