"""What a stress run reports: its figures, named as the command line's contract does, its course."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aembus.stress.histogram import Histogram
from aembus.stress.verdict import Accounts


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill: when (seconds since the load began), and whom."""

    at_s: float
    what: str


@dataclass(slots=True)
class Course:
    """How a run went on: (seconds since the load began, jobs finished by then), and the kills."""

    samples: list[tuple[float, int]] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)

    def rates(self) -> list[tuple[float, float]]:
        """Return (seconds, jobs a second) between each two samples, at the middle of the two."""
        return [
            ((a[0] + b[0]) / 2, (b[1] - a[1]) / (b[0] - a[0]))
            for a, b in zip(self.samples, self.samples[1:], strict=False)
            if b[0] > a[0]
        ]


@dataclass(frozen=True, slots=True)
class Report:
    """A run, at its end.

    seconds: from the first job that was sent to the last one delivered.
    workers_killed: of the kills; the others were producers.
    recoveries_s: of each that came back: from the kill to its replacement's first job.
    failures: why it failed, a line each; empty if it did not.
    interrupted: it was ended before its time.
    """

    accounts: Accounts
    seconds: float
    latencies: Histogram
    course: Course
    workers_killed: int
    recoveries_s: Sequence[float]
    rescued_wakeups: int
    lane: str
    producers: int
    workers: int
    size: int
    seed: int
    pinned: bool
    interrupted: bool
    failures: list[str]

    @property
    def rate_per_s(self) -> float:
        """Jobs delivered a second."""
        return self.accounts.delivered / self.seconds if self.seconds > 0 else 0.0

    def latency_us(self) -> dict[str, float]:
        """Return the latencies from activation to handler, in microseconds."""
        found = {
            "p50": self.latencies.quantile(0.5),
            "p99": self.latencies.quantile(0.99),
            "p99_9": self.latencies.quantile(0.999),
            "max": float(self.latencies.max),
        }
        return {name: round(value / 1000, 1) for name, value in found.items()}

    def recovery_ms(self) -> dict[str, float]:
        """Return how long replacements took to get their first job; nothing without any."""
        times = sorted(self.recoveries_s)
        shares = {"p50": 0.5, "p99": 0.99, "max": 1.0} if times else {}
        last = len(times) - 1
        return {
            name: round(times[min(int(share * len(times)), last)] * 1000, 1)
            for name, share in shares.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the report as ``--json`` writes it: the contract's keys, then others."""
        accounts = self.accounts
        return {
            "sent": accounts.sent,
            "delivered": accounts.delivered,
            "redelivered": accounts.redelivered,
            "dead_lettered": accounts.dead_lettered,
            "lost": accounts.lost,
            "duplicated": accounts.duplicated,
            "reordered": accounts.reordered,
            "corrupted": accounts.corrupted,
            "rate_per_s": round(self.rate_per_s, 1),
            "latency_us": self.latency_us(),
            "kills": len(self.course.kills),
            "rescued_wakeups": self.rescued_wakeups,
            "lane": self.lane,
            "workers_killed": self.workers_killed,
            "recovery_ms": self.recovery_ms(),
            "queued": accounts.queued,
            "seconds": round(self.seconds, 3),
            "producers": self.producers,
            "workers": self.workers,
            "size": self.size,
            "seed": self.seed,
            "pinned": self.pinned,
            "interrupted": self.interrupted,
            "failures": self.failures,
        }
