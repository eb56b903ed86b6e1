"""The processes of a measurement: each holds one end and does what the bench's process tells it.

Orders and reports go through a connection of its own; the start of a round through a pipe that all
share, so that one write starts all.  A worker ends when its connection does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

from bench.driver import Driver, Quit
from bench.work import Batch, Handler

UP: Final = "up"  # a worker's end is open
READY: Final = "ready"  # it waits for the start of the round
ROUND: Final = "round"  # an order; a producer's is its Batch
QUIT: Final = "quit"

PR_SET_PDEATHSIG: Final = 1


def run_worker(role: str, driver: Driver, index: int, control: Connection, go: Connection) -> None:
    """Be a worker: the target of its process."""
    _end_with_parent()
    try:
        _ROLES[role](driver, index, control, go)
    except EOFError:
        pass  # the bench has ended


def _end_with_parent() -> None:
    # For a bench that was killed: a worker may be anywhere in its transport then.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _produce(driver: Driver, index: int, control: Connection, go: Connection) -> None:
    producer = driver.producer(index)
    control.send(UP)
    while (order := control.recv()) != QUIT:
        producer.prepare(order)
        control.send(READY)
        os.read(go.fileno(), 1)
        producer.send()
        producer.end()
        control.send((time.monotonic_ns(), *producer.handled()))
    producer.close()


def _consume(driver: Driver, index: int, control: Connection, go: Connection) -> None:
    consumer = driver.consumer(index)

    def next_round() -> None:
        if control.recv() == QUIT:
            consumer.quit()
        else:
            control.send(READY)

    def end_round(count: int, total: int) -> None:
        control.send((time.monotonic_ns(), count, total))
        next_round()  # inside the handler: the transport's own loop runs on, as in a program

    plain, with_event = make_handlers(driver.shape.producers, end_round)
    consumer.start(with_event if consumer.takes_event else plain)
    control.send(UP)
    try:
        next_round()
        consumer.run()
    except Quit:
        pass
    consumer.close()


def make_handlers(
    producers: int, end_round: Callable[[int, int], None]
) -> tuple[Handler, Callable[..., None]]:
    """Return the handler that every job is given to, and its twin that gets an event first.

    It counts and adds.  When every producer has said that it is through, it calls `end_round`
    with count and sum, and begins anew.
    """
    count = total = ends = 0

    def end() -> None:
        nonlocal count, total, ends
        ends += 1
        if ends == producers:
            result = (count, total)
            count = total = ends = 0
            end_round(*result)

    def handle(number: int, text: str, blob: bytes) -> None:
        nonlocal count, total
        if number < 0:
            end()
        else:
            count += 1
            total += number

    def handle_with_event(event: object, number: int, text: str, blob: bytes) -> None:
        # Not by calling the other one: one Python call for each job is the same work for all.
        nonlocal count, total
        if number < 0:
            end()
        else:
            count += 1
            total += number

    return handle, handle_with_event


def _ping(driver: Driver, index: int, control: Connection, go: Connection) -> None:
    pinger = driver.pinger()
    _place(driver, 0)
    control.send(UP)

    def next_batch() -> Batch | None:
        order = control.recv()
        if order == QUIT:
            return None
        control.send(READY)
        os.read(go.fileno(), 1)
        batch: Batch = order
        return batch

    pinger.run(next_batch, control.send)
    pinger.close()


def _pong(driver: Driver, index: int, control: Connection, go: Connection) -> None:
    ponger = driver.ponger()
    _place(driver, 1)
    control.send(UP)

    def next_round() -> bool:
        if control.recv() == QUIT:
            return False
        control.send(READY)
        return True

    ponger.run(next_round)
    ponger.close()


def _place(driver: Driver, side: int) -> None:
    # This thread only: threads that the transport has started may run where there is room.
    if driver.trip.apart:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[side]})


_ROLES: Final = {"producer": _produce, "consumer": _consume, "pinger": _ping, "ponger": _pong}
