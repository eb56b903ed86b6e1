"""Connections that the service opens itself: where they come from, and how they are made."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from aembus.errors import ServiceError

from .tcp_address import UNIX, host_and_port, set_tcp_options
from .tcp_listener import Parts


class Outgoing:
    """The Origin of one outgoing connection.

    Args:
        parts: found by what was asked for.
        address: the peer's.
    """

    server_side = False
    source: int | None = None

    def __init__(self, parts: Parts, address: str) -> None:
        self.options = parts.options
        self.make_framer = parts.make_framer
        self.failure = parts.failure
        self.tls = parts.tls
        self.server_hostname: str | None = None
        if parts.options.tls is not None:
            named = parts.options.tls.get("server_hostname")
            self.server_hostname = named or host_and_port(address)[0]

    def enter(self, address: str) -> str | None:
        """See Origin: nobody counts them."""
        return None

    def leave(self, address: str) -> None:
        """See Origin."""


async def open_socket(loop: asyncio.AbstractEventLoop, address: str) -> tuple[socket.socket, Any]:
    """Return a connected socket that does not block, and the peer's address.

    Raises: ServiceError if there is no such address; OSError of the last attempt.
    """
    failure = OSError(f"no address found, address={address!r}")
    for family, name in await _candidates(loop, address):
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            set_tcp_options(connected)
            connected.setblocking(False)
            await loop.sock_connect(connected, name)
            return connected, name
        except OSError as error:
            failure = error
            connected.close()
        except BaseException:
            connected.close()
            raise
    raise failure


async def _candidates(loop: asyncio.AbstractEventLoop, address: str) -> list[tuple[int, Any]]:
    if address.startswith(UNIX):
        return [(socket.AF_UNIX, address.removeprefix(UNIX))]
    host, port = host_and_port(address)
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServiceError(f"no such host, address={address!r}, error={error}") from error
    return [(family, name) for family, _, _, _, name in found]
