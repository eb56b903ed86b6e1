from __future__ import annotations

import os

import pytest

from aembus.cli.text import (
    count,
    cut,
    duration,
    fits,
    named_counts,
    printable,
    size,
    table,
    to_json,
    wrap,
)


def test_a_table_is_aligned_numbers_to_the_right() -> None:
    """Words begin, and numbers end, below each other; no line ends in blanks."""
    text = table(("name", "jobs", "state"), [("a", 5, "up"), ("long-name", 12345, "")])
    assert text.splitlines() == [
        "name        jobs  state",
        "a              5  up",
        "long-name  12345",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    """Nothing to show is no error."""
    assert table(("slot", "kind"), []) == "slot  kind"


def test_no_text_breaks_a_table_or_does_anything_to_a_terminal() -> None:
    """Control characters are escaped; letters of any language stay."""
    assert printable("né \u4e2d") == "né \u4e2d"
    lines = table(("why",), [("one\ntwo\x1b[31m\udcff",)]).splitlines()
    assert lines == ["why", "one\\ntwo\\x1b[31m\\udcff"]


def test_whatever_there_is_becomes_json() -> None:
    """What JSON has is as it is, inside of lists and maps too; the rest as Python writes it."""
    value = {"a": [1, None, (True, "x")], 2: {(1, 2): b"b"}, "f": [float("nan"), 0.5]}
    assert to_json(value) == (
        '{"a": [1, null, [true, "x"]], "2": {"(1, 2)": "b\'b\'"}, "f": ["nan", 0.5]}'
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86400 * 3 + 3600 * 5 + 59, "3 d 5 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """The two largest units that matter are shown."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number_of_bytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (64 << 20, "64.0 MiB"),
     (5 << 50, "5120.0 TiB")],
)  # fmt: skip
def test_sizes(number_of_bytes: int, text: str) -> None:
    """The unit is the one that reads best."""
    assert size(number_of_bytes) == text


def test_numbers_of_things() -> None:
    """One thing is singular; counts read as a list."""
    assert (count(0, "job"), count(1, "job"), count(2, "job")) == ("0 jobs", "1 job", "2 jobs")
    assert named_counts({"calls": 5, "messages": 7}) == "calls 5, messages 7"


def test_a_terminal_shows_what_it_has_room_for() -> None:
    """Lines are cut at its width, and as many are shown as leave one for the prompt."""
    terminal = os.terminal_size((5, 3))
    assert cut("1234567\nab\nc", terminal) == "12345\nab"
    assert cut("1234567\nab\nc", None) == "1234567\nab\nc"


def test_a_long_line_becomes_several() -> None:
    """At spaces, all but the first indented; without a width it stays as it is."""
    line = "timer 1: running 0, expired 4, owed 0"
    assert wrap(line, None) == line
    wrapped = wrap(line, 20)
    assert fits(wrapped, 20)
    assert not fits(line, 20)
    assert wrapped.splitlines()[1].startswith("  ")
    assert wrapped.split() == line.split()
