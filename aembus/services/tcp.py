"""The TCP service: it owns listeners and connections, and turns bytes into activations.

Runs in the supervisor's event loop.  For each connection a framer cuts the stream into messages
and names their keys; each message activates the listener's point.  When the destination of a
connection's messages is so full that the parking line is over its bound, only that connection
stops reading.  A peer that does not read what is sent to it is closed at a bound of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aembus.codec import encode, key_hash
from aembus.errors import ServiceError
from aembus.services.base import Caller, Host, Service, call
from aembus.services.framing import Answer, Framer, FramingError, load_framer
from aembus.services.tcp_client import ENVELOPE_BYTES, REDELIVER
from aembus.services.tcp_failure import Failure, load_failure

log = logging.getLogger("aembus")

UNSENT_BYTES_MAX: Final = 1024 * 1024
BACKLOG: Final = 1024
LAST_ANSWERS_S: Final = 0.2
FLUSH_S_MAX: Final = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """What a listener was asked for; a second request must agree."""

    point: str
    framer: str
    message_bytes_max: int
    connections_max: int
    on_open: str | None
    on_close: str | None
    on_worker_death: str | bytes


class Listener:
    """A listening socket; it accepts once somebody is registered at its point.

    failure: what to send to a peer whose request's worker died, made of the request; None: close.
    """

    def __init__(
        self,
        bound: socket.socket,
        options: Options,
        make: Callable[[int], Framer],
        failure: Failure | None,
    ) -> None:
        self.socket = bound
        self.options = options
        self.make_framer = make
        self.failure = failure
        self.server: asyncio.Server | None = None
        self.starting = False
        self.connections = 0
        self.address = _address(bound.getsockname())


class Connection(asyncio.Protocol):
    """One accepted connection."""

    def __init__(self, service: TcpService, listener: Listener) -> None:
        self.id = service.next_connection_id()
        self._service = service
        self.listener = listener
        self._framer = listener.make_framer(listener.options.message_bytes_max)
        self._own_key = key_hash(self.id)
        self._failed = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection up, or close it if there are too many."""
        assert isinstance(transport, asyncio.Transport)
        options = self.listener.options
        if self.listener.connections >= options.connections_max:
            self._service.count("refused")
            transport.abort()
            return
        self.transport = transport
        self.listener.connections += 1
        self._service.opened(self)
        if options.on_open is not None:
            peer = _address(transport.get_extra_info("peername"))
            self._activate(options.on_open, encode((self.id, peer)), self._own_key)

    def data_received(self, data: bytes) -> None:
        """Cut what arrived into messages and activate the point with each."""
        if self.transport is None or self._failed:
            return
        point = self.listener.options.point
        try:
            while frames := self._framer.feed(data):
                for frame in frames:
                    if isinstance(frame, Answer):
                        self.transport.write(frame.data)
                        continue
                    key = self._own_key if frame.key is None else key_hash(frame.key)
                    self._activate(point, encode((self.id, frame.data)), key)
                data = b""
        except FramingError as error:
            self._end(str(error), error.answer)
        except Exception as error:  # a framer of the user's: its fault ends this connection only
            log.exception("framer of connection %d failed", self.id)
            self._end(str(error), b"")
        if not self._failed and self._service.host.congested(self.id):
            self._service.count("pauses")
            self.transport.pause_reading()

    def _activate(self, point: str, payload: bytes, key: int) -> None:
        if not self._service.host.activate(point, payload, key, self.id):
            self._service.count("unrouted")

    def _end(self, reason: str, answer: bytes) -> None:
        log.warning("connection %d is closed: %s", self.id, reason)
        self._service.count("framing_errors")
        self._failed = True
        assert self.transport is not None
        self.transport.pause_reading()
        if answer:
            self.transport.write(answer)
        # What it sent before was good, and is being answered: let those answers go out.
        asyncio.get_running_loop().call_later(LAST_ANSWERS_S, self.transport.close)

    def send(self, data: bytes) -> None:
        """Send; a peer that leaves too much unread is cut off."""
        transport = self.transport
        if transport is None or transport.is_closing():
            self._service.count("unsent")
            return
        transport.write(data)
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            log.warning(
                "connection %d is closed: it does not read, unsent=%d, max=%d",
                self.id,
                transport.get_write_buffer_size(),
                UNSENT_BYTES_MAX,
            )
            self._service.count("slow_readers")
            transport.abort()

    def fail(self, failure: Failure | None, message: bytes) -> None:
        """Answer a message that nobody else will answer; without a `failure`, close."""
        try:
            answer = None if failure is None else failure(message)
        except Exception:
            log.exception("the failure answer of connection %d cannot be made", self.id)
            answer = None
        if answer is not None:
            self.send(answer)
        elif self.transport is not None:
            self.transport.close()

    def resume(self) -> None:
        """Read again."""
        if self.transport is not None and not self.transport.is_closing() and not self._failed:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and tell the point that wants to know."""
        if self.transport is None:
            return
        self.transport = None
        self.listener.connections -= 1
        self._service.closed(self)
        if self.listener.options.on_close is not None:
            self._activate(self.listener.options.on_close, encode((self.id,)), self._own_key)


class TcpService(Service):
    """Service "tcp", version 1."""

    name = "tcp"
    version = "1"
    client = "aembus.services.tcp_client:TcpClient"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._listeners: dict[str, Listener] = {}
        self._connections: dict[int, Connection] = {}
        self._ids = itertools.count(1)
        self._counts: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._all_closed = asyncio.Event()

    # --- calls ----------------------------------------------------------------------------------

    @call
    def listen(
        self,
        caller: Caller,
        address: str,
        point: str,
        framer: str,
        message_bytes_max: int,
        connections_max: int,
        on_open: str | None,
        on_close: str | None,
        on_worker_death: str | bytes,
    ) -> str:
        """See TcpClient.listen."""
        options = Options(
            point, framer, message_bytes_max, connections_max, on_open, on_close, on_worker_death
        )
        listener = self._listeners.get(address)
        if listener is not None:
            if listener.options != options:
                raise ServiceError(
                    "another listener has this address, with other options, "
                    f"address={address!r}, wanted={options}, has={listener.options}"
                )
            return listener.address
        if self._closing:
            raise ServiceError(f"the bus is stopping, address={address!r}")
        room = self.host.job_bytes_max - ENVELOPE_BYTES
        if message_bytes_max > room:
            raise ServiceError(
                "such a message does not fit into a job: lower message_bytes_max, or give the "
                f"supervisor larger lanes (lane_bytes), wanted={message_bytes_max}, max={room}"
            )
        make, failure = load_framer(framer), load_failure(on_worker_death)
        listener = Listener(_bind(address), options, make, failure)
        self._listeners[address] = self._listeners[listener.address] = listener
        self.on_registry_changed()
        return listener.address

    @call
    def send(self, caller: Caller, connection: int, data: bytes) -> None:
        """See TcpClient.send."""
        found = self._connections.get(connection)
        if found is None:
            self.count("unsent")
        else:
            found.send(data)

    @call
    def close(self, caller: Caller, connection: int) -> None:
        """See TcpClient.close."""
        found = self._connections.get(connection)
        if found is not None and found.transport is not None:
            found.transport.close()

    # --- the host asks --------------------------------------------------------------------------

    def on_registry_changed(self) -> None:
        """Begin to accept where somebody listens at the other end by now."""
        for listener in set(self._listeners.values()):
            if not listener.starting and self.host.has_events(listener.options.point):
                listener.starting = True
                task = asyncio.ensure_future(self._accept_on(listener))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _accept_on(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        listener.server = await loop.create_server(
            lambda: Connection(self, listener), sock=listener.socket, backlog=BACKLOG
        )
        if self._closing:
            listener.server.close()

    def on_request_lost(self, point: str, data: Sequence[Any], given_up: bool) -> bool:
        """Answer a message whose worker died, or close its connection, as its listener wants."""
        listeners = [s for s in set(self._listeners.values()) if s.options.point == point]
        if not listeners or len(data) != 2:
            return False
        connection = self._connections.get(data[0])
        listener = listeners[0] if connection is None else connection.listener
        redeliver = listener.options.on_worker_death == REDELIVER
        if redeliver and not given_up:
            return False
        self.count("worker_deaths")
        if connection is not None:
            connection.fail(None if redeliver else listener.failure, data[1])
        return True

    def on_room(self, sources: Iterable[int]) -> None:
        """Let the connections read again."""
        for source in sources:
            if (connection := self._connections.get(source)) is not None:
                connection.resume()

    def close_intakes(self) -> None:
        """Accept no more connections and read no more bytes."""
        self._closing = True
        for listener in set(self._listeners.values()):
            if listener.server is not None:
                listener.server.close()
            else:
                listener.socket.close()
        for connection in list(self._connections.values()):
            if connection.transport is not None and not connection.transport.is_closing():
                connection.transport.pause_reading()

    async def stop(self) -> None:
        """Let what was sent go out, for a bounded time, then close every connection."""
        for connection in list(self._connections.values()):
            if connection.transport is not None:
                connection.transport.close()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), FLUSH_S_MAX)
        for connection in list(self._connections.values()):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)

    def statistics(self) -> dict[str, int]:
        """See Service."""
        return {
            "listeners": len(set(self._listeners.values())),
            "connections": len(self._connections),
            **self._counts,
        }

    # --- for the connections --------------------------------------------------------------------

    def next_connection_id(self) -> int:
        """Return a number that no other connection of this bus has had."""
        return next(self._ids)

    def opened(self, connection: Connection) -> None:
        """Know a connection."""
        self._connections[connection.id] = connection
        self.count("accepted")

    def closed(self, connection: Connection) -> None:
        """Know it no longer."""
        self._connections.pop(connection.id, None)
        self.host.forget_source(connection.id)
        if self._closing and not self._connections:
            self._all_closed.set()

    def count(self, what: str) -> None:
        """Count something for the statistics."""
        self._counts[what] = self._counts.get(what, 0) + 1


def _address(name: tuple[str, int]) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(address: str) -> socket.socket:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise ServiceError(f"an address is written host:port, address={address!r}")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, int(port)))
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
