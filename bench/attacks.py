"""``python -m bench.attacks``: what others get served while somebody attacks the TCP service.

For each attack: rounds with it and without it take turns, and each pair is compared: the rate at
which peers that behave get their answers.  They have a listener of their own; the service, its
process and the worker are the same.  An attack is a process that goes on until it is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aembus
from bench import machine
from bench.arguments import interruptible, names_of, positive, positive_s
from bench.echo_load import Load
from bench.echo_servers import ADDRESS, Serving, on_bus
from bench.figures import Spread, ratios
from bench.report import aligned, describe

CONNECTIONS_MAX: Final = 500
BEYOND: Final = 5000
UNDER_WAY: Final = 50  # connections of an attack, after which others are looked at
GOOD: Final = 10
SIZE: Final = 64
SHARE_MIN: Final = 0.9
CERTIFICATE: Final = Path(__file__).parent.parent / "tests/services/certificates/first.pem"
EXAMPLE: Final = """
examples:
  python -m bench.attacks                       # every attack, 5 pairs of rounds
  python -m bench.attacks --attacks slow_loris,garbage --json attacks.json
"""


def worker(bus: aembus.Bus) -> None:
    """Entry point: one listener for who behaves, at the next port one to attack, and one by TLS."""
    tcp = bus.service("tcp")
    host, _, port = os.environ[ADDRESS].rpartition(":")
    limits = {
        "framer": "length",
        "message_bytes_max": 4096,
        "message_s_max": 2.0,
        "handshake_s_max": 2.0,
        "connections_max": CONNECTIONS_MAX,
    }
    tcp.listen(os.environ[ADDRESS], "good", framer="length")
    tcp.listen(f"{host}:{int(port) + 1}", "attacked", **limits)
    tls = {"certificate": str(CERTIFICATE)}
    tcp.listen(f"{host}:{int(port) + 2}", "attacked", tls=tls, **limits)

    @bus.on("good")
    @bus.on("attacked")
    def echo(event: aembus.Event, connection: int, message: bytes) -> None:
        tcp.send(connection, len(message).to_bytes(4, "big") + message)


# --- attacks: each begins some connections, and goes on with them --------------------------------


class Attack:
    """Keeps connections at work.

    Args:
        address: whom to attack.
        count: how many connections at once.
        begin: what a new connection says first.
        go_on: what it says at each turn; b"" for nothing.
        pause_s: between two turns of all.
    """

    def __init__(
        self,
        address: tuple[str, int],
        count: int,
        begin: bytes,
        go_on: Callable[[], bytes],
        pause_s: float,
    ) -> None:
        self._address = address
        self._count = count
        self._begin = begin
        self._go_on = go_on
        self._pause_s = pause_s
        self._sockets: list[socket.socket] = []

    def run(self) -> None:
        """Go on until the process is ended."""
        while True:
            while len(self._sockets) < self._count:
                self._add()
                under_way(len(self._sockets))
            for connected in list(self._sockets):
                if not self._keep(connected):
                    self._sockets.remove(connected)
                    connected.close()
            time.sleep(self._pause_s)

    def _add(self) -> None:
        with contextlib.suppress(OSError):
            connected = socket.create_connection(self._address, 5.0)
            self._sockets.append(connected)
            connected.setblocking(False)
            connected.send(self._begin)

    def _keep(self, connected: socket.socket) -> bool:
        try:
            if data := self._go_on():
                connected.send(data)
            return connected.recv(65536) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


def half_open(address: tuple[str, int]) -> None:
    """Peers that shut their side right away, do not read, and stay."""
    kept: list[socket.socket] = []
    while True:
        with contextlib.suppress(OSError):
            connected = socket.create_connection(address, 5.0)
            connected.send(b"\0\0\0\1x")
            connected.shutdown(socket.SHUT_WR)
            kept.append(connected)
        under_way(len(kept))
        if len(kept) > CONNECTIONS_MAX:
            kept.pop(0).close()
        time.sleep(0.002)


def under_way(connections: int) -> None:
    """Say, once there are so many, that it has begun: what starting costs is not the attack."""
    if connections == UNDER_WAY:
        print("under way", flush=True)


def nothing() -> bytes:
    """Say nothing."""
    return b""


ATTACKS: Final[dict[str, Callable[[str, int], None]]] = {
    "slow_loris": lambda host, port: Attack(
        (host, port + 1), 400, b"\0\0\1\0", lambda: b"x", 0.1
    ).run(),
    "half_open": lambda host, port: half_open((host, port + 1)),
    "garbage": lambda host, port: Attack(
        (host, port + 1), 50, b"", lambda: random.randbytes(1000), 0.02
    ).run(),
    "oversized": lambda host, port: Attack(
        (host, port + 1), 50, b"\0\1\0\0", lambda: b"x" * 4000, 0.02
    ).run(),
    "tls_handshake": lambda host, port: Attack(
        (host, port + 2), 400, b"\x16\x03\x01\x02\x00\x01", nothing, 0.1
    ).run(),
    "beyond_the_limit": lambda host, port: Attack(
        (host, port + 1), BEYOND, b"", nothing, 0.1
    ).run(),
}


@contextlib.contextmanager
def attacking(name: str, address: str) -> Iterator[None]:
    """Attack for the length of the block."""
    command = [sys.executable, "-m", "bench.attacks", "--attack", name, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"the attack ended, name={name}")
            yield
            if process.poll() is not None:  # else what it was too weak for looks like a good share
                raise RuntimeError(f"the attack ended before its time, name={name}")
        finally:
            process.kill()


def measure(name: str, serving: Serving, load: Load, pairs: int, seconds: float) -> dict[str, Any]:
    """Return the rates with and without an attack, and what the service has counted of it."""
    before = serving.counts()
    bare, attacked, rss_mib = [], [], []
    for _ in range(pairs):
        bare.append(load.ask(seconds).rate_per_s)
        with attacking(name, serving.address):
            attacked.append(load.ask(seconds).rate_per_s)
            rss_mib.append(serving.rss_bytes() / 2**20)
        load.ask(0.2)
    after = serving.counts()
    numbers = {k: v for k, v in after.items() if isinstance(v, int) and v != before.get(k, 0)}
    counted = {k: v - before.get(k, 0) for k, v in numbers.items() if k not in GAUGES}
    return {"without": bare, "with": attacked, "rss_mib": rss_mib, "counted": counted}


GAUGES: Final = (
    "connections",
    "handshakes",
    "unsent_bytes",
    "calls",
    "listeners",
    "answering",
    "number",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; or be an attack."""
    options = _parse(arguments)
    if options.attack:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        name, address = options.attack
        host, _, port = address.rpartition(":")
        ATTACKS[name](host, int(port))
    return interruptible(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    described = machine.describe()
    print(describe(described, {}), flush=True)
    rows = [["attack", "others, undisturbed", "share kept", "least to greatest", "memory, most",
             "counted"]]  # fmt: skip
    cells = {}
    with (
        on_bus(entry_point="bench.attacks:worker") as serving,
        Load(serving.address, GOOD, SIZE) as load,
    ):
        load.ask(0.5)
        for name in options.attacks:
            cells[name] = found = measure(name, serving, load, options.pairs, options.seconds)
            share = ratios(found["with"], found["without"])
            counted = ", ".join(f"{what} {number:,}" for what, number in found["counted"].items())
            rows.append([name, f"{Spread.of(found['without']).median:,.0f}/s",
                         f"{share.median:.0%}", f"{share.least:.0%} to {share.greatest:.0%}",
                         f"{max(found['rss_mib']):.0f} MiB", counted])  # fmt: skip
    title = f"{GOOD} peers that behave; wanted: a share of at least {SHARE_MIN:.0%}."
    print("\n".join([title, *aligned(rows)]))
    if options.json is not None:
        document = {"machine": described, "cells": cells}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.attacks",
        description="Measure what others get served while the TCP service is attacked.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pairs", type=positive, default=5, metavar="N", help="default: %(default)s")
    add("--seconds", type=positive_s, default=1.0, metavar="S", help="of a round: %(default)g")
    add("--attacks", type=names_of(ATTACKS), default=list(ATTACKS), metavar="NAME,...",
        help=f"of: {', '.join(ATTACKS)} (default: all)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    add("--attack", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
