"""Figures that were written with `--json`, as Markdown: `python -m bench.summary figures.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

OURS = ("aembus-c", "aembus-python")
RATES = """\
Throughput, with the lanes in C and in plain Python: thousands of handler calls a second; the ratio
to others, pair by pair; and the ratio to the limit, for `sixtytwo_to_two` that to its own
`one_to_one`."""


def summarize(document: dict[str, Any]) -> str:
    """Return the machine, and a table each for throughput and round trips."""
    machine = document["machine"]
    cells = document["cells"]
    rates = [cell for cell in cells if cell["kind"] == "throughput"]
    trips = [cell for cell in cells if cell["kind"] == "roundtrip"]
    where = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['kernel']}, "
        f"{machine['python']}; load average {machine['load_before']} before and "
        f"{machine['load_after']} after; {document['rounds']} rounds."
    )
    parts = [where]
    if rates:
        parts.append(RATES)
        parts.append(_rates(rates))
    if trips:
        parts.append("Round trips: median in microseconds (99th percentile).")
        parts.append(_trips(trips))
    parts += _left_out(document)
    return "\n\n".join(parts)


def _left_out(document: dict[str, Any]) -> list[str]:
    """Return a paragraph for what has no figures though it was asked for."""
    skipped = [f"{name}: {reason}" for name, reason in document["skipped"].items()]
    failed = [
        f"{name} in {cell.get('topology') or cell['kind']}, {cell['size']} bytes: {reason}"
        for cell in document["cells"]
        for name, reason in cell["failures"].items()
    ]
    texts = (("Not measured", skipped), ("Failed", failed))
    return [f"{what}: {'; '.join(those)}." for what, those in texts if those]


def _rates(cells: Sequence[dict[str, Any]]) -> str:
    ours = [name for name in OURS if any(name in cell["transports"] for cell in cells)]
    others = _names(cells, lambda name: "," not in name and name not in (*OURS, "limit"))
    rows = [["topology", "bytes", "aembus", *others, "limit"]]
    for cell in cells:
        found = cell["transports"]
        row = [f"`{cell['topology']}`", str(cell["size"])]
        rates = (found[o]["rate_per_s"] if o in found else None for o in ours)
        row.append(_both(f"{rate['median'] / 1000:.0f}" if rate else "" for rate in rates))
        for other in others:
            ratios = found.get(other, {}).get("ratios", {})
            row.append(_both(f"{ratios[o]['median']:.2f}" if o in ratios else "" for o in ours))
        shares = (
            found[o]["share_of_limit"] or _share_of_own(found, o) if o in found else None
            for o in ours
        )  # fmt: skip
        row.append(_both(f"{share['median']:.0%}" if share else "" for share in shares))
        rows.append(row)
    return _table(rows)


def _share_of_own(found: dict[str, Any], name: str) -> Any:
    return found.get(f"{name}, one_to_one", {}).get("ratios", {}).get(name)


def _trips(cells: Sequence[dict[str, Any]]) -> str:
    rows = [["", *(f"{cell['waiting']}, {cell['place']}" for cell in cells)]]
    for name in _names(cells, lambda name: True):
        row = [name]
        for cell in cells:
            found = cell["transports"].get(name)
            row.append(_time(found) if found else "")
        rows.append(row)
    return _table(rows)


def _time(found: dict[str, Any]) -> str:
    return f"{found['p50_us']['median']:.1f} ({found['p99_us']['median']:.0f})"


def _names(cells: Sequence[dict[str, Any]], wanted: Any) -> list[str]:
    names = dict.fromkeys(name for cell in cells for name in cell["transports"])
    return [name for name in names if wanted(name)]


def _both(texts: Iterable[str]) -> str:
    # Each lane keeps its place: what is missing of the one is not to be read as the other's.
    both = [*texts]
    return " / ".join(text or "\N{EN DASH}" for text in both) if any(both) else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    print(summarize(json.loads(Path(sys.argv[1]).read_text())))
