"""Results as tables for a person, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.contest import Result
from bench.figures import Spread, ratios

LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Cell:
    """The results of transports that were measured together, so that they can be compared.

    kind: "throughput" or "roundtrip".
    title: what was measured, for the table's head.
    ours: the names of what the others are compared with.
    tags: what tells this cell from others, for the JSON.
    """

    kind: str
    title: str
    ours: tuple[str, ...]
    tags: Mapping[str, Any]
    results: Mapping[str, Result]
    failures: Mapping[str, str]

    def values(self, name: str) -> list[float]:
        """Return what is compared: rates, or median times."""
        result = self.results[name]
        return result.rates if self.kind == "throughput" else result.p50_us

    def ratios(self, ours: str, theirs: str) -> Spread | None:
        """Return what ours is to theirs, pair by pair; None if one of them failed."""
        if ours == theirs or not {ours, theirs} <= self.results.keys():
            return None
        return ratios(self.values(ours), self.values(theirs))

    def share_of_limit(self, name: str) -> Spread | None:
        """Return which share of the limit a transport reaches, if the limit was measured."""
        return None if name == LIMIT or self.kind != "throughput" else self.ratios(name, LIMIT)

    def table(self) -> str:
        """Return the cell as a table."""
        rates = self.kind == "throughput"
        head = ["", "median", "least to greatest"]
        head += [] if rates else ["p99"]
        head += [f"{ours} / it" for ours in self.ours]
        head += ["of the limit"] if LIMIT in self.results else []
        rows = [head]
        for name in self.results:
            spread = Spread.of(self.values(name))
            text = _thousands if rates else _microseconds
            row = [name, text(spread.median), f"{text(spread.least)} to {text(spread.greatest)}"]
            row += [] if rates else [text(Spread.of(self.results[name].p99_us).median)]
            row += [_ratio(self.ratios(ours, name)) for ours in self.ours]
            row += [_share(self.share_of_limit(name))] if LIMIT in self.results else []
            rows.append(row)
        failed = [f"  {name} failed: {reason}" for name, reason in self.failures.items()]
        return "\n".join([self.title, *aligned(rows), *failed])

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON knows it."""
        return {
            "kind": self.kind,
            **self.tags,
            "transports": {name: self._row(name) for name in self.results},
            "failures": dict(self.failures),
        }

    def _row(self, name: str) -> dict[str, Any]:
        result = self.results[name]
        spreads = {ours: self.ratios(ours, name) for ours in self.ours}
        row: dict[str, Any] = {
            "jobs_per_round": result.jobs,
            "ratios": {ours: s.to_json() for ours, s in spreads.items() if s is not None},
        }
        if self.kind == "throughput":
            row["rates_per_s"] = result.rates
            row["rate_per_s"] = Spread.of(result.rates).to_json()
            share = self.share_of_limit(name)
            row["share_of_limit"] = None if share is None else share.to_json()
        else:
            for which, values in (("p50_us", result.p50_us), ("p99_us", result.p99_us)):
                row[f"{which}_of_rounds"] = values
                row[which] = Spread.of(values).to_json()
        return row


def describe(machine: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Return the machine and what is compared, as text."""
    cores, load = machine["cores"], machine["load_before"]
    lines = [
        f"{machine['processor']}, {cores} cores, {machine['memory_gib']} GiB, load {load}",
        f"{machine['kernel']}, {machine['python']}, msgpack {machine['msgpack']}",
    ]
    width = max((len(name) for name in versions), default=0)
    return "\n".join([*lines, *(f"  {name:{width}}  {what}" for name, what in versions.items())])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            text.ljust(width) if index == 0 else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _thousands(rate: float) -> str:
    return f"{rate / 1000:.0f}" if rate >= 100_000 else f"{rate / 1000:.1f}"


def _microseconds(time_us: float) -> str:
    return f"{time_us:.0f}" if time_us >= 100 else f"{time_us:.1f}"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.2f} ({spread.least:.2f} to {spread.greatest:.2f})"


def _share(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.0%}"
