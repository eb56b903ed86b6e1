"""Where the records go: one table of an SQLite database.  Blocks: for threads only.

Each version has its own copy of this module, since it imports it with a dot.  The two versions may
write at the same time: each batch is one transaction, and SQLite lets one after the other in.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

PATH = os.environ.get("CDR_DATABASE", "cdr.sqlite3")
BUSY_S_MAX = 10.0
COLUMNS = ("id", "caller", "callee", "begun_at", "ended_at", "written_by")


def prepare(more_columns: Sequence[str] = ()) -> None:
    """Make the table, or add the columns that it has not got yet."""
    with closing(_open()) as database, database:
        names = ", ".join(f"{name} {'PRIMARY KEY' if name == 'id' else ''}" for name in COLUMNS)
        database.execute(f"CREATE TABLE IF NOT EXISTS cdr ({names})")
        there = {row[1] for row in database.execute("PRAGMA table_info(cdr)")}
        for name in more_columns:
            if name not in there:
                database.execute(f"ALTER TABLE cdr ADD COLUMN {name}")


def write(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Write rows in one transaction; return how many were new: the others were there already."""
    with closing(_open()) as database, database:
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        before = database.total_changes
        database.executemany(f"INSERT OR IGNORE INTO cdr ({names}) VALUES ({marks})", rows)
        return database.total_changes - before


def _open() -> sqlite3.Connection:
    database = sqlite3.connect(PATH, timeout=BUSY_S_MAX)
    database.execute("PRAGMA journal_mode = WAL")
    return database
