"""The TCP service: it owns listeners and connections, and turns bytes into activations.

Runs in its host's event loop.  This module answers the calls and knows everything by its number or
address; what a listener does is in `tcp_listener`, what a connection does in `tcp_connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

from aembus.errors import ServiceError
from aembus.services.base import Caller, HandOver, Host, Service, call, one_way_call

from .tcp_address import address_text, bind, host_of, peer_text
from .tcp_client import ENVELOPE_BYTES, REDELIVER
from .tcp_connection import NS, Connection, Origin
from .tcp_hand_over import Given, Unpacker, pack
from .tcp_handshakes import Handshakes
from .tcp_listener import Listener, Parts, find_parts
from .tcp_options import TIME_S_MAX, Options
from .tcp_outgoing import Outgoing, open_socket
from .tcp_overdue import Overdue
from .tcp_resets import Resets
from .tcp_stream import Stream

log = logging.getLogger("aembus")

FLUSH_S_MAX: Final = 0.5
NOBODY: Final = Caller(0, 0)


class TcpService(Service):
    """Service "tcp", version 1: a Keeper of connections, and an Acceptor."""

    name = "tcp"
    version = "1"
    hosts_max = 64  # a connection's number says which host has it
    client = "aembus.services.tcp_client:TcpClient"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[str, Listener] = {}
        self._connections: dict[int, Connection] = {}
        self._dirty: list[Connection] = []
        self._opening: dict[int, asyncio.Future[None]] = {}  # whose call of connect waits
        self._waiting: set[int] = set()  # until somebody is registered at their point
        self._overdue = Overdue(self._loop, host.now_ns, self._check_time)
        self._resets = Resets(self._loop, self._connections)
        self.handshakes = Handshakes(self._loop)
        self._counts: dict[str, int] = {}
        self._given: Given | None = None  # to another version of the service
        self._has_before = False  # a version that may have kept what could not cross
        self._closing = False
        self._all_closed = asyncio.Event()

    async def start(self) -> None:
        """Listen where the last process of this host did."""
        for known_as, address, given in self.host.kept or ():
            try:
                self._listen(known_as, address, given)
            except (OSError, ServiceError) as error:
                log.error("nobody listens at %s any more: %s", address, error)

    # --- calls ----------------------------------------------------------------------------------

    @call
    def listen(self, caller: Caller, address: str, given: dict[str, Any]) -> str:
        """See TcpClient.listen."""
        options = Options(**given)
        # Ports that the system chooses differ: there the point tells who wants the same one.
        known_as = f"{address} {options.point}" if address.endswith(":0") else address
        listener = self._listeners.get(known_as)
        if listener is not None:
            if listener.options != options:
                raise ServiceError(
                    "another listener has this address, with other options, "
                    f"address={address!r}, {options.difference(listener.options)}"
                )
            return listener.address
        listener = self._listen(known_as, address, given)
        self._keep_listeners()
        return listener.address

    def _listen(self, known_as: str, address: str, given: dict[str, Any]) -> Listener:
        options = Options(**given)
        if options.on_worker_death != REDELIVER and not self.host.is_supervisor:
            raise ServiceError(
                "in a service host a message whose worker died is always delivered again; let the "
                f"supervisor host tcp, or drop on_worker_death, address={address!r}"
            )
        bound_with = self._find_parts(address, options, server_side=True)
        bound = bind(address, options.reuse_port, options.mode)
        listener = Listener(self._loop, bound, bound_with, self)
        self._listeners[known_as] = self._listeners[listener.address] = listener
        self.on_registry_changed()
        return listener

    def _keep_listeners(self) -> None:
        asked: dict[Listener, str] = {}  # each is also known by its bound address, behind that
        for known_as, listener in self._listeners.items():
            asked.setdefault(listener, known_as)
        listening = [
            [known_as, listener.address, dataclasses.asdict(listener.options)]
            for listener, known_as in asked.items()
        ]
        self.host.keep(listening)

    def _find_parts(self, address: str, options: Options, server_side: bool) -> Parts:
        if self._closing:
            raise ServiceError(f"the bus is stopping, address={address!r}")
        options.check_message_fits(self.host.job_bytes_max - ENVELOPE_BYTES)
        return find_parts(options, server_side)

    @call
    async def connect(
        self, caller: Caller, address: str, given: dict[str, Any], connect_s_max: float
    ) -> int:
        """See TcpClient.connect."""
        parts = self._find_parts(address, Options(**given), server_side=False)
        origin = Outgoing(parts, address)
        try:
            async with asyncio.timeout(min(connect_s_max, TIME_S_MAX)):
                connected, name = await open_socket(self._loop, address)
        except OSError as error:  # TimeoutError is one
            self.count("connect_errors")
            reason = os.strerror(error.errno) if error.errno else str(error) or "it took too long"
            raise ServiceError(
                f"cannot connect, address={address!r}, connect_s_max={connect_s_max}, "
                f"error={reason!r}"
            ) from error
        connection = self._take_up(origin, connected, address_text(name), None)
        self._opening[connection.id] = opening = self._loop.create_future()
        connection.begin()
        try:
            await opening
        finally:
            self._opening.pop(connection.id, None)
        self.count("connected")
        return connection.id

    @call
    def stop_listening(self, caller: Caller, address: str, drain_s_max: float) -> int:
        """See TcpClient.stop_listening."""
        listener = self._listener(address)
        due_ns = self.host.now_ns() + int(min(drain_s_max, TIME_S_MAX) * NS)
        for known_as in [known for known, other in self._listeners.items() if other is listener]:
            del self._listeners[known_as]
        self._keep_listeners()
        listener.close()
        theirs = [c for c in self._connections.values() if c.origin is listener]
        for connection in theirs:
            connection.end_by(due_ns)
        return len(theirs)

    @call
    def reload(self, caller: Caller, address: str) -> None:
        """See TcpClient.reload."""
        listener = self._listener(address)
        if listener.tls is None:
            raise ServiceError(f"it does not speak TLS, address={address!r}")
        listener.tls.reload()

    def _listener(self, address: str) -> Listener:
        listener = self._listeners.get(address)
        if listener is None:
            raise ServiceError(
                f"nobody listens there, address={address!r}, known={sorted(self._listeners)}"
            )
        return listener

    @one_way_call
    def send(self, nobody: object, connection: int, data: bytes) -> bool:
        """See TcpClient.send.  Returns whether there is such a connection."""
        found = self._connections.get(connection)
        if found is not None:
            found.send(data)
            if self._given is not None:
                found.flush()  # nobody lets this version work any more
            return True
        if self._ask_before("send", NOBODY, connection, data):
            return True
        self.count("unsent")
        return False

    @call
    def want_room(self, caller: Caller, connection: int) -> None:
        """See TcpClient.want_room."""
        if (found := self._connections.get(connection)) is not None:
            found.want_room()
        else:
            self._ask_before("want_room", caller, connection)

    @call
    def close(self, caller: Caller, connection: int) -> None:
        """See TcpClient.close."""
        if (found := self._connections.get(connection)) is not None:
            found.close()
        else:
            self._ask_before("close", caller, connection)

    @call
    def shut(self, caller: Caller, connection: int) -> None:
        """See TcpClient.close."""
        if (found := self._connections.get(connection)) is not None:
            found.shut()
        else:
            self._ask_before("shut", caller, connection)

    @call
    def serves(self, caller: Caller) -> bool:
        """Say whether connections are open here that could not cross, or in a version before."""
        return bool(self._connections or self._opening or self._ask_before("serves", caller))

    def _ask_before(self, name: str, caller: Caller, *data: Any) -> Any:
        """Make a call that may concern a connection which could not cross; None: nobody has it."""
        if not self._has_before:
            return None
        try:
            return self.host.ask_before(name, caller, *data)
        except ServiceError:  # the version is not loaded any more
            self._has_before = False
            return None

    # --- the host asks --------------------------------------------------------------------------

    def do_work(self, now_ns: int) -> int:
        """Send what the calls of this turn have written: what is for one peer goes in one piece."""
        if not self._dirty:
            return 0
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.flush()
        return 0  # nothing that would make another turn worth while

    def on_registry_changed(self) -> None:
        """Begin to accept where somebody listens at the other end by now."""
        for listener in self._listeners.values():
            if not listener.is_accepting and self.host.has_events(listener.options.point):
                listener.start()
        for number in list(self._waiting):
            connection = self._connections.get(number)
            if connection is None or self.host.has_events(connection.origin.options.point):
                self._waiting.discard(number)
                if connection is not None:
                    connection.resume()

    def on_request_lost(self, point: str, data: Sequence[Any], given_up: bool) -> bool:
        """Answer a message whose worker died, or close its connection, as its listener wants."""
        if len(data) not in (2, 3):
            return False
        connection = self._connections.get(data[0])
        origin = self._origin_of(point) if connection is None else connection.origin
        if origin is None or origin.options.point != point:
            return False
        redeliver = origin.options.on_worker_death == REDELIVER
        if redeliver and not given_up:
            return False
        self.count("worker_deaths")
        if connection is not None:
            connection.fail(None if redeliver else origin.failure, data[1])
        return True

    def _origin_of(self, point: str) -> Origin | None:
        return next((s for s in self._listeners.values() if s.options.point == point), None)

    def on_room(self, sources: Iterable[int]) -> None:
        """Let the connections read again, and the listeners accept."""
        listeners = {listener.source: listener for listener in self._listeners.values()}
        for source in sources:
            if (connection := self._connections.get(source)) is not None:
                connection.resume()
            elif (listener := listeners.get(source)) is not None:
                listener.start()

    def close_intakes(self) -> None:
        """Accept no more connections and read no more bytes."""
        self._closing = True
        for listener in self._listeners.values():
            listener.close()
        self.handshakes.close()
        for connection in self._connections.values():
            connection.close_intake()

    # --- passing the state on -------------------------------------------------------------------

    def hand_over(self) -> HandOver:
        """See Service.  What cannot cross stays, and is served through `Host.ask_before`."""
        self.do_work(0)
        crossing = [c for c in self._connections.values() if c.can_cross]
        listeners = set(self._listeners.values())
        for listener in listeners:
            listener.stop()
        for connection in crossing:
            connection.stream.detach()
        given = Given(self._listeners, crossing)
        try:
            handed = pack(self._listeners, crossing, self._counts)
        except OSError as error:
            self._take_back(given)
            raise ServiceError(f"there are no descriptors for copies, error={error}") from error
        for connection in crossing:
            del self._connections[connection.id]
            self._overdue.forget(connection.id)
            self._waiting.discard(connection.id)
        self._listeners = {}
        self._given = given
        return handed

    def _take_back(self, given: Given) -> None:
        for connection in given.connections:
            connection.stream.reattach()
        self.on_registry_changed()

    def resume(self, handed: HandOver) -> None:
        """See Service."""
        given, self._given = self._given, None
        assert given is not None
        self._listeners = given.listeners
        for connection in given.connections:
            self._connections[connection.id] = connection
            if not connection.stream.is_reading:
                self._waiting.add(connection.id)
            connection.go_on()
        self._take_back(given)

    def drain(self) -> None:
        """See Service.  What was given away is the other version's now: our copies may go."""
        if self._given is not None:
            for listener in set(self._given.listeners.values()):
                listener.socket.close()
            for connection in self._given.connections:
                connection.stream.release()
            self._given.listeners.clear()
            self._given.connections.clear()

    @property
    def in_use(self) -> bool:
        """See Service: whether connections that could not cross are open, here or before."""
        if self._given is None:
            return False
        return self.serves(NOBODY)

    async def take_over(self, handed: HandOver) -> None:
        """See Service."""
        unpacker = Unpacker(handed)
        try:
            self._unpack(unpacker, handed.data)
        except BaseException:
            self._resets.close()
            for listener in self._listeners.values():
                listener.stop()
            for connection in self._connections.values():
                connection.stream.detach()
            self._overdue.stop()
            unpacker.close()
            raise

    def _unpack(self, unpacker: Unpacker, data: dict[str, Any]) -> None:
        self._has_before = True
        self._counts = data["counts"]
        unpacked = unpacker.unpack(self._listener_of, self._outgoing_of)
        self._listeners = unpacked.names
        for state, connected, origin in unpacked.connections:
            number, peer, counted_as = state["number"], state["peer"], state["counted_as"]
            if counted_as is not None:
                origin.enter(counted_as)
            self._connections[number] = Connection(
                self, origin, number, connected, peer, counted_as, self._make_stream
            )
        for state, _, _ in unpacked.connections:
            self._connections[state["number"]].restore(state)
        self.on_registry_changed()

    def _listener_of(self, options: Options, bound: socket.socket) -> Listener:
        return Listener(self._loop, bound, find_parts(options, server_side=True), self)

    def _outgoing_of(self, options: Options, address: str) -> Outgoing:
        # It is open: no certificate is to be looked at any more.
        plain = dataclasses.replace(options, tls=None)
        return Outgoing(find_parts(plain, server_side=False), address)

    # --- the end --------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Let what was sent go out, for a bounded time, then close every connection."""
        self.drain()
        self.do_work(0)
        self._resets.close()
        for connection in list(self._connections.values()):
            connection.stream.close_when_sent(linger=False)
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), FLUSH_S_MAX)
        for connection in list(self._connections.values()):
            connection.stream.abort()
        await asyncio.sleep(0)
        self._overdue.stop()

    def statistics(self) -> dict[str, int]:
        """See Service."""
        return {
            "listeners": len(set(self._listeners.values())),
            "connections": len(self._connections),
            "handshakes": len(self.handshakes),
            "unsent_bytes": sum(c.stream.unsent_bytes for c in self._connections.values()),
            **self._counts,
        }

    # --- for listeners and connections ----------------------------------------------------------

    def accepted(self, listener: Listener, connected: socket.socket, name: object) -> None:
        """See Acceptor."""
        self.count("accepted")
        counted_as = None if listener.options.proxy_protocol else host_of(name)
        self._take_up(listener, connected, peer_text(connected, name), counted_as).begin()

    def _take_up(
        self, origin: Origin, connected: socket.socket, peer: str, counted_as: str | None
    ) -> Connection:
        number = self.host.new_source()
        connection = Connection(
            self, origin, number, connected, peer, counted_as, self._make_stream
        )
        self._connections[number] = connection
        return connection

    def _make_stream(self, connected: socket.socket, owner: Connection) -> Stream:
        self._resets.begin()
        return Stream(self._loop, connected, owner)

    def flush_later(self, connection: Connection) -> None:
        """See Keeper."""
        self._dirty.append(connection)

    def opened(self, connection: Connection) -> None:
        """See Keeper."""
        opening = self._opening.get(connection.id)
        if opening is not None and not opening.done():
            opening.set_result(None)

    def wait_for_events(self, connection: Connection) -> None:
        """See Keeper."""
        self._waiting.add(connection.id)

    def closed(self, connection: Connection) -> None:
        """See Keeper."""
        self._waiting.discard(connection.id)
        opening = self._opening.get(connection.id)
        if opening is not None and not opening.done():
            opening.set_exception(
                ServiceError(
                    f"cannot connect, address={connection.peer!r}, error={connection.failure!r}"
                )
            )
        self._connections.pop(connection.id, None)
        self._overdue.forget(connection.id)
        self.handshakes.end(connection)
        self.host.forget_source(connection.id)
        if self._closing and not self._connections:
            self._all_closed.set()

    def count(self, what: str) -> None:
        """Count something for the statistics."""
        self._counts[what] = self._counts.get(what, 0) + 1

    # --- time -----------------------------------------------------------------------------------

    def look_at(self, connection: Connection, at_ns: int) -> None:
        """See Keeper."""
        self._overdue.look_at(connection.id, at_ns)

    def _check_time(self, number: int, now_ns: int) -> None:
        if (connection := self._connections.get(number)) is not None:
            connection.check_time(now_ns)
