"""The board of a scene: words in a mapped file by which it tells its clients what to do.

Each client writes its own row.  Probes are counted in rounds: in each a sender asks every receiver,
and notes which have answered.
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

RECEIVERS_MAX: Final = _ROW_WORDS - _ANSWERS


class Board:
    """The board, as all sides see it."""

    def __init__(self, path: Path, clients: int) -> None:
        size = (_ROWS + clients * _ROW_WORDS) * 8
        with path.open("a+b") as file:
            file.truncate(size)
            self._mapping = mmap.mmap(file.fileno(), size)
        self._words = memoryview(self._mapping).cast("Q")

    # --- what the scene writes --------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Whether clients shall send nothing."""
        return self._words[_PHASE] % 2 == 0

    def be_loud(self, mode: int) -> None:
        """Let the clients send."""
        self._words[_MODE] = mode
        if self.quiet:
            self._words[_PHASE] += 1

    def be_quiet(self) -> None:
        """Let the clients stop."""
        if not self.quiet:
            self._words[_PHASE] += 1

    @property
    def mode(self) -> int:
        """How the clients shall send."""
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
        """Whether the clients shall leave."""
        return bool(self._words[_OVER])

    def end(self) -> None:
        """Let the clients leave."""
        self._words[_OVER] = 1

    # --- what a client writes -------------------------------------------------------------------

    def report_connected(self, client: int, pid: int) -> None:
        """Say that the process `pid` is on the bus (0: no longer)."""
        self._words[self._row(client) + _CONNECTED] = pid

    def report_quiet(self, client: int) -> None:
        """Say that this client has stopped, as the board told it to."""
        self._words[self._row(client) + _QUIET] = self._words[_PHASE]

    def next_stream(self, client: int) -> int:
        """Return a number for what this client sends from now on."""
        self._words[self._row(client) + _STREAMS] += 1
        return client << 24 | self._words[self._row(client) + _STREAMS]

    def count_sent(self, client: int) -> None:
        """Count an activation."""
        self._words[self._row(client) + _SENT] += 1

    def report_answer(self, client: int, receiver: int, probe_round: int) -> None:
        """Say that a receiver has answered."""
        self._words[self._row(client) + _ANSWERS + receiver] = probe_round

    # --- what the scene reads ---------------------------------------------------------------------

    def connected(self, client: int) -> int:
        """Return the PID under which a client is on the bus, 0 if it is not."""
        return self._words[self._row(client) + _CONNECTED]

    def is_quiet(self, client: int) -> bool:
        """Say whether a client has stopped since it was told to."""
        return self._words[self._row(client) + _QUIET] == self._words[_PHASE]

    def sent(self, client: int) -> int:
        """Return how many activations a client, dead ones included, has counted."""
        return self._words[self._row(client) + _SENT]

    def unanswered(self, senders: int, receivers: int) -> list[tuple[int, int]]:
        """Return (sender, receiver) of each pair that has not exchanged this round's probe."""
        return [
            (sender, receiver)
            for sender in range(senders)
            for receiver in range(receivers)
            if self._words[self._row(sender) + _ANSWERS + receiver] != self.probe_round
        ]

    @staticmethod
    def _row(client: int) -> int:
        return _ROWS + client * _ROW_WORDS

    def close(self) -> None:
        """Let go of the mapping in this process."""
        self._words.release()
        self._mapping.close()
