"""A producer of a stress run: ``python -m aembus.stress.producer TASK``.

It joins the bus as any other client, waits until all producers are there, and then sends in bursts
with short pauses, as fast as there is room: sometimes to all workers in turn, sometimes to one of
them only.  So lanes run full, run empty, and workers fall asleep and are woken.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

from aembus.bus import Bus
from aembus.connecting import connect
from aembus.errors import BusBroken, InboxFull
from aembus.stress import message
from aembus.stress.board import OVER, SENDING, STARTING, Board

BURST_MAX: Final = 1024
PAUSE_S_MAX: Final = 0.002
ROOM_S: Final = 0.2  # then it looks whether the run is still on, and tries again
NAP_S: Final = 0.01

EXIT_BROKEN: Final = 1


@dataclass(frozen=True, slots=True)
class ProducerTask:
    """What a producer is told.

    bus, nonce: for the names.
    producer: its number.
    producers, workers: how many there are.
    size: of a job's body, in bytes.
    seed: for the bursts.
    only: the worker that it sends to; all of them if None.
    """

    bus: str
    nonce: str
    producer: int
    producers: int
    workers: int
    size: int
    seed: int
    only: int | None = None

    def to_json(self) -> str:
        """Return the task as a producer's argument."""
        return json.dumps(asdict(self))


class Producer:
    """One producer's process on the bus.

    Args:
        bus: joined already.
        board: where the run says what to do.
        task: what it was told.
    """

    def __init__(self, bus: Bus, board: Board, task: ProducerTask) -> None:
        self._point = bus.point(message.POINT)
        self._board = board
        self._producer = task.producer
        self._writer = message.Writer(task.producer, task.size)
        self._keys = message.keys(task.producer, task.workers)
        self._sequences = [0] * task.workers  # of what was sent, by stream
        self._streams = range(task.workers) if task.only is None else [task.only]
        self._random = random.Random(f"{task.seed} {task.producer} {bus.incarnation}")

    def run(self) -> None:
        """Send until the run says that it is enough."""
        streams = self._streams
        choice = self._random
        while self._board.phase == SENDING:
            length = int(BURST_MAX ** choice.random())
            first = choice.randrange(len(streams))
            in_turn = choice.random() < 0.5
            for number in range(length):
                if not self._send(streams[(first + number * in_turn) % len(streams)]):
                    return
            time.sleep(choice.random() * PAUSE_S_MAX)  # a pause, not a wait for anything

    def _send(self, stream: int) -> bool:
        sequence = self._sequences[stream] + 1
        data = self._writer.write(stream, sequence, time.monotonic_ns())
        while self._board.phase == SENDING:
            try:
                jobs = self._point.activate(*data, key=self._keys[stream], timeout=ROOM_S)
            except InboxFull:
                continue
            if jobs:
                self._sequences[stream] = sequence
                self._board.count_sent(self._producer, stream)
                return True
            time.sleep(NAP_S)  # nobody is registered, which no run should ever see
        return False


def run_producer(task: ProducerTask) -> int:
    """Be a producer from its start to its end; return the process's exit code."""
    pid = os.getpid()
    with connect(task.bus) as bus:
        name = Board.name(task.bus, task.nonce)
        board = Board.open(name, task.producers, task.workers)
        producer = Producer(bus, board, task)
        try:
            board.report_ready(task.producer, pid)
            while board.phase == STARTING:
                bus.poll(NAP_S)
            producer.run()
            board.report_quiet(task.producer, pid)
            while board.phase != OVER:
                bus.poll(NAP_S)
        except BusBroken:  # the run has ended, and why is for others to say
            return EXIT_BROKEN
        finally:
            board.close()
    return 0


if __name__ == "__main__":
    sys.exit(run_producer(ProducerTask(**json.loads(sys.argv[1]))))
