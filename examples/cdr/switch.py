"""A worker that ends calls all the time and has them recorded."""

from __future__ import annotations

import itertools
import time

import aembus

CALLS_AT_ONCE = 10


def main(bus: aembus.Bus) -> None:
    """Entry point: ten times a second ten calls end."""
    cdr = bus.service("cdr")
    numbers = itertools.count(1)

    def end_calls(event: aembus.Event) -> None:
        now = time.time()
        records = [
            [f"{bus.member_name}-{bus.incarnation}-{number}", "alice", "bob", now - 60.0, now]
            for number in itertools.islice(numbers, CALLS_AT_ONCE)
        ]
        cdr.write(records)
        bus.counter("recorded").add(len(records))

    bus.service("timer").every(0.1, end_calls)
