from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aembus.supervisor import dead_letters, letter_file
from aembus.supervisor.dead_letters import DeadLetters


def letter(number: int, payload: bytes = b"") -> dict[str, Any]:
    """Return a letter as the supervisor writes it."""
    return {"identity": ["n", 1, 0, 2, number], "payload": payload}


def name(number: int) -> str:
    """Return the id of that letter."""
    return letter_file.letter_id(letter(number)["identity"])


def numbers(letters: DeadLetters) -> list[int]:
    """Return the sequence numbers that are read back."""
    return [kept["identity"][-1] for kept in letters.read()]


def test_letters_are_read_back_in_order(tmp_path: Path) -> None:
    """What was appended is read back, oldest first, also by another process's object."""
    letters = DeadLetters(tmp_path)
    assert numbers(letters) == []
    for number in range(5):
        assert letters.append(letter(number, b"x" * number))
    assert numbers(DeadLetters(tmp_path)) == [0, 1, 2, 3, 4]
    assert letters.path.stat().st_mode & 0o777 == 0o600
    found = letters.get(name(3))
    assert found is not None
    assert found["payload"] == b"xxx"
    assert letters.get(name(9)) is None


def test_one_job_is_kept_once(tmp_path: Path) -> None:
    """Also by a later supervisor, and also if its letter was removed meanwhile."""
    letters = DeadLetters(tmp_path)
    assert [letters.append(letter(number)) for number in (1, 2, 1)] == [True, True, False]
    assert letters.count == 2
    assert letters.remove([name(2)]) == [name(2)]
    assert not letters.append(letter(2))
    later = DeadLetters(tmp_path)
    assert not later.append(letter(1))
    assert numbers(later) == [1]


def test_who_was_seen_is_forgotten_after_very_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that always fails must not fill the supervisor's memory."""
    monkeypatch.setattr(dead_letters, "IDS_MAX", 10)
    letters = DeadLetters(tmp_path)
    for number in range(100):
        assert letters.append(letter(number))
        assert letters.remove([name(number)])
        assert not letters.append(letter(number))
    assert len(letters._ids) == 10


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_end_is_left_out_and_written_behind(tmp_path: Path, cut: int) -> None:
    """A letter that a crash cut short is ignored; those before and behind it are read."""
    letters = DeadLetters(tmp_path)
    letters.append(letter(1))
    letters.append(letter(2))
    data = letters.path.read_bytes()
    letters.path.write_bytes(data[:-cut])
    assert numbers(letters) == [1]
    later = DeadLetters(tmp_path)
    assert later.append(letter(2))
    assert later.append(letter(3))
    assert numbers(later) == [1, 2, 3]


def test_damage_costs_no_other_letter(tmp_path: Path) -> None:
    """Whichever byte is wrong, every letter that it is not in is read."""
    letters = DeadLetters(tmp_path)
    for number in range(3):
        letters.append(letter(number, letter_file.MAGIC * 3))
    data = letters.path.read_bytes()
    places = list(letter_file.contents(data).places.values())
    assert len(places) == 3
    for at in range(len(data)):
        letters.path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        hit = next(n for n, (begin, end) in enumerate(places) if begin <= at < end)
        assert numbers(letters) == [n for n in range(3) if n != hit]


def test_the_file_is_bounded(tmp_path: Path) -> None:
    """Beyond its bound the oldest half goes, and is counted, for whoever reads it later too."""
    letters = DeadLetters(tmp_path, file_bytes_max=4000)
    for number in range(100):
        letters.append(letter(number, b"x" * 100))
        assert letters.path.stat().st_size <= 4000
    kept = numbers(letters)
    assert kept == list(range(100 - len(kept), 100))
    assert letters.dropped == 100 - len(kept)
    assert letters.kept == len(kept) >= 10
    later = DeadLetters(tmp_path)
    later.load()
    assert (later.dropped, later.kept) == (letters.dropped, letters.kept)
    assert all(letters.get(name(number)) for number in kept)


def test_what_is_removed_gives_its_room_back(tmp_path: Path) -> None:
    """A file that letters come to and go from does not grow, and drops nothing."""
    letters = DeadLetters(tmp_path)
    letters.append(letter(-1))
    for number in range(500):
        letters.append(letter(number, b"x" * 1000))
        assert letters.remove([name(number), "nosuch"]) == [name(number)]
    assert letters.path.stat().st_size < 200_000
    assert numbers(letters) == [-1]
    assert letters.dropped == 0


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written whole is taken back, and may be tried again."""
    letters = DeadLetters(tmp_path)
    letters.append(letter(1))
    before = letters.path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:-1]))
    with pytest.raises(OSError, match="no space"):
        letters.append(letter(2))
    monkeypatch.undo()
    assert letters.path.read_bytes() == before
    assert letters.append(letter(2))
    assert numbers(letters) == [1, 2]

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "no fsync")

    monkeypatch.setattr(os, "fsync", refuse)
    letters._rewrite(0)
    assert numbers(letters) == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [letters.path.name]


WRITER = """
import sys
from pathlib import Path
from aembus.supervisor.dead_letters import DeadLetters
from aembus.supervisor.letter_file import letter_id
letters = DeadLetters(Path(sys.argv[1]), file_bytes_max=50_000)
number = int(sys.argv[2])
while True:
    letters.append({"identity": ["n", number], "payload": b"x" * (number % 3000)})
    print(number, flush=True)
    if number % 3 == 0:
        letters.remove([letter_id(["n", number])])
        print(-number, flush=True)
    number += 1
"""


def test_a_kill_at_any_time_loses_no_letter(tmp_path: Path) -> None:
    """A writer is killed again and again: what it said it kept is there, what it removed is not."""
    number = 1
    for round_ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        threading.Timer(0.01 * round_, child.send_signal, (signal.SIGKILL,)).start()
        said = [int(line) for line in [first, *child.stdout] if line.endswith("\n")]
        child.wait()
        child.stdout.close()
        started = time.monotonic()
        letters = DeadLetters(tmp_path)
        letters.load()
        assert time.monotonic() - started < 10
        there = [kept["identity"][1] for kept in letters.read()]
        assert there == sorted(set(there))
        kept = {n for n in said if n > 0} - {-n for n in said if n < 0}
        oldest = min(there)
        lost = {n for n in kept if n >= oldest} - set(there)
        assert lost <= {n for n in (max(said),) if n % 3 == 0}  # removed, and killed in saying so
        assert not {-n for n in said if n < 0} & set(there)
        assert letters.path.stat().st_size <= 60_000
        number = max([*said, *there]) + 1


def test_where_no_letter_can_be_kept_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory that cannot be made is told, with what to do, before a letter is lost for it."""
    (tmp_path / "file").touch()
    DeadLetters(tmp_path / "file" / "state").load()
    assert "give another directory" in caplog.text
    caplog.clear()
    DeadLetters(tmp_path / "new" / "state").load()
    assert not caplog.text
    assert not (tmp_path / "new").exists()
