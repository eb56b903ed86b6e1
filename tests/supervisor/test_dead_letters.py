from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aembus.supervisor.dead_letters import DeadLetters


def letter(number: int, payload: bytes = b"") -> dict[str, Any]:
    """Return a letter as the supervisor writes it."""
    return {"identity": ["n", 1, 0, 2, number], "payload": payload}


def numbers(letters: DeadLetters) -> list[int]:
    """Return the sequence numbers that are read back."""
    return [kept["identity"][-1] for kept in letters.read()]


def test_letters_are_read_back_in_order(tmp_path: Path) -> None:
    """What was appended is read back, oldest first, also by another process's object."""
    letters = DeadLetters(tmp_path)
    assert numbers(letters) == []
    for number in range(5):
        letters.append(letter(number, b"x" * number))
    assert numbers(DeadLetters(tmp_path)) == [0, 1, 2, 3, 4]
    assert letters.path.stat().st_mode & 0o777 == 0o600


def test_one_identity_is_read_once(tmp_path: Path) -> None:
    """A letter that was written twice because its writer died in between counts once."""
    letters = DeadLetters(tmp_path)
    for number in (1, 2, 1):
        letters.append(letter(number))
    assert numbers(letters) == [1, 2]


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_torn_end_is_left_out(tmp_path: Path, cut: int) -> None:
    """A letter that a crash cut short is ignored; those before it are read."""
    letters = DeadLetters(tmp_path)
    letters.append(letter(1))
    letters.append(letter(2))
    data = letters.path.read_bytes()
    letters.path.write_bytes(data[:-cut])
    assert numbers(letters) == [1]


def test_the_file_is_bounded(tmp_path: Path) -> None:
    """Beyond its bound the oldest half goes, and is counted."""
    letters = DeadLetters(tmp_path, file_bytes_max=4000)
    for number in range(100):
        letters.append(letter(number, b"x" * 100))
    assert letters.path.stat().st_size <= 4000
    kept = numbers(letters)
    assert kept == list(range(100 - len(kept), 100))
    assert letters.dropped == 100 - len(kept)
