from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aembus.cli import buses
from aembus.control import ControlClient
from aembus.errors import PermissionRefused
from aembus.shm import names
from aembus.supervisor.ownership import BusLock, lock_holder

NOBODY, SOMEBODY = 65534, 65533


@contextmanager
def in_shared_memory(path: Path) -> Iterator[Path]:
    """Remove what is put there, at the end of the block."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def test_a_link_in_place_of_the_lock_is_not_followed(bus_name: str, tmp_path: Path) -> None:
    """Whoever put it there would have the file overwritten that it leads to."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    with in_shared_memory(names.lock_path(bus_name)) as link:
        link.symlink_to(victim)
        for take in (BusLock, lock_holder):
            with pytest.raises(PermissionRefused, match="is a link"):
                take(bus_name)
        assert link.is_symlink()
    assert victim.read_text() == "kept"


@pytest.mark.parametrize("rest", ["00ff.inbox0", "lock", "control"])
def test_a_name_that_no_bus_can_have_is_nobody_s(bus_name: str, rest: str) -> None:
    """A file that another user called like a pattern makes `clean` remove nothing of a bus."""
    pattern = f"{bus_name[:-1]}[{bus_name[-1]}]"
    own = names.DIRECTORY / f"aembus.{bus_name}.00ff.inbox0"
    stray = names.DIRECTORY / f"aembus.{pattern}.{rest}"
    with in_shared_memory(own), in_shared_memory(stray):
        own.touch()
        stray.touch()
        found = [bus.name for bus in buses.find_all()]
        assert bus_name in found
        assert pattern not in found
        assert own not in names.leftovers(pattern)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be several users")
def test_another_user_s_lock_is_no_bus_of_ours(
    bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its owner lets everybody write to it."""
    with in_shared_memory(names.lock_path(bus_name)) as lock:
        lock.touch()
        lock.chmod(0o666)
        os.chown(lock, NOBODY, -1)
        monkeypatch.setattr(os, "getuid", lambda: SOMEBODY)
        for take in (BusLock, lock_holder):
            with pytest.raises(PermissionRefused, match="another user"):
                take(bus_name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be several users")
def test_another_user_s_process_is_no_supervisor_of_ours(
    bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can listen at a bus's address: what is sent there would be his to read."""
    with in_shared_memory(names.control_path(bus_name)) as path, socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
        monkeypatch.setattr(os, "getuid", lambda: SOMEBODY)
        os.seteuid(NOBODY)  # whoever calls listen() is the peer
        try:
            s.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(PermissionRefused, match=f"uid={NOBODY}"):
            ControlClient(bus_name)
