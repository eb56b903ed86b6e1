"""A member that is run in one of the ways there are: ``python -m tests.support.ways BUS WAY``.

Its handlers say what they do at the point "log", and end when "end" is activated.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import aembus
from aembus.delivery import Delivery

NAME: Final = "member"


def register(bus: aembus.Bus) -> None:
    """Register what the tests activate."""
    log = bus.point("log")
    at_work: list[int] = []

    def say(*line: object) -> None:
        log.activate(*line, timeout=30.0)

    def note(event: aembus.Event, number: int) -> int:
        assert not at_work, "handlers never nest"
        at_work.append(number)
        say("note", number)
        at_work.pop()
        return 2 * number

    def flaky(event: aembus.Event) -> None:
        assert event.job is not None
        say("flaky", event.job.attempt)
        raise ValueError("on purpose")

    def hold(event: aembus.Event) -> None:
        job = event.job
        assert job is not None
        job.hold()

        def complete() -> None:
            say("held", job.attempt)
            job.done("from a thread")

        threading.Thread(target=complete).start()

    def fatal(event: aembus.Event, how: str) -> None:
        assert event.job is not None
        say("fatal", event.job.attempt)
        if event.job.attempt == 1:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise SystemExit(7)

    def close(event: aembus.Event) -> None:
        say("close")
        event.close()

    bus.register("note", note)
    bus.register("flaky", flaky, retries=2, backoff=0.01)
    bus.register("hold", hold)
    bus.register("once", lambda event, n: say("once", n), name="once", once=True)
    bus.register("close", close)
    bus.register("ask", lambda event, n: bus.point("answer").call(n), name="ask")
    bus.register("fatal", fatal)
    bus.register("end", lambda event: bus.close(), name="end")


def run(bus: aembus.Bus) -> None:
    """Run until the bus is closed."""
    bus.run()


def poll(bus: aembus.Bus) -> None:
    """Poll until the bus is closed."""
    try:
        while True:
            bus.poll(0.5)
    except aembus.BusClosed:
        pass


def thread(bus: aembus.Bus) -> None:
    """Be run by a thread, until the bus is closed."""
    bus.run_in_thread().join()


def serve(bus: aembus.Bus) -> None:
    """Serve in asyncio's event loop."""
    asyncio.run(bus.serve())


def serve_uvloop(bus: aembus.Bus) -> None:
    """Serve in uvloop."""
    import uvloop

    uvloop.run(bus.serve())


def interrupt(bus: aembus.Bus) -> None:
    """Be a program that computes and sleeps, until the bus is closed."""
    bus.publish_registrations()
    steps = 0
    try:
        while True:
            steps += sum(range(1000))
            time.sleep(0.001)
            bus.counter("alive")  # raises when the bus is closed
    except aembus.BusClosed:
        pass


WAYS: Final[dict[str, Callable[[aembus.Bus], None]]] = {
    "run": run,
    "poll": poll,
    "thread": thread,
    "serve": serve,
    "serve_uvloop": serve_uvloop,
    "interrupt": interrupt,
}


def main() -> None:
    """Join, register, and run in the way that the command line says."""
    bus_name, way = sys.argv[1:]
    delivery: Delivery = "interrupt" if way == "interrupt" else "run"
    with aembus.connect(bus_name, name=NAME, delivery=delivery) as bus:
        register(bus)
        WAYS[way](bus)


if __name__ == "__main__":
    main()
