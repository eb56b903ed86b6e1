"""What one connection can rely on: addresses, half-close, room, and times.

All tests share one bus, since each asks of connections of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Iterator, Sequence

import pytest

import aembus
from aembus.services.framing import Answer, Message
from tests.support.running import until
from tests.support.tcp import Server, note_addresses, serving

PIECE = 64 * 1024
PIECES = 256
UNMADE = 1  # a limit with which no OddFramer can be made


class OddFramer:
    """A framer with a fault: it answers in text, or cannot even be made."""

    def __init__(self, message_bytes_max: int) -> None:
        if message_bytes_max == UNMADE:
            raise RuntimeError("no framer today")

    def feed(self, data: bytes) -> Sequence[Message | Answer]:
        """See aembus.services.framing.Framer."""
        return [Answer("text")] if data else ()  # type: ignore[arg-type]


def main(bus: aembus.Bus) -> None:
    """Entry point: listeners of several kinds, at one point each."""
    tcp = bus.service("tcp")
    addresses = {}

    def listen(name: str, **options: object) -> None:
        addresses[name] = tcp.listen("127.0.0.1:0", name, **{"framer": "line", **options})

    listen("peers", with_peer=True, on_open="peers.opened")
    listen("ends")
    listen("half", on_end="half.ended")
    listen("stream", on_room="stream.room")
    listen("idle", idle_s_max=0.3)
    listen("slow", message_s_max=0.3)
    listen("sip", message_s_max=0.3, framer="examples.telecom.sip_framer:SipFramer")
    listen("few", connections_per_address_max=2)
    listen("patient", idle_s_max=math.inf, message_s_max=1e300)
    odd = f"{__name__}:OddFramer"
    listen("odd", framer=odd)
    listen("unmade", framer=odd, message_bytes_max=UNMADE, connections_max=2)
    note_addresses(addresses)

    @bus.on("peers.opened")
    def opened(event: aembus.Event, connection: int, peer: str) -> None:
        tcp.send(connection, peer.encode() + b"\n")

    @bus.on("peers")
    def peers(event: aembus.Event, connection: int, line: bytes, peer: str) -> None:
        tcp.send(connection, line + b" of " + peer.encode() + b"\n")

    @bus.on("ends")
    @bus.on("idle")
    @bus.on("slow")
    @bus.on("sip")
    @bus.on("few")
    @bus.on("patient")
    @bus.on("odd")
    @bus.on("unmade")
    def echo(event: aembus.Event, connection: int, line: bytes) -> None:
        if line == b"shut":
            tcp.close(connection, how="write")
        elif line == b"text":
            try:
                tcp.send(connection, "text")
            except TypeError:
                tcp.send(connection, bytearray(b"refused\n"))
        elif line == b"flood and close":
            for _ in range(2):
                tcp.send(connection, b"x" * PIECE + b"\n")
            tcp.close(connection)
        else:
            tcp.send(connection, line + b"\n")

    said: dict[int, list[bytes]] = {}

    @bus.on("half")
    def half(event: aembus.Event, connection: int, line: bytes) -> None:
        said.setdefault(connection, []).append(line)

    @bus.on("half.ended")
    def ended(event: aembus.Event, connection: int) -> None:
        tcp.send(connection, b"%d lines\n" % len(said.pop(connection, [])))
        tcp.close(connection)

    left: dict[int, int] = {}

    @bus.on("stream")
    def stream(event: aembus.Event, connection: int, line: bytes) -> None:
        left[connection] = int(line)
        tcp.want_room(connection)

    @bus.on("stream.room")
    def room(event: aembus.Event, connection: int) -> None:
        if left[connection]:
            left[connection] -= 1
            tcp.send(connection, b"x" * PIECE)
            tcp.want_room(connection)
        else:
            tcp.close(connection)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One bus for all tests of this file."""
    directory = tmp_path_factory.mktemp("tcp")
    with serving(
        f"t{os.getpid()}-connections", directory, "tests.services.test_tcp_connections:main"
    ) as running:
        yield running


def test_a_handler_is_told_the_peers_address(server: Server) -> None:
    """With with_peer=True at each message, and always where an opening is told."""
    with server.connect("peers") as peer:
        assert peer.line() == peer.address + b"\n"
        assert peer.ask(b"hello") == b"hello of " + peer.address


def test_a_peer_that_has_said_everything_gets_its_answers(server: Server) -> None:
    """Who shuts its writing side right after asking is answered, and then closed."""
    with server.connect("ends") as peer:
        peer.send(b"one\ntwo\n")
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.file.read() == b"one\ntwo\n"


def test_what_was_queued_for_a_peer_that_has_ended_is_sent(server: Server) -> None:
    """The end of the peer's side drops nothing of what the kernel had not taken yet."""
    with server.connect("ends") as peer:
        peer.send(b"flood and close\n")
        peer.socket.shutdown(socket.SHUT_WR)
        assert len(peer.file.read()) == 2 * (PIECE + 1)


def test_a_point_is_told_of_the_peers_end(server: Server) -> None:
    """With on_end= the connection stays open for what is to be sent, until it is closed."""
    with server.connect("half") as peer:
        peer.send(b"one\ntwo\nthree\n")
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.file.read() == b"3 lines\n"


