"""The producers' processes: started by exec, watched, replaced when they were killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from aembus.errors import AembusError
from aembus.stress.board import Board
from aembus.stress.producer import ProducerTask

MODULE: Final = "aembus.stress.producer"
LEAVE_S: Final = 5.0


class Producers:
    """All producers of one run, by number.

    Args:
        tasks: what each is told.
        board: where they report.
    """

    def __init__(self, tasks: list[ProducerTask], board: Board) -> None:
        self._tasks = tasks
        self._board = board
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> Iterator[int]:
        """Start all of them, one at a time; yield how many were started."""
        for number in range(len(self._tasks)):
            self._spawn(number)
            yield number + 1

    def _spawn(self, number: int) -> None:
        # A process group of its own: the terminal's Ctrl-C is for the run.
        self._processes[number] = subprocess.Popen(
            [sys.executable, "-m", MODULE, self._tasks[number].to_json()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,
        )

    def check(self) -> None:
        """Raise AembusError if one of them has ended by itself."""
        for number, process in self._processes.items():
            code = process.poll()
            if code is not None:
                raise AembusError(
                    f"producer {number} ended by itself, pid={process.pid}, exit code={code}"
                )

    def ready(self) -> int:
        """Return how many have joined the bus."""
        return sum(self._board.is_ready(n, p.pid) for n, p in self._processes.items())

    def all_quiet(self) -> bool:
        """Say whether none of them sends any more."""
        return all(self._board.is_quiet(n, p.pid) for n, p in self._processes.items())

    def is_sending(self, number: int) -> bool:
        """Say whether this one has joined the bus and was not told to stop."""
        pid = self._processes[number].pid
        return self._board.is_ready(number, pid) and not self._board.is_quiet(number, pid)

    def kill(self, number: int) -> None:
        """Kill one with SIGKILL and start its replacement."""
        process = self._processes[number]
        process.kill()
        process.wait()
        self._spawn(number)

    def __len__(self) -> int:
        return len(self._tasks)

    def end(self, patience_s: float = LEAVE_S) -> None:
        """Wait until all have left, as the board tells them to; kill those that do not in time."""
        deadline = time.monotonic() + patience_s
        for process in self._processes.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
