"""The board of one trial: counters and a ledger, in memory that its processes share.

Each word and each cell has one writer at a time, and no lock: nobody waits here for a dead one.

- a word says what the members shall do (the trial writes it);
- a producer says that it is up, which job it sent last, and that it has stopped;
- a consumer says that it is up, which job of each producer it got last, and how many were damaged;
- the ledger has a byte for each job of each producer: how often it was handled.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Final, Literal

MEMBERS_MAX: Final = 2  # producers, and consumers
JOBS_MAX: Final = 1 << 20  # of one producer

WAIT: Final = 0
FLOOD: Final = 1
QUIET: Final = 2
PROBE: Final = 3  # a producer sends PROBES jobs more, and is quiet again
PROBES: Final = 20

_PHASE: Final = 0
_PRODUCERS: Final = 8
_CONSUMERS: Final = 32
_STRIDE: Final = 8  # a cache line for each member
_UP, _SENT, _STOPPED = range(3)
_SEEN, _DAMAGED = 1, 1 + MEMBERS_MAX  # behind _UP
_LEDGER: Final = 512
_BYTES: Final = _LEDGER + MEMBERS_MAX * JOBS_MAX

Role = Literal["producer", "consumer"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who floods whom, and who is killed: always the first of its kind."""

    name: str
    title: str
    producers: int
    consumers: int
    victim: Role


SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "producer", "two producers flood one consumer; a producer is killed", 2, 1, "producer"
        ),
        Scenario(
            "consumer", "two consumers share what one sends; a consumer is killed", 1, 2, "consumer"
        ),
    )
}


class Board:
    """One trial's board; the processes that are forked after it was made share it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._memory = mmap.mmap(-1, _BYTES)
        self._words = memoryview(self._memory)[:_LEDGER].cast("Q")

    @property
    def phase(self) -> int:
        """What the members shall do."""
        return self._words[_PHASE]

    @phase.setter
    def phase(self, phase: int) -> None:
        self._words[_PHASE] = phase

    # --- a producer's -----------------------------------------------------------------------------

    def producer_up(self, producer: int) -> None:
        """Say that this producer can send."""
        self._words[_PRODUCERS + producer * _STRIDE + _UP] = 1

    def count_sent(self, producer: int, number: int) -> None:
        """Say that the job `number` is sent, as far as the transport says."""
        self._words[_PRODUCERS + producer * _STRIDE + _SENT] = number

    def stopped(self, producer: int) -> None:
        """Say that this producer sends nothing any more."""
        self._words[_PRODUCERS + producer * _STRIDE + _STOPPED] = 1

    # --- a consumer's -----------------------------------------------------------------------------

    def consumer_up(self, consumer: int) -> None:
        """Say that this consumer can receive."""
        self._words[_CONSUMERS + consumer * _STRIDE + _UP] = 1

    def handle(self, consumer: int, producer: int, number: int) -> None:
        """Take note of a job."""
        self._memory[_LEDGER + producer * JOBS_MAX + number] += 1
        self._words[_CONSUMERS + consumer * _STRIDE + _SEEN + producer] = number

    def count_damaged(self, consumer: int) -> None:
        """Take note of a job that is not as it was sent."""
        self._words[_CONSUMERS + consumer * _STRIDE + _DAMAGED] += 1

    # --- the trial's ------------------------------------------------------------------------------

    def all_up(self, role: Role) -> bool:
        """Say whether all members of a kind are up."""
        first, count = _PRODUCERS, self.scenario.producers
        if role == "consumer":
            first, count = _CONSUMERS, self.scenario.consumers
        return all(self._words[first + n * _STRIDE + _UP] for n in range(count))

    def sent(self, producer: int) -> int:
        """Return the last job that this producer has sent."""
        return self._words[_PRODUCERS + producer * _STRIDE + _SENT]

    def has_stopped(self, producer: int) -> bool:
        """Say whether this producer sends nothing any more."""
        return bool(self._words[_PRODUCERS + producer * _STRIDE + _STOPPED])

    def seen(self, consumer: int, producer: int) -> int:
        """Return the last job of this producer that this consumer got."""
        return self._words[_CONSUMERS + consumer * _STRIDE + _SEEN + producer]

    def flows(self) -> bool:
        """Say whether every consumer has got something from every producer."""
        scenario = self.scenario
        return all(self.seen(c, p) for c in range(scenario.consumers)
                   for p in range(scenario.producers))  # fmt: skip

    def missing(self) -> int:
        """Return how many jobs were sent and not handled."""
        return sum(self._handled(p).count(0) for p in range(self.scenario.producers))

    def missing_jobs(self) -> list[tuple[int, int]]:
        """Return which these are: producer and number of each."""
        return [(producer, index + 1) for producer in range(self.scenario.producers)
                for index, times in enumerate(self._handled(producer)) if not times]  # fmt: skip

    def twice(self) -> int:
        """Return how many jobs were handled more than once."""
        found = [self._handled(p) for p in range(self.scenario.producers)]
        return sum(len(times) - times.count(0) - times.count(1) for times in found)

    def damaged(self) -> int:
        """Return how many jobs were not as they were sent."""
        return sum(self._words[_CONSUMERS + c * _STRIDE + _DAMAGED]
                   for c in range(self.scenario.consumers))  # fmt: skip

    def _handled(self, producer: int) -> bytes:
        first = _LEDGER + producer * JOBS_MAX + 1
        return self._memory[first : first + self.sent(producer)]

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._memory.close()
