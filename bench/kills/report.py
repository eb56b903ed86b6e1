"""What the trials of a transport come to, as a line of a table and as JSON.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.figures import percentile
from bench.kills.trial import Verdict
from bench.report import aligned

HEAD: Final = ("", "kills", "hung", "", "slow", "went on after, p50", "p99",
               "sent", "lost", "twice", "damaged", "dead letters")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tally:
    """One transport in one scenario.

    outcomes: of its trials, as `Outcome.to_json` gives them.
    kept: how many of the missing jobs are dead letters.
    """

    outcomes: Sequence[Mapping[str, Any]]
    kept: int

    def count(self, verdict: Verdict) -> int:
        """Return how many trials ended so."""
        return sum(outcome["verdict"] == verdict for outcome in self.outcomes)

    @property
    def kills(self) -> int:
        """How many trials there were."""
        return len(self.outcomes)

    @property
    def hung(self) -> int:
        """How often the survivors went on no more."""
        return self.count(Verdict.HUNG)

    @property
    def lost(self) -> int:
        """How many jobs were sent, and neither handled nor kept as dead letters, but for hangs."""
        return self._sum("missing") - self.kept

    @property
    def twice(self) -> int:
        """How many jobs were handled more than once."""
        return self._sum("twice")

    @property
    def damaged(self) -> int:
        """How many jobs were not as they were sent."""
        return self._sum("damaged")

    def _sum(self, key: str) -> int:
        return sum(outcome[key] or 0 for outcome in self.outcomes)

    def recovery_ms(self, share: float) -> float | None:
        """Return within which time the survivors went on, where they did; None if nowhere."""
        times = sorted(o["recovery_s"] for o in self.outcomes if o["recovery_s"] is not None)
        return percentile(times, share) * 1000 if times else None

    @property
    def shortcomings(self) -> list[str]:
        """What aembus has promised not to happen, in words."""
        found = (("hung", self.hung), ("slow", self.count(Verdict.SLOW)), ("lost", self.lost),
                 ("twice", self.twice), ("damaged", self.damaged))  # fmt: skip
        return [f"{number} {what}" for what, number in found if number > 0]

    def row(self, name: str) -> list[str]:
        """Return the line of a table."""
        p50, p99 = self.recovery_ms(0.5), self.recovery_ms(0.99)
        return [
            name,
            str(self.kills),
            str(self.hung),
            f"{self.hung / self.kills:.0%}" if self.kills else "",
            str(self.count(Verdict.SLOW)),
            f"{p50:.1f} ms" if p50 is not None else "",
            f"{p99:.1f} ms" if p99 is not None else "",
            f"{self._sum('sent'):,}",
            f"{self.lost:,}",
            f"{self.twice:,}",
            f"{self.damaged:,}",
            f"{self.kept:,}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the figures, and every outcome."""
        return {
            "kills": self.kills,
            "hung": self.hung,
            "slow": self.count(Verdict.SLOW),
            "recovery_ms": {"p50": self.recovery_ms(0.5), "p99": self.recovery_ms(0.99)},
            "sent": self._sum("sent"),
            "lost": self.lost,
            "twice": self.twice,
            "damaged": self.damaged,
            "dead_letters": self.kept,
            "outcomes": list(self.outcomes),
        }


def table(title: str, tallies: Mapping[str, Tally], failures: Mapping[str, str]) -> str:
    """Return the table of one scenario."""
    rows = [list(HEAD), *(tally.row(name) for name, tally in tallies.items())]
    failed = [f"  {name} failed: {reason}" for name, reason in failures.items()]
    return "\n".join([title, *aligned(rows), *failed])
