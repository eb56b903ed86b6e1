"""The answering side of the TCP benches: plain asyncio, plain uvloop, and aembus with workers.

All cut messages by a length in front of them and send each back, after a handler that computes for
`BENCH_COMPUTE_US` microseconds.  CPU time is read of all processes that serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

import psutil

import aembus
from aembus.control import ControlClient
from aembus.hosting import event_loop
from bench.cpu_clock import cpu_ns

COMPUTE: Final = "BENCH_COMPUTE_US"
ADDRESS: Final = "BENCH_ADDRESS"
PLAIN: Final = ("asyncio", "uvloop")


def compute() -> None:
    """Be a handler that has something to do."""
    left_us = int(os.environ.get(COMPUTE, "0"))
    if left_us:
        end = time.perf_counter_ns() + left_us * 1000
        while time.perf_counter_ns() < end:
            pass


# --- plain ----------------------------------------------------------------------------------------


class Echo(asyncio.Protocol):
    """A plain server's connection: the framing and the answer in one process."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer every whole message."""
        pending = self._pending
        pending += data
        while len(pending) >= 4:
            size = 4 + int.from_bytes(pending[:4], "big")
            if len(pending) < size:
                return
            message = bytes(pending[4:size])
            del pending[:size]
            compute()
            self._transport.write(len(message).to_bytes(4, "big") + message)


async def serve_plain() -> None:
    """Serve until standard input ends."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# --- aembus ---------------------------------------------------------------------------------------


def worker(bus: aembus.Bus) -> None:
    """Entry point: the same, as a worker."""
    tcp = bus.service("tcp")
    tcp.listen(
        os.environ[ADDRESS],
        "echo",
        framer="length",
        message_bytes_max=8192,
        connections_max=20_000,
    )

    @bus.on("echo", group="echo")
    def echo(event: aembus.Event, connection: int, message: bytes) -> None:
        compute()
        tcp.send(connection, len(message).to_bytes(4, "big") + message)


# --- both -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that runs.

    bus: its name, "" of a plain one.
    """

    address: str
    processes: Sequence[psutil.Process]
    bus: str = ""

    def cpu_s(self) -> float:
        """Return the processor time that its processes have used."""
        return sum(cpu_ns(process.pid) for process in self.processes) / 1e9

    def rss_bytes(self) -> int:
        """Return the resident memory of its first process: the one that has the sockets."""
        return int(self.processes[0].memory_info().rss)

    def counts(self) -> dict[str, int]:
        """Return what the TCP service has counted."""
        control = ControlClient(self.bus)
        try:
            services = control.request("statistics")["services"]
        finally:
            control.close()
        found: dict[str, int] = next(s for s in services if s["name"] == "tcp")
        return found


@contextlib.contextmanager
def plain(loop: str, compute_us: int = 0) -> Iterator[Serving]:
    """Run a plain server on "asyncio" or "uvloop"."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.echo_servers", loop],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, COMPUTE: str(compute_us)},
    )
    assert process.stdout is not None
    try:
        yield Serving(process.stdout.readline().strip(), [psutil.Process(process.pid)])
    finally:
        process.communicate()


@contextlib.contextmanager
def on_bus(
    workers: int = 1,
    compute_us: int = 0,
    entry_point: str = "bench.echo_servers:worker",
    loop: str = "",
) -> Iterator[Serving]:
    """Run a bus with workers that echo; the supervisor's event loop is "asyncio" or "uvloop"."""
    name = f"bench-echo-{os.getpid()}-{time.monotonic_ns() % 1_000_000}"
    address = f"127.0.0.1:{_free_port()}"
    os.environ[ADDRESS], os.environ[COMPUTE] = address, str(compute_us)
    os.environ[event_loop.VARIABLE] = loop
    spec = aembus.WorkerSpec("echo", entry_point, count=workers)
    with tempfile.TemporaryDirectory() as directory:
        with aembus.Supervisor(
            name, services=["tcp"], workers=[spec], state_directory=directory
        ) as supervisor:
            process = psutil.Process(supervisor.pid)
            yield Serving(address, [process, *process.children()], name)


def _free_port() -> int:
    """Return a port that nobody has, and neither the two behind it, which bench.attacks takes."""
    while True:
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(3)]
            probes[0].bind(("127.0.0.1", 0))
            port: int = probes[0].getsockname()[1]
            try:
                probes[1].bind(("127.0.0.1", port + 1))
                probes[2].bind(("127.0.0.1", port + 2))
            except (OSError, OverflowError):
                continue
            return port


def main() -> int:
    """Be a plain server."""
    if sys.argv[1] == "uvloop":
        with asyncio.Runner(
            loop_factory=importlib.import_module("uvloop").new_event_loop
        ) as runner:
            runner.run(serve_plain())
    else:
        asyncio.run(serve_plain())
    return 0


if __name__ == "__main__":
    sys.exit(main())
