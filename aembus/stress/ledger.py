"""What a worker recorded of the jobs that it got, in a segment that outlives it.

Each worker has one; its process alone writes, word by word, and its replacement goes on with it.
The name is one of the bus, so that the sweep that removes the bus's names removes it too.

A row for each lane, which is for each slot that a producer may have::

    0             5             10       11          12            16
    +-------------+-------------+--------+-----------+-------------+-------- - -
    | chain: the  | chain: the  | stream | corrupted | redelivered | (spare)
    | lane's own  | producer's  |        |           | (count,     |
    | numbers     | numbers     |        |           |  lane no.)  |
    +-------------+-------------+--------+-----------+-------------+-------- - -

The lane's numbers go on when a producer is replaced and its slot is reused, the producer's begin
again at 1.  After the rows: a word for each producer from which anything came, and the histogram
of latencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aembus.shm import layout, names
from aembus.shm.lanes import IMPLEMENTATION
from aembus.shm.segment import Segment
from aembus.stress import chain, histogram
from aembus.stress.chain import ChainCounts
from aembus.stress.histogram import Histogram
from aembus.stress.message import Head

MAGIC: Final = 0x0A_E3_B0_5B_1B_0C_5A_11
LANES: Final = ("", "python", "c")  # by the word that says which one a process uses

_LANE_IN_USE: Final = layout.HEADER_BYTES // layout.WORD
_FIRST_NS: Final = _LANE_IN_USE + 1  # when this process got its first job, 0 before
_ROWS: Final = _LANE_IN_USE + layout.CACHE_LINE // layout.WORD
_ROW_WORDS: Final = 16
_BY_LANE: Final = 0
_BY_PRODUCER: Final = chain.WORDS
_STREAM: Final = 2 * chain.WORDS
_CORRUPTED: Final = _STREAM + 1
_REDELIVERED: Final = _STREAM + 2
_STREAM_BITS: Final = 16

assert _REDELIVERED < _ROW_WORDS and layout.SLOTS_MAX < 1 << _STREAM_BITS


def lane_in_use() -> int:
    """Return the word that says which lane this process uses."""
    return LANES.index(IMPLEMENTATION)


@dataclass(frozen=True, slots=True)
class Row:
    """What one worker recorded of one lane.

    by_lane: the lane's own numbers, over all producers that had the slot.
    by_producer: the producers' numbers; `last` is of the last producer.
    corrupted: jobs whose content was not what its producer wrote, or meant for another worker.
    redelivered: jobs that came again since an earlier attempt did not survive its worker.
    """

    by_lane: ChainCounts
    by_producer: ChainCounts
    corrupted: int
    redelivered: int


class Ledger:
    """A worker's ledger: `record` for the worker, the rest for whoever adds up.

    Args:
        segment: the segment, which `close` closes.
        producers: how many there are.
    """

    def __init__(self, segment: Segment, producers: int) -> None:
        self._segment = segment
        self._words = segment.words
        self._producers = producers
        self._seen = _ROWS + segment.slots * _ROW_WORDS
        self._latency = self._seen + producers

    @staticmethod
    def name(bus: str, nonce: str, worker: str) -> str:
        """Return the shared name of a worker's ledger."""
        return names.shared_name(bus, nonce, f"ledger-{worker}")

    @staticmethod
    def size_bytes(slots: int, producers: int) -> int:
        """Return how large a ledger is."""
        return (_ROWS + slots * _ROW_WORDS + producers + histogram.WORDS) * layout.WORD

    @classmethod
    def open(cls, name: str, producers: int) -> Ledger:
        """Open a ledger that is there.  Raises the OpenError family."""
        return cls(Segment.open(name, MAGIC), producers)

    @classmethod
    def take_up(cls, name: str, slots: int, producers: int) -> Ledger:
        """Open the ledger of this worker, or make it if there is none yet.

        Raises: OutOfSharedMemory, NotReady if its first process was killed while it made it.
        """
        size = cls.size_bytes(slots, producers)
        try:
            segment = Segment.create(
                name, MAGIC, size, slots=slots, lane_bytes=0, reserve_bytes=size
            )
            segment.publish()
        except FileExistsError:
            segment = Segment.open(name, MAGIC)
        segment.words[_LANE_IN_USE] = lane_in_use()
        segment.words[_FIRST_NS] = 0
        return cls(segment, producers)

    def record(
        self,
        slot: int,
        incarnation: int,
        lane_number: int,
        attempt: int,
        head: Head | None,
        now_ns: int,
    ) -> None:
        """Take note of a job.

        Args:
            slot, incarnation: of its producer.
            lane_number: its number in its lane.
            attempt: above 1 if it comes again.
            head: what it carries, None if that is corrupted.
            now_ns: when it came.
        """
        words = self._words
        if not words[_FIRST_NS]:
            words[_FIRST_NS] = now_ns
        row = _ROWS + slot * _ROW_WORDS
        again = attempt > 1
        if again:
            self._count_redelivered(row, lane_number)
            if lane_number == words[row + _BY_LANE] & chain.LAST_MASK:
                return  # the process that was killed had recorded it
        if head is None:
            words[row + _CORRUPTED] += 1
            # It stands in the place of the next one: else that would seem lost, too.
            number = (words[row + _BY_PRODUCER] & chain.LAST_MASK) + 1
            chain.record(words, row + _BY_PRODUCER, number, again=again)
        else:
            stream = incarnation << _STREAM_BITS | head.stream
            if stream == words[row + _STREAM] or self._begin_stream(row, stream, head):
                chain.record(words, row + _BY_PRODUCER, head.sequence, again=again)
            histogram.add(words, self._latency, max(now_ns - head.activated_ns, 0))
        chain.record(words, row + _BY_LANE, lane_number, again=again)

    def _begin_stream(self, row: int, stream: int, head: Head) -> bool:
        words = self._words
        for_another = words[row + _STREAM] >> _STREAM_BITS == stream >> _STREAM_BITS
        if for_another or head.producer >= self._producers:
            words[row + _CORRUPTED] += 1
            return False
        words[self._seen + head.producer] = 1
        chain.restart(words, row + _BY_PRODUCER)
        words[row + _STREAM] = stream
        return True

    def _count_redelivered(self, row: int, lane_number: int) -> None:
        # Count and number in one word: a job that comes a third time is not counted again.
        word = self._words[row + _REDELIVERED]
        if word & chain.LAST_MASK != lane_number:
            count = (word >> chain.LAST_BITS) + 1
            self._words[row + _REDELIVERED] = count << chain.LAST_BITS | lane_number

    # --- adding up ------------------------------------------------------------------------------

    @property
    def lane(self) -> str:
        """Which lane the worker's process uses."""
        return LANES[self._words[_LANE_IN_USE]]

    @property
    def first_job_ns(self) -> int:
        """When the worker's present process got its first job; 0 if it has not yet."""
        return self._words[_FIRST_NS]

    def row(self, slot: int) -> Row:
        """Return what was recorded of the lane from `slot`."""
        words = self._words
        row = _ROWS + slot * _ROW_WORDS
        return Row(
            chain.counts(words, row + _BY_LANE),
            chain.counts(words, row + _BY_PRODUCER),
            words[row + _CORRUPTED],
            words[row + _REDELIVERED] >> chain.LAST_BITS,
        )

    def producers_seen(self) -> set[int]:
        """Return the numbers of the producers from which anything came."""
        return {n for n in range(self._producers) if self._words[self._seen + n]}

    def add_latencies(self, to: Histogram) -> None:
        """Add this worker's latencies to `to`."""
        to.merge(self._words, self._latency)

    def close(self) -> None:
        """Let go of the segment in this process; its name stays."""
        self._segment.close()
