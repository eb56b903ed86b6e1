"""Entry points of workers that do to one of their jobs what must never happen."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, cast

import aembus
from aembus.stress import worker

VICTIM: Final = 100  # the number of the job, of those that a worker gets

Delivery = tuple[Any, tuple[Any, ...]]  # an event, or what looks like one, and a job's data
Treatment = Callable[[int, Delivery], list[Delivery]]


class SabotagedBus:
    """A bus on whose handlers' way there is somebody."""

    def __init__(self, bus: aembus.Bus, treat: Treatment) -> None:
        self._bus = bus
        self._treat = treat
        self._count = 0

    def register(self, point: str, handler: Callable[..., object], **options: Any) -> aembus.Event:
        def between(event: aembus.Event, *data: Any) -> None:
            self._count += 1
            for what, of in self._treat(self._count, (SimpleNamespace(job=event.job), data)):
                handler(what, *of)

        return self._bus.register(point, between, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


def sabotaged_main(bus: aembus.Bus, treat: Treatment) -> None:
    """Be a worker whose jobs go through `treat`, numbered, on their way to the handler."""
    worker.main(cast(aembus.Bus, SabotagedBus(bus, treat)))


def lost(bus: aembus.Bus) -> None:
    """Entry point: a job never reaches its handler."""
    sabotaged_main(bus, lambda number, job: [] if number == VICTIM else [job])


def duplicated(bus: aembus.Bus) -> None:
    """Entry point: a job reaches its handler twice."""
    sabotaged_main(bus, lambda number, job: [job, job] if number == VICTIM else [job])


def corrupted(bus: aembus.Bus) -> None:
    """Entry point: one bit of a job is another one."""

    def flip(number: int, job: Delivery) -> list[Delivery]:
        event, (head, checksum, body) = job
        if number == VICTIM:
            body = bytes([body[0] ^ 0x10]) + body[1:]
        return [(event, (head, checksum, body))]

    sabotaged_main(bus, flip)


def reordered(bus: aembus.Bus) -> None:
    """Entry point: a job is overtaken by the next one of its lane."""
    held: list[Delivery] = []

    def overtake(number: int, job: Delivery) -> list[Delivery]:
        if number == VICTIM:
            held.append(job)
            return []
        if held and held[0][0].job.origin == job[0].job.origin:
            return [job, held.pop()]
        return [job]

    sabotaged_main(bus, overtake)


def raising(bus: aembus.Bus) -> None:
    """Entry point: a handler raises."""

    def fail(number: int, job: Delivery) -> list[Delivery]:
        if number == VICTIM:
            raise ValueError("sabotage")
        return [job]

    sabotaged_main(bus, fail)


def exiting(bus: aembus.Bus) -> None:
    """Entry point: a worker ends by itself, with its job in hand, once."""
    exits = bus.counter("exits")

    def leave(number: int, job: Delivery) -> list[Delivery]:
        if number == VICTIM and not exits.value:
            exits.add()
            raise SystemExit(5)
        return [job]

    sabotaged_main(bus, leave)
