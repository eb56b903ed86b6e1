"""A listening socket, and the accepting of connections.

It accepts once somebody is registered at its point, a few in each turn of the event loop, so that
a flood of connections delays nobody else for long.  A full listener closes what comes, at most
`REFUSALS_MAX` in each `REST_S`: 640 a second.  The others wait in the kernel's queue, of 1,024,
for 1.6 s at most; whoever finds that full is held off by the kernel.  A connection that ends lets
the next one in at once.

What `on_open` and `on_close` tell is told in the listener's name: while too much of it waits for a
member that has no room, the listener accepts nothing.  Who only comes and goes cannot pile up.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aembus.services.framing import Framer, load_framer

from .tcp_address import UNIX, address_text, bound_file, host_of, unlink_unix
from .tcp_failure import Failure, load_failure
from .tcp_handshakes import Handshakes
from .tcp_limits import Census
from .tcp_options import Options
from .tcp_tls import TlsFiles

log = logging.getLogger("aembus")

ACCEPTS_A_TURN: Final = 64
REFUSALS_MAX: Final = 64  # by a full listener, until it rests
REST_S: Final = 0.1
NO_DESCRIPTOR_S: Final = 0.5  # until accepting is tried again


class Sources(Protocol):
    """What a listener asks of the service's Host."""

    def new_source(self) -> int:
        """See Host."""

    def congested(self, source: int) -> bool:
        """See Host."""

    def forget_source(self, source: int) -> None:
        """See Host."""


class Acceptor(Protocol):
    """Whom a listener tells."""

    handshakes: Handshakes

    @property
    def host(self) -> Sources:
        """Who keeps what is told, and could not be delivered yet."""

    def accepted(self, listener: Listener, connected: socket.socket, name: object) -> None:
        """Take a connection up; it is counted in already, unless a proxy is to say whose it is.

        Raises: what its framer does when it is made; the connection is the listener's to end then.
        """

    def count(self, what: str) -> None:
        """Count something for the statistics."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What options name, found."""

    options: Options
    make_framer: Callable[[int], Framer]
    failure: Failure | None
    tls: TlsFiles | None


def find_parts(options: Options, server_side: bool) -> Parts:
    """Find what the options name.  Raises: ServiceError, ValueError for what cannot be had."""
    tls = None if options.tls is None else TlsFiles(options.tls, server_side)
    make, failure = load_framer(options.framer), load_failure(options.on_worker_death)
    return Parts(options, make, failure, tls)


class Listener:
    """A listening socket: an Origin of connections.

    Args:
        loop: whose readers tell of connections.
        bound: listens, and does not block.
        parts: found by what was asked for.
        acceptor: the service.
    """

    server_side = True
    server_hostname: str | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound: socket.socket,
        parts: Parts,
        acceptor: Acceptor,
    ) -> None:
        self.socket = bound
        self.options = options = parts.options
        self.make_framer = parts.make_framer
        self.failure = parts.failure
        self.tls = parts.tls
        self._inode = 0
        if bound.family == socket.AF_UNIX:
            path, self._inode = bound_file(bound)
            self.address = UNIX + path
        else:
            self.address = address_text(bound.getsockname())
        self.census = Census(options.connections_max, options.connections_per_address_max)
        self.source = acceptor.host.new_source()
        self.is_accepting = False
        self.closed = False
        self._loop = loop
        self._acceptor = acceptor
        self._again: asyncio.TimerHandle | None = None
        self._refusals = 0  # since the last rest
        self._rested: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept.  Idempotent."""
        if not (self.is_accepting or self.closed):
            self.is_accepting = True
            self._loop.add_reader(self.socket.fileno(), self._on_connections)

    def stop(self) -> None:
        """Leave further connections in the kernel's queue."""
        for handle in (self._again, self._rested):
            if handle is not None:
                handle.cancel()
        self._again = self._rested = None
        self._stop_accepting()

    def _stop_accepting(self) -> None:
        if self.is_accepting:
            self.is_accepting = False
            self._loop.remove_reader(self.socket.fileno())

    def close(self) -> None:
        """Accept no more, and give the address up.  Idempotent."""
        if not self.closed:
            self.stop()
            self.closed = True
            self._acceptor.host.forget_source(self.source)
            if self._inode:
                unlink_unix(self.socket, self._inode)
            self.socket.close()

    def enter(self, address: str) -> str | None:
        """See Origin."""
        return self.census.enter(address)

    def leave(self, address: str) -> None:
        """See Origin."""
        self.census.leave(address)
        if self._rested is not None:
            self.start()

    def _rest(self) -> None:
        self._stop_accepting()
        if self._rested is None:
            self._rested = self._loop.call_later(REST_S, self._on_rested)

    def _on_rested(self) -> None:
        self._rested = None
        self._refusals = 0
        self.start()

    def _on_connections(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._refusals >= REFUSALS_MAX and self.census.is_full:
                self._rest()
                return
            if self._acceptor.host.congested(self.source):
                self._acceptor.count("accept_pauses")
                self._stop_accepting()  # until `on_room`
                return
            if self.tls is not None and not self._acceptor.handshakes.has_room():
                self._acceptor.count("handshake_pauses")
                self._rest()
                return
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
            # Whose connection it is a proxy says later.
            proxied = self.options.proxy_protocol
            refused_as = None if proxied else self.census.enter(host_of(name))
            if refused_as is not None:
                self._acceptor.count(refused_as)
                connected.close()
                self._refusals += self.census.is_full
                continue
            connected.setblocking(False)
            try:
                self._acceptor.accepted(self, connected, name)
            except Exception:  # a framer of the user's: its fault ends this connection only
                log.exception("a connection of %s cannot be taken up", self.address)
                self._acceptor.count("framing_errors")
                connected.close()
                if not proxied:
                    self.leave(host_of(name))
