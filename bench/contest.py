"""Transports that take turns: calibrated, then measured round by round, in rotated order.

All of them are there during all rounds, asleep but for the one whose turn it is, so that whatever
else the machine does falls on all alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.crew import Crew, CrewFailed
from bench.driver import NO_TRIP, Driver, Trip
from bench.figures import percentile
from bench.progress import Progress
from bench.work import Shape

GROWTH_MAX: Final = 20.0
JOBS_FIRST: Final = 200


@dataclass(frozen=True, slots=True)
class Entrant:
    """One transport in one shape, and the name that its figures get."""

    name: str
    driver: type[Driver]
    shape: Shape
    trip: Trip = NO_TRIP


@dataclass(slots=True)
class Result:
    """What one transport did in each round.

    jobs: handler calls of a round, or exchanges.
    rates: handler calls a second.
    p50_us, p99_us: of the exchanges of a round.
    """

    jobs: int = 0
    rates: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)


class Contest:
    """The crews of some entrants; use it as a context manager.

    Args:
        entrants: who takes part; their names differ.
        scratch: a folder for sockets and logs.
        round_s: how long a round shall take.
        progress: is told what goes on.
    """

    def __init__(
        self, entrants: Sequence[Entrant], scratch: Path, round_s: float, progress: Progress
    ) -> None:
        self._entrants = entrants
        self._scratch = scratch
        self._round_s = round_s
        self._progress = progress
        self._stack = ExitStack()
        self._crews: dict[str, Crew] = {}
        self.failures: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Start every crew; one that fails is left out."""
        with ExitStack() as stack:
            for entrant in self._entrants:
                self._progress.say(f"starting {entrant.name}, {entrant.shape.name}")
                driver = entrant.driver(entrant.shape, self._scratch, entrant.trip)
                crew = Crew(driver)
                try:
                    self._crews[entrant.name] = stack.enter_context(crew)
                except CrewFailed as error:
                    self.failures[entrant.name] = str(error)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every crew."""
        self._progress.say("ending the processes")
        self._stack.__exit__(kind, error, trace)

    def measure_rates(self, size: int, rounds: int) -> dict[str, Result]:
        """Let each transport send for `rounds` rounds; return the results of those that did."""

        def calibrate(crew: Crew) -> int:
            return self._calibrate(lambda jobs: crew.send(jobs, size)[1])

        def measure(crew: Crew, jobs: int, result: Result) -> None:
            handled, passed_ns = crew.send(jobs, size)
            result.jobs = handled
            result.rates.append(handled / passed_ns * 1e9)

        return self._measure(f"{size} B", rounds, calibrate, measure)

    def measure_trips(self, size: int, rounds: int) -> dict[str, Result]:
        """Let each transport go back and forth; return the results of those that did."""

        def calibrate(crew: Crew) -> int:
            return self._calibrate(lambda exchanges: sum(crew.exchange(exchanges, size)))

        def measure(crew: Crew, exchanges: int, result: Result) -> None:
            times = sorted(crew.exchange(exchanges, size))
            result.jobs = len(times)
            result.p50_us.append(percentile(times, 0.50) / 1000)
            result.p99_us.append(percentile(times, 0.99) / 1000)

        return self._measure(f"{size} B", rounds, calibrate, measure)

    def _measure(
        self,
        what: str,
        rounds: int,
        calibrate: Callable[[Crew], int],
        measure: Callable[[Crew, int, Result], None],
    ) -> dict[str, Result]:
        jobs = {}
        for name, crew in self._turns(0):
            self._progress.say(f"calibrating {name}, {crew.driver.shape.name}, {what}")
            with self._failing(name):
                jobs[name] = calibrate(crew)
        results = {name: Result() for name in jobs}
        for number in range(rounds):
            for name, crew in self._turns(number):
                self._progress.step(
                    f"{crew.driver.shape.name}, {what}, round {number + 1} of {rounds}: {name}"
                )
                with self._failing(name):
                    measure(crew, jobs[name], results[name])
        return {name: result for name, result in results.items() if name in self._crews}

    def _turns(self, number: int) -> Iterator[tuple[str, Crew]]:
        names = list(self._crews)
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            yield name, self._crews[name]

    @contextlib.contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        try:
            yield
        except CrewFailed as error:
            self.failures[name] = str(error)
            self._crews.pop(name).stop()

    def _calibrate(self, measure: Callable[[int], int]) -> int:
        # How many jobs make a round of the wanted length; these first ones also warm up.
        jobs = JOBS_FIRST
        while True:
            passed_s = measure(jobs) / 1e9
            if passed_s >= self._round_s / 4:
                return max(1, int(jobs * self._round_s / passed_s))
            jobs = int(jobs * min(GROWTH_MAX, max(2.0, self._round_s / 3 / passed_s)))
