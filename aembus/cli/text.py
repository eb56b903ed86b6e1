"""How things are written for a person: tables, durations, sizes, numbers of things.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

GAP: Final = "  "
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an aligned table; a column of nothing but numbers is aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [
        bool(rows) and all(isinstance(cell, int) for cell in column)
        for column in zip(*rows, strict=True)
    ] or [False] * len(header)
    lines = []
    for line in [list(header), *cells]:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        lines.append(GAP.join(padded).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return how long something took, in the two largest units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest_s} s"


def size(number_of_bytes: int) -> str:
    """Return a number of bytes in the unit that reads best."""
    number = float(number_of_bytes)
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            break
        number /= 1024
    return f"{number_of_bytes} bytes" if unit == "bytes" else f"{number:.1f} {unit}"


def count(number: int, thing: str) -> str:
    """Return "1 worker", "2 workers"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def named_counts(counts: Mapping[str, int]) -> str:
    """Return "calls 5000, messages 15000"."""
    return ", ".join(f"{name} {number}" for name, number in counts.items())
