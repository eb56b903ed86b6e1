"""A sequential billing run that events interrupt: ``python -m examples.billing BUS``.

The loop computes bills one after the other and knows nothing of events.  Calls that end meanwhile,
and a new tariff, arrive between two of its steps.  BUS is one that runs (`aembus ls`); then:

    python -c 'import aembus; aembus.connect("BUS").activate("call.ended", "alice", 61)'
"""

from __future__ import annotations

import sys
from collections import Counter

import aembus

seconds: Counter[str] = Counter({"alice": 100, "bob": 3600})
tariff = {"cents_per_minute": 5}


def main() -> None:
    """Print a bill for everybody, again and again."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m examples.billing BUS")
    with aembus.connect(sys.argv[1], delivery="interrupt") as bus:

        @bus.on("call.ended")
        def call_ended(event: aembus.Event, customer: str, length_s: int) -> None:
            seconds[customer] += length_s

        @bus.on("tariff.changed")
        def tariff_changed(event: aembus.Event, cents_per_minute: int) -> None:
            tariff["cents_per_minute"] = cents_per_minute

        while True:
            with bus.masked():  # one tariff for all bills of a round, and nobody new in between
                bills = {who: s / 60 * tariff["cents_per_minute"] for who, s in seconds.items()}
            for customer, cents in sorted(bills.items()):
                print(f"{customer}: {cents / 100:.2f}", flush=True)
            print(sum(i * i for i in range(5_000_000)), "is what the rest of the work gave")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
