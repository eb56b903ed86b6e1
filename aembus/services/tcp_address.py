"""Addresses as text, and the sockets that are bound to them.

Written by users: "host:port", "[host]:port".  The service makes sockets of them in the process that
hosts it.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

from aembus.errors import ServiceError

BACKLOG: Final = 1024


def host_and_port(address: str) -> tuple[str, int]:
    """Return the two parts of "host:port".  Raises ServiceError if it is none."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise ServiceError(f"an address is written host:port, address={address!r}")
    return host.strip("[]"), int(port)


def address_text(name: Any) -> str:
    """Return an address of the socket module as text."""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(name: Any) -> str:
    """Return the part of an address by which connections are counted, "" if there is none."""
    return str(name[0]) if isinstance(name, tuple) else ""


def bind(address: str) -> socket.socket:
    """Return a socket that listens, and does not block.

    Raises: ServiceError if the address is none, or cannot be had.
    """
    host, port = host_and_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.setblocking(False)
        # Listening shows at once whether another process has the port.
        bound.listen(BACKLOG)
    except OSError as error:
        with contextlib.suppress(OSError):
            bound.close()
        raise ServiceError(
            f"cannot listen; choose another address or stop what has it, address={address!r}, "
            f"error={error.strerror!r}"
        ) from error
    return bound
