"""The board of a stress run: the segment by which the run tells its producers what to do.

The run writes the phase; each producer writes a row of its own: which process it is now, whether it
has stopped sending, and how many jobs it has sent to each worker.  These numbers are a producer's
report about itself, so they only ever add to what is found missing: a lane that carried less than
its producers sent has lost something.
"""

from __future__ import annotations

from typing import Final, Self

from aembus.shm import layout, names
from aembus.shm.segment import Segment
from aembus.stress.ledger import LANES, lane_in_use

MAGIC: Final = 0x0A_E3_B0_5B_1B_0C_5A_12

STARTING: Final = 0  # producers wait for each other
SENDING: Final = 1
QUIET: Final = 2  # nobody sends any more; what is queued is delivered
OVER: Final = 3  # producers leave

_PHASE: Final = layout.HEADER_BYTES // layout.WORD
_ROWS: Final = _PHASE + layout.CACHE_LINE // layout.WORD
_PID: Final = 0
_QUIET: Final = 1
_LANE_IN_USE: Final = 2
_SENT: Final = 3


class Board:
    """The board, as all sides see it.

    Args:
        segment: the segment, which `close` closes.
        producers, streams: how many rows there are, and how many workers.
    """

    def __init__(self, segment: Segment, producers: int, streams: int) -> None:
        self._segment = segment
        self._words = segment.words
        self._producers = producers
        self._streams = streams
        self._row_words = _row_words(streams)

    @staticmethod
    def name(bus: str, nonce: str) -> str:
        """Return the shared name of a run's board."""
        return names.shared_name(bus, nonce, "board")

    @staticmethod
    def size_bytes(producers: int, streams: int) -> int:
        """Return how large a board is."""
        return (_ROWS + producers * _row_words(streams)) * layout.WORD

    @classmethod
    def create(cls, name: str, producers: int, streams: int) -> Self:
        """Make the board (the run does).  Raises OutOfSharedMemory."""
        size = cls.size_bytes(producers, streams)
        segment = Segment.create(name, MAGIC, size, slots=0, lane_bytes=0, reserve_bytes=size)
        segment.publish()
        return cls(segment, producers, streams)

    @classmethod
    def open(cls, name: str, producers: int, streams: int) -> Self:
        """Open the board (a producer does).  Raises the OpenError family."""
        return cls(Segment.open(name, MAGIC), producers, streams)

    @property
    def phase(self) -> int:
        """What the producers shall do now."""
        return self._words[_PHASE]

    @phase.setter
    def phase(self, phase: int) -> None:
        self._words[_PHASE] = phase

    # --- a producer's row, written by its process -------------------------------------------------

    def _row(self, producer: int) -> int:
        return _ROWS + producer * self._row_words

    def report_ready(self, producer: int, pid: int) -> None:
        """Say that the producer's process `pid` has joined the bus."""
        row = self._row(producer)
        self._words[row + _LANE_IN_USE] = lane_in_use()
        self._words[row + _PID] = pid

    def report_quiet(self, producer: int, pid: int) -> None:
        """Say that the producer's process `pid` sends nothing any more."""
        self._words[self._row(producer) + _QUIET] = pid

    def count_sent(self, producer: int, stream: int) -> None:
        """Count one more job that was sent."""
        self._words[self._row(producer) + _SENT + stream] += 1

    # --- adding up --------------------------------------------------------------------------------

    def is_ready(self, producer: int, pid: int) -> bool:
        """Say whether the producer's process `pid` has joined the bus."""
        return self._words[self._row(producer) + _PID] == pid

    def is_quiet(self, producer: int, pid: int) -> bool:
        """Say whether the producer's process `pid` has stopped sending."""
        return self._words[self._row(producer) + _QUIET] == pid

    def sent(self, producer: int) -> int:
        """Return how many jobs a producer says to have sent, its killed processes included."""
        first = self._row(producer) + _SENT
        return sum(self._words[first : first + self._streams])

    def lane(self, producer: int) -> str:
        """Return which lane the producer's process uses."""
        return LANES[self._words[self._row(producer) + _LANE_IN_USE]]

    def close(self) -> None:
        """Let go of the board in this process; its name stays."""
        self._segment.close()


def _row_words(streams: int) -> int:
    line = layout.CACHE_LINE // layout.WORD  # rows of different writers share no cache line
    return (_SENT + streams + line - 1) // line * line
