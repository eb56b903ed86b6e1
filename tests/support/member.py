"""A member with a name, ``python -m tests.support.member``: to be started, killed, started again.

It registers two events, tells of each job at the point "seen" (its process, what it got, the
attempt), and obeys the words that a job carries: to die, to close, to wait for a file.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import aembus


def main() -> None:
    """Be the member until the bus is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bus")
    parser.add_argument("name")
    parser.add_argument("--keep", type=float, default=60.0)
    parser.add_argument("--reconnect", action="store_true")
    parser.add_argument("--gate", type=Path, help="register the second event once it is there")
    parser.add_argument("--group")
    options = parser.parse_args()
    bus = aembus.connect(
        options.bus, name=options.name, keep=options.keep, reconnect=options.reconnect
    )
    answers = bus.point("seen")

    def tell(event: aembus.Event, word: str) -> None:
        assert event.job is not None
        if word == "die" or (word == "die once" and event.job.attempt == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if word in ("close", "close, keep"):
            bus.close(keep=word == "close, keep")
            return
        if word == "exec":
            os.execv(sys.executable, [sys.executable, "-m", "tests.support.member", *sys.argv[1:]])
        answers.activate(event.name, word, event.job.attempt, os.getpid())

    bus.register("first", tell, name="first", group=options.group)
    bus.register("fragile", tell, name="fragile", redeliver=False)
    if options.gate is not None:
        print("registers", flush=True)
        while not options.gate.exists():
            time.sleep(0.01)
    bus.register("second", tell, name="second")
    bus.publish_registrations()
    print("runs", flush=True)
    bus.run()
    print("ended", flush=True)


if __name__ == "__main__":
    main()
