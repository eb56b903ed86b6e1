"""A bus for the tests of the TCP service: one worker, listeners at free ports, and their peers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aembus
from tests.support.running import statistics, until

TIMEOUT_S = 10.0
ADDRESSES = "TEST_TCP_ADDRESSES"


def note_addresses(addresses: dict[str, str]) -> None:
    """In a worker: say where it listens, for `Server.connect`."""
    path = Path(os.environ[ADDRESSES])
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(addresses))
    fresh.rename(path)


class Peer:
    """A blocking TCP client that reads lines."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(TIMEOUT_S)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> bytes:
        """Its own end's address as the service writes it."""
        host, port = self.socket.getsockname()[:2]
        return f"{host}:{port}".encode()

    def close(self) -> None:
        """Close.  Idempotent."""
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def line(self) -> bytes:
        """Return the next line, b"" at the end of the stream."""
        return self.file.readline()

    def ask(self, line: bytes) -> bytes:
        """Send a line and return the answer, without its end."""
        self.send(line + b"\n")
        return self.line().removesuffix(b"\n")

    def send_until_closed(self, data: bytes, pause_s: float) -> None:
        """Send the same bytes again and again, until the service closes the connection."""
        self.socket.settimeout(pause_s)
        with contextlib.suppress(ConnectionError):
            while True:
                self.socket.sendall(data)
                with contextlib.suppress(TimeoutError):
                    if self.socket.recv(1) == b"":
                        return

    def is_closed(self) -> bool:
        """Wait for the end of the stream, however it comes."""
        with contextlib.suppress(ConnectionError):
            return self.file.read() == b""
        return True


class Server:
    """A running bus with the TCP service."""

    def __init__(self, bus: str, path: Path, supervisor: aembus.Supervisor) -> None:
        self.bus = bus
        self.supervisor = supervisor
        self._path = path

    def address(self, name: str) -> tuple[str, int]:
        """Return where the listener of a name is."""
        host, _, port = self.path(name).rpartition(":")
        return host, int(port)

    def path(self, name: str) -> str:
        """Return the address as the service writes it."""
        return str(json.loads(self._path.read_text())[name])

    def connect(self, name: str) -> Peer:
        """Return a new connection to a listener."""
        return Peer(socket.create_connection(self.address(name), TIMEOUT_S))

    def counts(self) -> dict[str, Any]:
        """Return what the TCP service counts."""
        services = {s["name"]: s for s in statistics(self.bus)["services"]}
        found: dict[str, Any] = services["tcp"]
        return found

    def count(self, name: str) -> int:
        """Return one of the counts."""
        return int(self.counts().get(name, 0))

    def until_count(self, name: str, value: int) -> None:
        """Wait until a count has a value."""
        until(f"{name}={value}", lambda: self.count(name) == value)


@contextlib.contextmanager
def serving(
    bus: str,
    directory: Path,
    entry_point: str,
    workers: int = 1,
    services: Sequence[str] = ("tcp",),
) -> Iterator[Server]:
    """Run a bus whose workers begin at `entry_point` and call `note_addresses`."""
    path = directory / "addresses"
    before = os.environ.get(ADDRESSES)
    os.environ[ADDRESSES] = str(path)
    try:
        spec = aembus.WorkerSpec("w", entry_point, count=workers)
        with aembus.Supervisor(
            bus, services=services, workers=[spec], state_directory=directory, spare=False
        ) as supervisor:
            yield Server(bus, path, supervisor)
    finally:
        if before is None:
            del os.environ[ADDRESSES]
        else:
            os.environ[ADDRESSES] = before
