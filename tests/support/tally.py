"""A small service in versions: source text that a test writes into a file, loads and upgrades."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import aembus
from aembus.services import CallClient
from tests.support.running import until

SOURCE = """
import asyncio
from aembus.services import HandOver, Service, call, one_way_call

class Tally(Service):
    name = "tally"
    version = {version!r}
    points = ("tally.changed",)
    client = "tests.support.tally:TallyClient"
    broken_work = 0

    def __init__(self, host):
        super().__init__(host)
        self.total = 0
        self.running = 0
        self.gate = asyncio.Event()
        self.keeps = False

    @call
    def add(self, caller, number):
        self.total += number
        return [{version!r}, self.total]

    @one_way_call
    def count(self, nobody, data):
        if data == b"wrong":
            raise ValueError("it is wrong")
        self.total += 1

    @call
    async def wait(self, caller):
        await self.gate.wait()
        return {version!r}

    @call
    def open(self, caller):
        self.gate.set()

    @call
    def keep(self, caller, keeps):
        self.keeps = keeps

    @property
    def in_use(self):
        return self.keeps

    async def run(self):
        self.running = 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running = 0

    def hand_over(self):
        return HandOver({{"total": self.total, "kind": ("a", "tuple")}})

    async def take_over(self, handed):
        assert handed.data["kind"] == ["a", "tuple"]
        self.total = handed.data["total"]

    def resume(self, handed):
        assert handed.data["kind"] == ("a", "tuple")

    def statistics(self):
        return {{"total": self.total, "is_running": self.running}}

    {more}
"""


def source(version: str, more: str = "") -> str:
    """Return the source of one version; `more` is the rest of its class."""
    return SOURCE.format(version=version, more=more)


class TallyClient(CallClient):
    """Its calls, some of them without an answer."""

    def count(self, data: bytes) -> None:
        """Add 1; raises InboxFull if there is no room at once."""
        self._bus.tell_service(self._service, "count", (data,), timeout=0.0)


@dataclass
class Tallies:
    """A running bus whose service's code is in `file`."""

    bus_name: str
    file: Path
    box: aembus.ServiceBox

    def write(self, version: str, more: str = "") -> None:
        """Let the file be another version."""
        self.file.write_text(source(version, more))

    def versions(self) -> list[tuple[str, str]]:
        """Return the loaded versions and their states."""
        return [(one.version, one.state) for one in self.box.list()]

    def await_versions(self, *expected: tuple[str, str]) -> None:
        """Wait until these are loaded and no others."""
        until(f"{expected} are loaded", lambda: self.versions() == list(expected))


@contextlib.contextmanager
def tallies(bus_name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tallies]:
    """Run a bus with version 1 of the service."""
    monkeypatch.syspath_prepend(str(directory))
    file = directory / "tally.py"
    file.write_text(source("1"))
    with (
        aembus.Supervisor(bus_name, services=["tally:Tally"], state_directory=directory),
        aembus.ServiceBox(bus_name) as box,
    ):
        yield Tallies(bus_name, file, box)
