"""What comes before a connection's first message: the proxy's header, and TLS.

Bytes come to the connection's stream, which hands them to whoever is in turn:

    stream ──► the proxy's header ──► TLS, which stays ──► the connection's framer
"""

from __future__ import annotations

import ssl
from typing import Protocol

from .proxy_protocol import ProxyHeaderError, parse_proxy_header
from .tcp_address import address_text
from .tcp_handshakes import Handshakes
from .tcp_options import Options
from .tcp_stream import Stream
from .tcp_tls import TlsFiles, TlsFilter


class Entrance(Protocol):
    """What an opening needs to know of where a connection comes from."""

    @property
    def options(self) -> Options:
        """What was asked for."""

    @property
    def tls(self) -> TlsFiles | None:
        """None: plain text."""

    @property
    def server_side(self) -> bool:
        """Whether peers connect to us."""

    @property
    def server_hostname(self) -> str | None:
        """Whose certificate is wanted, if we connect."""

    def enter(self, address: str) -> str | None:
        """Count a connection in, or return what to count it as if it is one too many."""


class Opened(Protocol):
    """The connection."""

    stream: Stream
    peer: str
    counted_as: str | None

    def open(self) -> None:
        """Nothing stands in front of the messages any more."""

    def on_bytes(self, data: bytes) -> None:
        """Bytes of messages came."""

    def hold(self, data: bytes) -> None:
        """Bytes of messages came, and reading was paused meanwhile."""

    def refuse(self, counted_as: str, reason: str) -> None:
        """It is not to be opened, or its TLS has failed."""


class Opening:
    """Opens one connection.

    Args:
        connection: which.
        entrance: where it comes from.
        handshakes: where those of peers that connect are counted, and wait for their turn.
        now_ns: on the host's clock.
    """

    def __init__(
        self, connection: Opened, entrance: Entrance, handshakes: Handshakes, now_ns: int
    ) -> None:
        self._connection = connection
        self._entrance = entrance
        self._handshakes = handshakes
        self._now_ns = now_ns
        self._header = b""

    def begin(self) -> None:
        """Wait for what is to come first; open at once if nothing is."""
        if self._entrance.options.proxy_protocol:
            self._connection.stream.deliver = self._on_header_bytes
        else:
            self._begin_tls()

    def _on_header_bytes(self, data: bytes) -> None:
        connection = self._connection
        self._header += data
        try:
            header = parse_proxy_header(self._header)
        except ProxyHeaderError as error:
            connection.refuse("proxy_errors", str(error))
            return
        if header is None:
            return
        address = connection.stream.peer_host()
        if header.host is not None:
            connection.peer, address = address_text((header.host, header.port)), header.host
        if (refused_as := self._entrance.enter(address)) is not None:
            connection.refuse(refused_as, "there are too many")
            return
        connection.counted_as = address
        connection.stream.deliver = connection.on_bytes
        self._begin_tls()
        rest = self._header[header.size_bytes :]
        if rest and connection.stream.is_reading:
            connection.stream.deliver(rest)
        else:
            connection.hold(rest)

    def _begin_tls(self) -> None:
        entrance, stream = self._entrance, self._connection.stream
        if entrance.tls is None:
            self._connection.open()
            return
        context = entrance.tls.context(self._now_ns)
        stream.tls = TlsFilter(context, entrance.server_side, entrance.server_hostname)
        if entrance.server_side:
            stream.deliver = self._on_handshake_bytes
            self._handshakes.begin(self._connection)
        else:
            stream.deliver = self._on_encrypted_bytes
            self._on_encrypted_bytes(b"")

    def _on_handshake_bytes(self, data: bytes) -> None:
        self._connection.stream.pause()
        self._handshakes.take_turn(lambda: self._shake_hands(data))

    def _shake_hands(self, data: bytes) -> None:
        stream = self._connection.stream
        if stream.is_closing:
            return
        stream.resume()
        self._on_encrypted_bytes(data)
        if stream.tls is not None and stream.tls.is_ready:
            stream.deliver = self._on_encrypted_bytes
            self._handshakes.end(self._connection)

    def _on_encrypted_bytes(self, data: bytes) -> None:
        connection, stream = self._connection, self._connection.stream
        tls = stream.tls
        assert tls is not None
        was_ready = tls.is_ready
        try:
            plain = tls.receive(data)
        except ssl.SSLError as error:
            self._say(tls.take())
            connection.refuse("tls_errors" if was_ready else "handshake_errors", str(error))
            return
        self._say(tls.take())
        if tls.is_ready and not was_ready:
            connection.open()
        if plain and not stream.is_reading:
            connection.hold(plain)
        elif plain and not stream.is_closing:
            connection.on_bytes(plain)
        if tls.ended and not (stream.ended or stream.closed):
            stream.end_of_bytes()

    def _say(self, data: bytes) -> None:
        if data:
            self._connection.stream.write_as_is(data)
            self._connection.stream.flush()
