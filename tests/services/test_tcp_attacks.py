"""Peers that mean harm: each is bounded and counted, and the others are served meanwhile.

The numbers are small here; `bench/attacks.py` does the same with many more.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import aembus
from tests.support.running import until
from tests.support.tcp import Peer, Server, note_addresses, serving

ATTACKERS = 150
CONNECTIONS_MAX = 200
MEMORY_BYTES_MAX = 48 * 1024 * 1024  # that the supervisor may grow by, under any attack
MESSAGE_BYTES_MAX = 2000


def main(bus: aembus.Bus) -> None:
    """Entry point: one listener with limits, one more for TLS, one for who behaves."""
    tcp = bus.service("tcp")
    certificate = str(Path(__file__).parent / "certificates" / "first.pem")
    limits = {
        "framer": "line",
        "message_bytes_max": MESSAGE_BYTES_MAX,
        "message_s_max": 1.0,
        "handshake_s_max": 1.0,
        "connections_max": CONNECTIONS_MAX,
    }
    note_addresses(
        {
            "attacked": tcp.listen("127.0.0.1:0", "attacked", **limits),
            "tls": tcp.listen("127.0.0.1:0", "tls", tls={"certificate": certificate}, **limits),
            "good": tcp.listen("127.0.0.1:0", "good", framer="line"),
        }
    )

    @bus.on("attacked")
    @bus.on("tls")
    @bus.on("good")
    def echo(event: aembus.Event, connection: int, line: bytes) -> None:
        if line != b"quiet":
            tcp.send(connection, line[:100] + b"\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One bus for all attacks."""
    directory = tmp_path_factory.mktemp("tcp")
    name = f"t{os.getpid()}-attacks"
    with serving(name, directory, "tests.services.test_tcp_attacks:main") as running:
        yield running


@pytest.fixture
def good(server: Server) -> Iterator[Peer]:
    """A peer that has to be served all the time, while memory stays bounded."""
    process = psutil.Process(server.supervisor.pid)
    before = process.memory_info().rss
    with server.connect("good") as peer:
        assert peer.ask(b"before") == b"before"
        yield peer
        for number in range(20):
            assert peer.ask(b"%d" % number) == b"%d" % number
    server.until_count("connections", 0)
    assert process.memory_info().rss - before < MEMORY_BYTES_MAX


@contextlib.contextmanager
def attackers(server: Server, name: str, count: int) -> Iterator[list[Peer]]:
    """Open many connections; what is refused meanwhile counts as open."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.connect(name)) for _ in range(count)]


def counted(server: Server, name: str, before: int, more: int, good: Peer) -> None:
    """Wait until so many more are counted, while somebody is served."""
    until(
        f"{more} more {name}",
        lambda: good.ask(b"meanwhile") == b"meanwhile" and server.count(name) == before + more,
    )


def test_slow_loris(server: Server, good: Peer) -> None:
    """Messages that are begun and never ended."""
    before = server.count("slow_messages")
    with attackers(server, "attacked", ATTACKERS) as peers:
        for peer in peers:
            peer.send(b"begun")
        counted(server, "slow_messages", before, ATTACKERS, good)
        assert all(peer.is_closed() for peer in peers)


def test_garbage(server: Server, good: Peer) -> None:
    """Random bytes are lines of some kind, or too long; nobody else is concerned."""
    bytes_of = random.Random(5)
    garbage = bytes_of.randbytes(20_000).replace(b"\n", b".")
    before = server.count("framing_errors")
    with attackers(server, "attacked", ATTACKERS) as peers:
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                peer.send(garbage)
        counted(server, "framing_errors", before, ATTACKERS, good)
        assert all(peer.is_closed() for peer in peers)


def test_oversized(server: Server, good: Peer) -> None:
    """A message without an end costs its sender the connection, at the bound and not later."""
    before = server.count("framing_errors")
    with attackers(server, "attacked", 5) as peers:
        for peer in peers:
            peer.send_until_closed(bytes(1000).replace(b"\0", b"x"), 0.001)
        counted(server, "framing_errors", before, 5, good)


def test_floods_of_tiny_messages(server: Server, good: Peer) -> None:
    """Thousands of empty lines a piece, without an end: a few in each turn, then a pause."""
    flood = b"\n" * 65536
    with attackers(server, "attacked", 10) as peers:
        for peer in peers:
            peer.socket.setblocking(False)
        for _ in range(2):
            for peer in peers:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    peer.socket.send(flood)
            assert good.ask(b"meanwhile") == b"meanwhile"


def test_half_open(server: Server, good: Peer) -> None:
    """Peers that shut their side and never read or close are let go of."""
    with attackers(server, "attacked", ATTACKERS) as peers:
        for peer in peers:
            peer.send(b"x\n")
            peer.socket.shutdown(socket.SHUT_WR)
        until(
            "only the good one is left",
            lambda: good.ask(b"meanwhile") and server.count("connections") == 1,
        )


def test_resets_right_behind_the_last_byte(server: Server, good: Peer) -> None:
    """Bytes and a reset may be found together; nobody answers, and no connection stays open."""
    at_once = struct.pack("ii", 1, 0)
    with attackers(server, "attacked", ATTACKERS) as peers:
        for peer in peers:
            peer.send(b"quiet\n")
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            peer.close()
        until(
            "only the good one is left",
            lambda: good.ask(b"meanwhile") and server.count("connections") == 1,
        )


def test_handshakes_that_never_end(server: Server, good: Peer) -> None:
    """Half a ClientHello, and silence."""
    before = server.count("handshake_timeouts")
    with attackers(server, "tls", ATTACKERS) as peers:
        for peer in peers:
            peer.send(b"\x16\x03\x01\x02\x00\x01")
        counted(server, "handshake_timeouts", before, ATTACKERS, good)
        assert all(peer.is_closed() for peer in peers)


def test_more_connections_than_there_may_be(server: Server, good: Peer) -> None:
    """What is beyond the limit is closed at once."""
    before = server.count("refused")
    with attackers(server, "attacked", CONNECTIONS_MAX + ATTACKERS) as peers:
        counted(server, "refused", before, ATTACKERS, good)
        assert peers[0].ask(b"inside") == b"inside"
        assert peers[-1].is_closed()
