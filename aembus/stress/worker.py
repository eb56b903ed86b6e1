"""The workers of a stress run: each records what it gets in its ledger."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass

from aembus.bus import Bus
from aembus.event import Event
from aembus.stress import message
from aembus.stress.ledger import Ledger


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What a worker is told.

    nonce: part of the ledger's name.
    slots: of the bus.
    producers: how many there are.
    """

    nonce: str
    slots: int
    producers: int

    def to_json(self) -> str:
        """Return the task as a worker's argument."""
        return json.dumps(asdict(self))


def main(bus: Bus) -> None:
    """Entry point: registers for the run's jobs."""
    task = WorkerTask(**json.loads(sys.argv[1]))
    name = Ledger.name(bus.name, task.nonce, bus.member_name)
    ledger = Ledger.take_up(name, task.slots, task.producers)

    def record(event: Event, head: bytes, checksum: int, body: bytes) -> None:
        now_ns = time.monotonic_ns()
        job = event.job
        assert job is not None
        slot, incarnation = job.origin
        found = message.read(head, checksum, body)
        ledger.record(slot, incarnation, job.identity.sequence, job.attempt, found, now_ns)

    bus.register(message.POINT, record, group=message.GROUP, name="stress")
