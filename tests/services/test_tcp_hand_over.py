"""The TCP service is upgraded under traffic: no byte is lost or doubled, no connection closes."""

from __future__ import annotations

import os
import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import aembus
from tests.support.running import adds_up, statistics, until
from tests.support.tcp import Peer, Server, note_addresses, serving

CERTIFICATES = Path(__file__).parent / "certificates"
CONNECTIONS = 200
UPGRADES = 4
AHEAD = 4  # messages of one connection that are on their way at once
BODY = bytes(range(256)) * 5  # longer than one segment of some, so that cuts fall into messages
HEAD = struct.Struct(">II")  # length, number
PIECE = 100_000
ASKED_MAX = 100


def main(bus: aembus.Bus) -> None:
    """Entry point: an echo of prefixed messages, lines in plain and by TLS, a slow stream."""
    tcp = bus.service("tcp")
    tls = {"certificate": str(CERTIFICATES / "first.pem")}
    addresses = {
        "echo": tcp.listen("127.0.0.1:0", "echo", framer="length", connections_max=CONNECTIONS + 1),
        "lines": tcp.listen(
            "127.0.0.1:0",
            "lines",
            framer="line",
            idle_s_max=60,
            on_end="ended",
            unsent_bytes_max=3 * ASKED_MAX * PIECE,  # never reached: nobody is to be closed for it
        ),
        "tls": tcp.listen("127.0.0.1:0", "tls", framer="line", tls=tls),
    }
    note_addresses(addresses)

    @bus.on("echo")
    def echo(event: aembus.Event, connection: int, message: bytes) -> None:
        tcp.send(connection, len(message).to_bytes(4, "big") + message)

    @bus.on("lines")
    @bus.on("tls")
    def line(event: aembus.Event, connection: int, text: bytes) -> None:
        if text == b"much":
            for _ in range(2):
                tcp.send(connection, bytes(PIECE))
        tcp.send(connection, text + b"\n")

    @bus.on("ended")
    def ended(event: aembus.Event, connection: int) -> None:
        tcp.send(connection, b"bye\n")
        tcp.close(connection)


@pytest.fixture
def server(bus_name: str, tmp_path: Path) -> Iterator[Server]:
    """A bus of each test's own: what is upgraded is shared by all connections."""
    with serving(bus_name, tmp_path, "tests.services.test_tcp_hand_over:main") as running:
        yield running


