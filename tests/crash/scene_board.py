"""The board of a scene: words in a mapped file by which it tells its producers what to do.

Each producer writes its own row.  Probes are counted in rounds: in each a producer asks every
worker, and notes which have answered.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

BUSY: Final = 0  # bursts, so that lanes fill up
TRICKLE: Final = 1  # a job now and then, so that workers fall asleep between two
MIXED: Final = 2
MODES: Final = (BUSY, TRICKLE, MIXED)

_PHASE: Final = 0
_MODE: Final = 1
_ROUND: Final = 2
_OVER: Final = 3
_ROWS: Final = 8
_ROW_WORDS: Final = 32
_CONNECTED: Final = 0
_QUIET: Final = 1
_STREAMS: Final = 2
_SENT: Final = 3
_ANSWERS: Final = 8

WORKERS_MAX: Final = _ROW_WORDS - _ANSWERS


class Board:
    """The board, as all sides see it."""

    def __init__(self, path: Path, producers: int) -> None:
        size = (_ROWS + producers * _ROW_WORDS) * 8
        with path.open("a+b") as file:
            file.truncate(size)
            self._mapping = mmap.mmap(file.fileno(), size)
        self._words = memoryview(self._mapping).cast("Q")
        self._producers = producers

    # --- what the scene writes --------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Whether producers shall send nothing."""
        return self._words[_PHASE] % 2 == 0

    def be_loud(self, mode: int) -> None:
        """Let the producers send."""
        self._words[_MODE] = mode
        if self.quiet:
            self._words[_PHASE] += 1

    def be_quiet(self) -> None:
        """Let the producers stop."""
        if not self.quiet:
            self._words[_PHASE] += 1

    @property
    def mode(self) -> int:
        """How the producers shall send."""
        return self._words[_MODE]

    @property
    def probe_round(self) -> int:
        """The number of the newest round of probes."""
        return self._words[_ROUND]

    @probe_round.setter
    def probe_round(self, number: int) -> None:
        self._words[_ROUND] = number

    @property
    def over(self) -> bool:
        """Whether the producers shall leave."""
        return bool(self._words[_OVER])

    def end(self) -> None:
        """Let the producers leave."""
        self._words[_OVER] = 1

    # --- what a producer writes -------------------------------------------------------------------

    def report_connected(self, producer: int, pid: int) -> None:
        """Say that the process `pid` is on the bus (0: no longer)."""
        self._words[self._row(producer) + _CONNECTED] = pid

    def report_quiet(self, producer: int) -> None:
        """Say that this producer has stopped, as the board told it to."""
        self._words[self._row(producer) + _QUIET] = self._words[_PHASE]

    def next_stream(self, producer: int) -> int:
        """Return a number for what this producer sends from now on."""
        self._words[self._row(producer) + _STREAMS] += 1
        return producer << 24 | self._words[self._row(producer) + _STREAMS]

    def count_sent(self, producer: int) -> None:
        """Count an activation."""
        self._words[self._row(producer) + _SENT] += 1

    def report_answer(self, producer: int, worker: int, probe_round: int) -> None:
        """Say that a worker has answered."""
        self._words[self._row(producer) + _ANSWERS + worker] = probe_round

    # --- what the scene reads ---------------------------------------------------------------------

    def connected(self, producer: int) -> int:
        """Return the PID under which a producer is on the bus, 0 if it is not."""
        return self._words[self._row(producer) + _CONNECTED]

    def is_quiet(self, producer: int) -> bool:
        """Say whether a producer has stopped since it was told to."""
        return self._words[self._row(producer) + _QUIET] == self._words[_PHASE]

    def sent(self, producer: int) -> int:
        """Return how many activations a producer, dead ones included, has counted."""
        return self._words[self._row(producer) + _SENT]

    def unanswered(self, workers: int) -> list[tuple[int, int]]:
        """Return (producer, worker) of each pair that has not exchanged this round's probe."""
        return [
            (producer, worker)
            for producer in range(self._producers)
            for worker in range(workers)
            if self._words[self._row(producer) + _ANSWERS + worker] != self.probe_round
        ]

    @staticmethod
    def _row(producer: int) -> int:
        return _ROWS + producer * _ROW_WORDS

    def close(self) -> None:
        """Let go of the mapping in this process."""
        self._words.release()
        self._mapping.close()
