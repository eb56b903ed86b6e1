"""A producer that never posts a doorbell: ``python -m tests.stress.silent_producer TASK``."""

from __future__ import annotations

import json
import sys

from aembus.shm.doorbell import Ringer
from aembus.stress.producer import ProducerTask, run_producer


def no_ring(ringer: Ringer, sleeping: int) -> None:
    """Stand in for Ringer.ring."""


if __name__ == "__main__":
    Ringer.ring = no_ring  # type: ignore[assignment, method-assign]
    sys.exit(run_producer(ProducerTask(**json.loads(sys.argv[1]))))