class Talker:
    """One connection that sends numbered messages and checks the echoes, without blocking."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, 10.0)
        self.socket.setblocking(False)
        self.sent = self.heard = 0
        self.is_over = False
        self._outgoing, self._incoming = bytearray(), bytearray()

    def say(self, last: bool) -> None:
        """Send what may be on its way; a `last` time: no new messages."""
        while not last and self.sent - self.heard < AHEAD:
            self._outgoing += HEAD.pack(4 + len(BODY), self.sent) + BODY
            self.sent += 1
        if self._outgoing:
            # In odd pieces, so that upgrades find messages half received.
            sent = self.socket.send(self._outgoing[:1000])
            del self._outgoing[:sent]
        self.is_over = last and not self._outgoing and self.heard == self.sent

    def hear(self) -> None:
        """Check what has come."""
        data = self.socket.recv(65536)
        assert data, f"closed after {self.heard} of {self.sent} messages"
        self._incoming += data
        size = HEAD.size + len(BODY)
        while len(self._incoming) >= size:
            length, number = HEAD.unpack_from(self._incoming)
            assert (length, number) == (4 + len(BODY), self.heard)
            assert self._incoming[HEAD.size : size] == BODY
            del self._incoming[:size]
            self.heard += 1


def talk(talkers: list[Talker], stop: threading.Event, failures: list[BaseException]) -> None:
    """Let all talk at once, until they are told to stop and everything is answered."""
    with selectors.DefaultSelector() as selector:
        for talker in talkers:
            selector.register(talker.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, talker)
        try:
            while not all(talker.is_over for talker in talkers):
                for key, events in selector.select(10.0):
                    if events & selectors.EVENT_READ:
                        key.data.hear()
                    if events & selectors.EVENT_WRITE:
                        key.data.say(stop.is_set())
        except BaseException as error:
            failures.append(error)


def all_heard(wanted: dict[Talker, int]) -> bool:
    """Say whether each has heard as many messages as are wanted of it."""
    return all(talker.heard >= count for talker, count in wanted.items())


def upgrade(server: Server, spec: str | None = None) -> aembus.ServiceChange:
    """Have a new version take the place of the TCP service, with its state."""
    with aembus.ServiceBox(server.bus) as box:
        change = box.upgrade("tcp", spec, hand_over=True)
    assert change.handed_over
    return change


def test_traffic_goes_on_while_the_service_is_upgraded(server: Server) -> None:
    """Hundreds of connections, messages both ways without a pause, several upgrades."""
    talkers = [Talker(server.address("echo")) for _ in range(CONNECTIONS)]
    stop = threading.Event()
    failures: list[BaseException] = []
    thread = threading.Thread(target=talk, args=(talkers, stop, failures))
    thread.start()
    for number in range(1, UPGRADES + 1):
        change = upgrade(server)
        assert change.at_switch["connections"] == CONNECTIONS
        wanted = {talker: talker.heard + AHEAD + 1 for talker in talkers}
        until(f"all hear more after upgrade {number}", lambda: failures or all_heard(wanted))  # noqa: B023
    stop.set()
    thread.join()
    for talker in talkers:
        talker.socket.close()
    assert failures == []
    assert server.count("connections") <= CONNECTIONS
    assert server.count("accepted") == CONNECTIONS
    until("all is delivered", lambda: adds_up(statistics(server.bus)["totals"]))
    assert statistics(server.bus)["totals"]["dead_lettered"] == 0


def test_what_was_on_its_way_crosses(server: Server) -> None:
    """Half a message, unsent bytes, a half-closed connection, an idle one: all go on."""
    with (
        server.connect("lines") as half,
        server.connect("lines") as slow,
        server.connect("lines") as idle,
    ):
        asked = 0
        while not server.count("unsent_bytes"):  # the kernel has room for some
            asked += 1
            assert asked < ASKED_MAX
            slow.send(b"much\n")
        half.send(b"hel")
        assert idle.ask(b"x") == b"x"
        until("the half is there", lambda: server.count("connections") == 3)
        for _ in range(2):
            upgrade(server)
        half.send(b"lo\n")
        assert half.line() == b"hello\n"
        half.socket.shutdown(socket.SHUT_WR)
        assert half.file.read() == b"bye\n"
        for _ in range(asked):
            assert slow.file.read(2 * PIECE + 5) == bytes(2 * PIECE) + b"much\n"
        assert slow.ask(b"y") == b"y"
        assert idle.ask(b"x") == b"x"
        idle.close()
    server.until_count("connections", 0)
    with server.connect("lines") as new:
        assert new.ask(b"z") == b"z"


def versions(server: Server) -> list[dict[str, int]]:
    """Return the statistics of each loaded version of the service."""
    return [s for s in statistics(server.bus)["services"] if s["name"] == "tcp"]


def test_tls_connections_stay_with_their_version(server: Server) -> None:
    """They are served on by the old one, which goes when they end; new ones get the new one."""
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "ca.pem"))

    def connect() -> Peer:
        connected = socket.create_connection(server.address("tls"), 10.0)
        return Peer(context.wrap_socket(connected, server_hostname="localhost"))

    with connect() as oldest:
        assert oldest.ask(b"one") == b"one"
        upgrade(server)
        with connect() as old:
            assert (oldest.ask(b"two"), old.ask(b"two")) == (b"two", b"two")
            upgrade(server)
            with connect() as new:
                assert [p.ask(b"three") for p in (oldest, old, new)] == [b"three"] * 3
                assert [v["connections"] for v in versions(server)] == [1, 1, 1]
        assert oldest.ask(b"four") == b"four"
    until("the old ones are gone", lambda: len(versions(server)) == 1)


BROKEN = """
from aembus.services.tcp import TcpService as Real

class TcpService(Real):
    def on_registry_changed(self):
        raise RuntimeError("a bug of the new version")
"""


def test_the_old_version_goes_on_if_the_new_one_fails(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version that raises while it takes over changes nothing for anybody."""
    (tmp_path / "broken_tcp.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    entry_point = "tests.services.test_tcp_hand_over:main"
    with serving(bus_name, tmp_path, entry_point) as server, server.connect("lines") as peer:
        peer.send(b"hel")
        with pytest.raises(aembus.ServiceLoadError, match="a bug of the new version"):
            upgrade(server, "broken_tcp:TcpService")
        peer.send(b"lo\n")
        assert peer.line() == b"hello\n"
        upgrade(server)
        assert peer.ask(b"x") == b"x"
        descriptors = len(os.listdir(f"/proc/{server.supervisor.pid}/fd"))
        with pytest.raises(aembus.ServiceLoadError):
            upgrade(server, "broken_tcp:TcpService")
        until(
            "no copy is left",
            lambda: len(os.listdir(f"/proc/{server.supervisor.pid}/fd")) <= descriptors,
        )
        with server.connect("lines") as other:
            assert other.ask(b"y") == b"y"
