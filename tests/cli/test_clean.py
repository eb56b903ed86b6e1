from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aembus.cli import buses
from aembus.cli.buses import DEAD, RUNNING, FoundBus
from aembus.cli.main import main
from aembus.shm import names
from aembus.supervisor.ownership import BusLock


@pytest.fixture
def left(bus_name: str) -> Iterator[list[Path]]:
    """What a killed supervisor leaves, and one of another bus whose name begins the same."""
    of_the_bus = ["aembus.{}.lock", "aembus.{}.control", "aembus.{}.00ff.inbox0",
                  "aembus.{}.00ff.pipe0", "sem.aembus.{}.00ff.bell1"]  # fmt: skip
    paths = [names.DIRECTORY / pattern.format(bus_name) for pattern in of_the_bus]
    neighbour = names.DIRECTORY / f"aembus.{bus_name}0.00ff.inbox0"
    for path in (*paths, neighbour):
        path.touch()
    yield sorted(paths)
    assert neighbour.exists()
    for path in (*paths, neighbour):
        path.unlink(missing_ok=True)


def test_a_dry_run_removes_nothing(
    bus_name: str, left: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It names what would go."""
    assert main(["clean", "--bus", bus_name, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[:-1]) == [str(path) for path in left]
    assert lines[-1] == "would be removed: 5 names"
    assert all(path.exists() for path in left)


def test_every_name_of_a_dead_bus_is_removed(
    bus_name: str, left: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """And named; the second time there is nothing to do."""
    assert main(["clean", "--bus", bus_name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[:-1]) == [str(path) for path in left]
    assert lines[-1] == "removed: 5 names"
    assert not any(path.exists() for path in left)
    assert main(["clean", "--bus", bus_name]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_names_without_a_lock_are_found_too(
    bus_name: str, left: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody may have removed the lock by hand."""
    names.lock_path(bus_name).unlink()
    names.control_path(bus_name).unlink()
    assert FoundBus(bus_name, DEAD, 0) in buses.find_all()
    assert main(["clean", "--bus", bus_name]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "removed: 3 names"
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_running_bus_is_never_touched(
    bus_name: str, left: list[Path], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Naming it is an error that tells whose it is."""
    lock = BusLock(bus_name)
    try:
        assert main(["clean", "--bus", bus_name, *options]) == 1
        holder = buses.find(bus_name).pid
        assert f"stop it first, bus={bus_name!r}, pid={holder}" in capsys.readouterr().err
        assert all(path.exists() for path in left)
    finally:
        lock.release()


def test_without_a_name_every_dead_bus_is_cleaned(
    bus_name: str,
    left: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those that run are left alone, also one that was started after the look."""
    running, meanwhile = f"{bus_name}-r", f"{bus_name}-m"
    monkeypatch.setattr(
        buses, "find_all",
        lambda: [FoundBus(running, RUNNING, 1), FoundBus(meanwhile, DEAD, 0),
                 FoundBus(bus_name, DEAD, 0)],
    )  # fmt: skip
    locks = [BusLock(running), BusLock(meanwhile)]
    try:
        assert main(["clean"]) == 0
        out = capsys.readouterr().out
        assert "left alone: a supervisor runs this bus already" in out
        assert out.endswith("removed: 5 names\n")
        assert names.lock_path(running).exists()
        assert names.lock_path(meanwhile).exists()
        assert not any(path.exists() for path in left)
    finally:
        for lock in locks:
            lock.release()
