"""The PROXY protocol's header: what it says, however its bytes arrive, and what is none."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aembus.services.proxy_protocol import (
    LENGTH_MAX,
    SIGNATURE,
    ProxyHeader,
    ProxyHeaderError,
    parse_proxy_header,
)

PORTS = st.integers(0, 65535)


def header(command: int, kind: int, body: bytes) -> bytes:
    """Return a header with any fields."""
    return SIGNATURE + struct.pack(">BBH", command, kind, len(body)) + body


def inet(source: str, port: int) -> bytes:
    """Return an address block of TCP over IPv4."""
    return socket.inet_aton(source) + socket.inet_aton("192.0.2.1") + struct.pack(">HH", port, 5060)


@given(st.ip_addresses(), PORTS, st.binary(max_size=30), st.binary(max_size=30))
def test_a_peers_address_is_read(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, more: bytes, rest: bytes
) -> None:
    """Of both families, whatever follows the addresses or the header; in pieces it is awaited."""
    other = type(source)(1)
    body = source.packed + other.packed + struct.pack(">HH", port, 1) + more
    data = header(0x21, 0x11 if source.version == 4 else 0x21, body)
    assert parse_proxy_header(data + rest) == ProxyHeader(str(source), port, len(data))
    for size in range(len(data)):
        assert parse_proxy_header(data[:size]) is None


@given(st.sampled_from([0x00, 0x11, 0x21, 0x31]), st.binary(max_size=250))
def test_a_proxy_that_speaks_for_itself_names_nobody(kind: int, body: bytes) -> None:
    """A health check's header is skipped as a whole, also where its addresses are none."""
    data = header(0x20, kind, body)
    assert parse_proxy_header(data + b"rest") == ProxyHeader(None, 0, len(data))


def test_an_unspecified_or_unix_peer_has_no_address() -> None:
    """Both are told to be used as they come."""
    assert parse_proxy_header(header(0x21, 0x00, b"")) == ProxyHeader(None, 0, 16)
    assert parse_proxy_header(header(0x21, 0x31, bytes(216))) == ProxyHeader(None, 0, 232)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "signature"),
        (b"INVITE", "signature"),
        (header(0x11, 0x11, inet("192.0.2.9", 9)), "version and command"),
        (header(0x22, 0x11, inet("192.0.2.9", 9)), "version and command"),
        (header(0x21, 0x41, bytes(300)), "family"),
        (header(0x21, 0x13, inet("192.0.2.9", 9)), "family"),
        (header(0x21, 0x11, bytes(11)), "do not fit"),
        (header(0x21, 0x21, bytes(35)), "do not fit"),
        (header(0x21, 0x31, bytes(215)), "do not fit"),
        (header(0x21, 0x11, bytes(LENGTH_MAX + 1)), "too long"),
    ],
)
def test_what_is_no_header_is_refused_at_once(data: bytes, what: str) -> None:
    """At the first byte that cannot belong to one, not after all that was announced."""
    with pytest.raises(ProxyHeaderError, match=what):
        parse_proxy_header(data)
    if what == "signature":
        with pytest.raises(ProxyHeaderError):
            parse_proxy_header(data[:1] if data[:1] != b"\r" else data[:2])
    else:
        with pytest.raises(ProxyHeaderError):
            parse_proxy_header(data[:16])


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, signed: bool) -> None:
    """Nothing but ProxyHeaderError is raised, and a header is never longer than what came."""
    if signed:
        data = SIGNATURE + data
    try:
        found = parse_proxy_header(data)
    except ProxyHeaderError:
        return
    assert found is None or found.size_bytes <= len(data)
