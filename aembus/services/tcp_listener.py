"""A listening socket, and the accepting of connections.

It accepts once somebody is registered at its point, a few in each turn of the event loop, so that
a flood of connections delays nobody else for long.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, Protocol

from aembus.services.framing import Framer
from aembus.services.tcp_address import address_text, host_of
from aembus.services.tcp_failure import Failure
from aembus.services.tcp_limits import Census
from aembus.services.tcp_options import Options

log = logging.getLogger("aembus")

ACCEPTS_A_TURN: Final = 64
NO_DESCRIPTOR_S: Final = 0.5  # until accepting is tried again


class Acceptor(Protocol):
    """Whom a listener tells."""

    def accepted(self, listener: Listener, connected: socket.socket, name: object) -> None:
        """Take a connection up, which is counted in already."""

    def count(self, what: str) -> None:
        """Count something for the statistics."""


class Listener:
    """A listening socket: an Origin of connections.

    Args:
        loop: whose readers tell of connections.
        bound: listens, and does not block.
        options: what was asked for.
        make_framer, failure: found by those options.
        acceptor: the service.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: socket.socket,
        options: Options,
        make_framer: Callable[[int], Framer],
        failure: Failure | None,
        acceptor: Acceptor,
    ) -> None:
        self.socket = bound
        self.options = options
        self.make_framer = make_framer
        self.failure = failure
        self.address = address_text(bound.getsockname())
        self.census = Census(options.connections_max, options.connections_per_address_max)
        self.is_accepting = False
        self.closed = False
        self._loop = loop
        self._acceptor = acceptor
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept.  Idempotent."""
        if not (self.is_accepting or self.closed):
            self.is_accepting = True
            self._loop.add_reader(self.socket.fileno(), self._on_connections)

    def stop(self) -> None:
        """Leave further connections in the kernel's queue."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self.is_accepting:
            self.is_accepting = False
            self._loop.remove_reader(self.socket.fileno())

    def close(self) -> None:
        """Accept no more, and give the address up.  Idempotent."""
        if not self.closed:
            self.stop()
            self.closed = True
            self.socket.close()

    def leave(self, address: str) -> None:
        """See Origin."""
        self.census.leave(address)

    def _on_connections(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                connected, name = self.socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:  # it has gone again
                continue
            except OSError as error:  # no descriptor, no memory: others may give some back
                log.error("%s cannot accept for now: %s", self.address, error)
                self._acceptor.count("accept_errors")
                self.stop()
                self._again = self._loop.call_later(NO_DESCRIPTOR_S, self.start)
                return
            refused_as = self.census.enter(host_of(name))
            if refused_as is not None:
                self._acceptor.count(refused_as)
                connected.close()
                continue
            connected.setblocking(False)
            self._acceptor.accepted(self, connected, name)