def test_we_shut_our_side_and_go_on_receiving(server: Server) -> None:
    """close(how="write") tells the peer that nothing more comes; the peer's end then closes."""
    before = server.count("unsent")
    with server.connect("ends") as peer:
        assert peer.ask(b"shut") == b""
        peer.send(b"still heard\n")
        server.until_count("unsent", before + 1)  # heard, and its answer cannot be sent
        peer.socket.shutdown(socket.SHUT_WR)
    server.until_count("connections", 0)


def test_much_is_sent_in_pieces(server: Server) -> None:
    """Who asks for room before each piece can send more than the bound to a slow reader."""
    with server.connect("stream") as peer:
        peer.send(b"%d\n" % PIECES)
        until("the peer has not read enough", lambda: server.count("unsent_bytes") > PIECE)
        assert len(peer.file.read()) == PIECES * PIECE
    assert server.count("slow_readers") == 0


def test_an_idle_connection_is_closed(server: Server) -> None:
    """Nothing for longer than idle_s_max ends a connection; one that is used lives on."""
    before = server.count("idle")
    with server.connect("idle") as silent, server.connect("ends") as unbounded:
        assert silent.ask(b"x") == b"x"
        assert silent.is_closed()
        assert unbounded.ask(b"x") == b"x"
    assert server.count("idle") == before + 1


def test_a_message_that_is_never_whole_ends_its_connection(server: Server) -> None:
    """A slow-loris, byte by byte, is cut off; who has finished its messages may be silent."""
    before = server.count("slow_messages")
    with server.connect("slow") as good, server.connect("slow") as loris:
        assert good.ask(b"x") == b"x"
        loris.send_until_closed(b".", 0.05)
        assert good.ask(b"y") == b"y"
    assert server.count("slow_messages") == before + 1


def test_a_lone_crlf_between_sip_messages_is_no_slow_message(server: Server) -> None:
    """Who sends one behind a message may be silent; who begins a message may not."""
    with server.connect("sip") as good, server.connect("slow") as loris:
        good.send(b"\r\n\r\n")
        assert good.line() == b"\r\n"
        good.send(b"\r\n")
        assert loris.ask(b"x") == b"x"
        loris.send_until_closed(b".", 0.05)
        good.send(b"\r\n")
        assert good.line() == b"\r\n"


def test_connections_of_one_address_are_bounded(server: Server) -> None:
    """One more than connections_per_address_max is closed at once, and makes room by leaving."""
    before = server.count("refused_per_address")
    with server.connect("few") as a, server.connect("few") as b:
        assert (a.ask(b"a"), b.ask(b"b")) == (b"a", b"b")
        with server.connect("few") as c:
            assert c.is_closed()
        assert server.count("refused_per_address") == before + 1
        b.close()

        def is_served() -> bool:
            with server.connect("few") as d, contextlib.suppress(ConnectionError):
                return d.ask(b"d") == b"d"
            return False

        until("there is room", is_served)


def test_a_value_that_does_not_fit_is_refused(server: Server) -> None:
    """Limits of nothing, an unknown way to close: each is an error that names the value."""
    with aembus.connect(server.bus) as client:
        tcp = client.service("tcp")
        with pytest.raises(aembus.CallFailed, match="idle_s_max=0"):
            tcp.listen("127.0.0.1:0", "x", idle_s_max=0)
        with pytest.raises(aembus.CallFailed, match="unsent_bytes_max=0"):
            tcp.listen("127.0.0.1:0", "x", unsent_bytes_max=0)
        with pytest.raises(ValueError, match="how='read'"):
            tcp.close(1, how="read")


def test_what_is_no_bytes_is_refused_where_it_is_sent(server: Server) -> None:
    """TypeError in the handler that sends it; whatever holds bytes is sent."""
    with server.connect("ends") as peer:
        assert peer.ask(b"text") == b"refused"
        assert peer.ask(b"more") == b"more"


def test_a_framer_that_answers_no_bytes_harms_nobody_else(server: Server) -> None:
    """It ends its own connection, and the others are answered."""
    with server.connect("ends") as good, server.connect("odd") as odd:
        odd.send(b"hello\n")
        assert odd.is_closed()
        assert good.ask(b"still") == b"still"


def test_a_framer_that_cannot_be_made_costs_its_connection(server: Server) -> None:
    """The connection is closed and no longer counted, so the listener never runs full of them."""
    errors, refused = server.count("framing_errors"), server.count("refused")
    for _ in range(3):
        with server.connect("unmade") as peer:
            assert peer.is_closed()
    assert server.count("framing_errors") == errors + 3
    assert server.count("refused") == refused


def test_a_listener_may_be_patient_for_ever(server: Server) -> None:
    """math.inf, and what no clock reaches, are times; the listener can be given up in such."""
    with server.connect("patient") as peer:
        assert peer.ask(b"hello") == b"hello"
        with aembus.connect(server.bus) as client:
            address = server.path("patient")
            assert client.service("tcp").stop_listening(address, math.inf) == 1
        assert peer.ask(b"still") == b"still"
