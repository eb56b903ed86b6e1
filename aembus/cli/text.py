"""How things are written for a person: tables, durations, sizes, numbers of things."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

GAP: Final = "  "
# Of members' counts, what a narrow terminal need not show where all are 0.
MAY_MISS: Final = ("restarts", "held", "retrying", "dead", "expired", "dropped", "failed")
_KEPT: Final = "\0"
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an aligned table; a column of nothing but numbers is aligned to the right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
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


def narrow_table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    columns: int | None,
    may_miss: Collection[str],
) -> str:
    """Return a table; if a line is longer than `columns`, without what nobody has any of.

    Args:
        may_miss: titles of the columns of numbers that are left out then.
    """
    whole = table(header, rows)
    if fits(whole, columns):
        return whole
    shown = [
        n for n, title in enumerate(header) if title not in may_miss or any(r[n] for r in rows)
    ]
    return table([header[n] for n in shown], [[row[n] for n in shown] for row in rows])


def terminal_size() -> os.terminal_size | None:
    """Return columns and lines of the terminal that standard output is; None if it is none."""
    return shutil.get_terminal_size() if sys.stdout.isatty() else None


def terminal_columns() -> int | None:
    """Return how many columns the terminal has that standard output is; None if it is none."""
    size = terminal_size()
    return size.columns if size else None


def printable(text: str) -> str:
    """Return a text as one line that does nothing to a terminal: control characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, whatever it is: what JSON has not got is written as Python does."""
    return json.dumps(_json_value(value), indent=indent, default=repr)


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {_json_key(key): _json_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _json_key(key: Any) -> Any:
    return key if key is None or isinstance(key, str | int) else repr(key)


def fits(text: str, columns: int | None) -> bool:
    """Say whether no line is longer than so many columns (None: any length will do)."""
    return columns is None or all(len(line) <= columns for line in text.splitlines())


def cut(text: str, size: os.terminal_size | None) -> str:
    """Return what a terminal of this size shows of `text`, each line on one line."""
    if size is None:
        return text
    return "\n".join(line[: size.columns] for line in text.splitlines()[: size.lines - 1])


def wrap(text: str, columns: int | None) -> str:
    """Return a line, or several if it is longer than so many columns, broken behind commas."""
    if fits(text, columns):
        return text
    kept = text.replace(" ", _KEPT).replace(f",{_KEPT}", ", ")  # "owed 0" stays together
    lines = textwrap.fill(kept, columns or 0, subsequent_indent=GAP, break_long_words=False)
    return lines.replace(_KEPT, " ")


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
