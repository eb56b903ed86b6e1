"""The example's record writer is upgraded while four threads have records written."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

import aembus
from tests.support.running import until

VERSION_1 = "examples.cdr.version1:CdrWriter"
VERSION_2 = "examples.cdr.version2:CdrWriter"
WRITERS = 4


class Switch(threading.Thread):
    """Has records written, one call after the other, until it is told to stop."""

    def __init__(self, bus: aembus.Bus, name: str, stopping: threading.Event) -> None:
        super().__init__(name=name)
        self._bus = bus
        self._stopping = stopping
        self.written: list[str] = []
        self.error: aembus.AembusError | None = None

    def run(self) -> None:
        try:
            cdr = self._bus.service("cdr")
            while not self._stopping.is_set():
                first = len(self.written)
                records = [
                    [f"{self.name}-{number}", "alice", "bob", 1.0, 3.5]
                    for number in range(first, first + 3)
                ]
                cdr.write(records, timeout=20.0)
                self.written += [str(record[0]) for record in records]
        except aembus.AembusError as error:
            self.error = error


def until_more_is_written(box: aembus.ServiceBox) -> None:
    """Wait until the newest version has written some records more than now."""
    wanted = box.list()[-1].figures["written"] + 30
    until("more records", lambda: box.list()[-1].figures["written"] >= wanted)


def test_no_record_is_lost_or_doubled_over_upgrades(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hand-over, back, and forth again: each version writes some, all are written once."""
    database = tmp_path / "cdr.sqlite3"
    monkeypatch.setenv("CDR_DATABASE", str(database))
    stopping = threading.Event()
    with (
        aembus.Supervisor(bus_name, services=[VERSION_1], state_directory=tmp_path),
        aembus.connect(bus_name) as bus,
        aembus.ServiceBox(bus_name) as box,
    ):
        told = []
        bus.register("cdr.written", lambda event, count: told.append(count))
        switches = [Switch(bus, f"switch{n}", stopping) for n in range(WRITERS)]
        for switch in switches:
            switch.start()
        try:
            versions = []
            for forth in (True, False, True):
                until_more_is_written(box)
                if forth:
                    change = box.upgrade("cdr", VERSION_2, hand_over=True)
                else:
                    change = box.rollback("cdr", hand_over=True)
                versions.append(change.new.version)
            until_more_is_written(box)
        finally:
            stopping.set()
            for switch in switches:
                switch.join()
        assert [switch.error for switch in switches] == [None] * WRITERS
        until("the old versions are gone", lambda: len(box.list()) == 1)
        written = [name for switch in switches for name in switch.written]
        assert versions == ["2", "1+2", "2+2"]
        assert box.list()[0].figures["repeated"] == 0
        while bus.poll(0.0):
            pass
        assert told
    with closing(sqlite3.connect(database)) as found:
        rows = found.execute("SELECT id, written_by, seconds FROM cdr").fetchall()
    assert sorted(row[0] for row in rows) == sorted(written)
    by_version = Counter(row[1] for row in rows)
    assert set(by_version) == {"1", "2"}
    assert {row[2] for row in rows if row[1] == "2"} == {2.5}


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2])
def test_a_record_that_is_none_fails_for_its_caller_alone(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """The writer refuses what has not the five fields, at once, and goes on."""
    monkeypatch.setenv("CDR_DATABASE", str(tmp_path / "cdr.sqlite3"))
    with (
        aembus.Supervisor(bus_name, services=[version], state_directory=tmp_path),
        aembus.connect(bus_name) as bus,
    ):
        cdr = bus.service("cdr")
        for record in (5, [], ["1", "alice", "bob", 1.0], ["1", "alice", "bob", 1.0, 2.0, 3.0]):
            with pytest.raises(aembus.CallFailed, match="unpack"):
                cdr.write([record])
        cdr.write([["1", "alice", "bob", 1.0, 2.0]])
    with closing(sqlite3.connect(tmp_path / "cdr.sqlite3")) as found:
        assert found.execute("SELECT id FROM cdr").fetchall() == [("1",)]


def test_a_batch_that_cannot_be_written_fails_for_its_callers(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes for written what is not, and the next batch has its chance."""
    monkeypatch.setenv("CDR_DATABASE", str(tmp_path / "cdr.sqlite3"))
    with (
        aembus.Supervisor(bus_name, services=[VERSION_1], state_directory=tmp_path),
        aembus.connect(bus_name) as bus,
    ):
        cdr = bus.service("cdr")
        with pytest.raises(aembus.CallFailed, match=r"InterfaceError|ProgrammingError|binding"):
            cdr.write([["1", ["no", "text"], "bob", 1.0, 2.0]])
        cdr.write([["1", "alice", "bob", 1.0, 2.0]])
        cdr.write([["1", "alice", "bob", 1.0, 2.0]])
    with closing(sqlite3.connect(tmp_path / "cdr.sqlite3")) as found:
        assert found.execute("SELECT id FROM cdr").fetchall() == [("1",)]
