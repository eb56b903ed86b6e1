"""TCP, as a member uses it: ``tcp = bus.service("tcp")``.

The service owns the sockets, so a member's death closes no connection; members own the logic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypedDict

from aembus.bus import Bus
from aembus.routing import ServiceVersion
from aembus.services.base import SLOT_SHIFT

REDELIVER: Final = "redeliver"
CLOSE: Final = "close"
ENVELOPE_BYTES: Final = 128  # what encoding a connection, some bytes and a peer adds, at most
ANSWER_S: Final = 1.0  # for the answer, when what it tells of was given all of its time
CLOSE_CALLS: Final = {"both": "close", "write": "shut"}


class Tls(TypedDict, total=False):
    """What to speak TLS with: paths of PEM files, and a name; see TcpClient.listen and connect."""

    certificate: str
    key: str
    authorities: str
    server_hostname: str


class TcpClient:
    """The TCP service's calls."""

    def __init__(self, bus: Bus, service: ServiceVersion) -> None:
        self._bus = bus
        self.rejoin(service)

    def rejoin(self, service: ServiceVersion) -> None:
        """Listeners and connections went with the last supervisor: listen again."""
        self._service = service
        self._slot = service.slot
        self._piece_bytes_max = self._bus.job_bytes_max - ENVELOPE_BYTES
        self._tell_send = self._bus.one_way_call(service, "send").tell

    def listen(
        self,
        address: str,
        point: str,
        *,
        framer: str = "raw",
        message_bytes_max: int = 65536,
        unsent_bytes_max: int = 262144,
        connections_max: int = 10_000,
        connections_per_address_max: int | None = None,
        message_s_max: float | None = 30.0,
        idle_s_max: float | None = None,
        with_peer: bool = False,
        handshake_s_max: float = 10.0,
        tls: Tls | None = None,
        proxy_protocol: bool = False,
        reuse_port: bool = False,
        mode: int | None = None,
        on_open: str | None = None,
        on_close: str | None = None,
        on_end: str | None = None,
        on_room: str | None = None,
        on_worker_death: str | bytes | Callable[[bytes], bytes] = REDELIVER,
        timeout: float = 5.0,
    ) -> str:
        """Listen on `address` and activate `point` with each message; return the bound address.

        Asking again for the same address with the same options joins the listener that is there,
        so each worker may ask, at each start.  Connections are accepted once somebody is
        registered at `point`.

        Args:
            address: "host:port", where port 0 lets the system choose, once for each `point`;
                "unix:/path"; or "systemd:NAME", a socket that systemd passed to the process which
                hosts the service, by its FileDescriptorName= or its number, 3 for the first.
            point: activated with (connection, message), keyed by what the framer says, else by
                the connection.
            framer: "raw", "line", "length", or "module:Class".
            message_bytes_max: a longer message ends its connection.
            unsent_bytes_max: a peer that leaves more than this unread, beside what the kernel
                buffers, is closed.  So send what is long in pieces, see `want_room`.
            connections_max: more are closed, 640 a second at most, and counted.
            connections_per_address_max: likewise for those of one address; None: no limit.
            message_s_max: a message that was begun and is not whole after so many seconds ends
                its connection; None: it may take for ever.
            idle_s_max: a connection on which nothing came or went for so long is closed; None:
                it stays.
            with_peer: activate `point` with (connection, message, peer's address).
            handshake_s_max: the proxy's header and the TLS handshake have to be over within so
                many seconds; and within one, if 1,000 handshakes are under way.
            tls: speak TLS, with the files of these paths (PEM): "certificate" (the whole chain),
                "key" (if it is not in the same file), and "authorities": only peers with a
                certificate that one of them has signed are let in.  Files that are replaced are
                used for new connections within a second; see also `reload`.
            proxy_protocol: each connection begins with a header of the PROXY protocol, version 2,
                which says whose it is.  Only for who can be reached by its proxies alone.
            reuse_port: let other sockets of this user have the same port, if they say so too; the
                kernel deals the connections out (SO_REUSEPORT, socket(7)).  Where tcp runs in
                several service hosts they share a port so.
            mode: of a unix socket's file; None: 0o600.  A file that a dead server left is replaced.
            on_open: a point activated with (connection, peer's address).
            on_close: a point activated with (connection,).
            on_end: a point activated with (connection,) when the peer has shut its writing side;
                you can go on sending, and close.  None: what was sent goes out, then the
                connection is closed, 0.2 s after the last bytes came at the earliest.
            on_room: a point activated with (connection,) as `want_room` asks.
            on_worker_death: what becomes of a message that a worker had in hand when it died.
                "redeliver": the replacement gets it again; if it is given up in the end (in hand
                at three deaths, redeliver=False, no member left), its connection is closed.
                "close": its connection is closed at once.  Bytes: they are sent at once.  A
                function of a module: it is called in the supervisor with the message, and what it
                returns is sent at once.  What was answered so is not delivered again, but kept
                with the dead letters.  While the worker is not restarted at once (degraded), what
                waits for it is treated the same.
            timeout: for the answer, in seconds.

        Raises: CallFailed: the port is in use, another listener there has other options, no such
        framer, a value that does not fit.
        """
        options = {
            "point": point,
            "framer": framer,
            "message_bytes_max": message_bytes_max,
            "unsent_bytes_max": unsent_bytes_max,
            "connections_max": connections_max,
            "connections_per_address_max": connections_per_address_max,
            "message_s_max": message_s_max,
            "idle_s_max": idle_s_max,
            "with_peer": with_peer,
            "handshake_s_max": handshake_s_max,
            "tls": None if tls is None else dict(tls),
            "proxy_protocol": proxy_protocol,
            "reuse_port": reuse_port,
            "mode": mode,
            "on_open": on_open,
            "on_close": on_close,
            "on_end": on_end,
            "on_room": on_room,
            "on_worker_death": _death_to_send(on_worker_death),
        }
        hosts = self._bus.hosts_of(self._service)
        if len(hosts) > 1:
            options["reuse_port"] = True  # each has a socket of its own there
        for host in hosts:
            address = self._bus.call_service(host, "listen", (address, options), timeout)
        return address

    def connect(
        self,
        address: str,
        point: str,
        *,
        framer: str = "raw",
        message_bytes_max: int = 65536,
        unsent_bytes_max: int = 262144,
        message_s_max: float | None = 30.0,
        idle_s_max: float | None = None,
        with_peer: bool = False,
        handshake_s_max: float = 10.0,
        tls: Tls | None = None,
        on_close: str | None = None,
        on_end: str | None = None,
        on_room: str | None = None,
        on_worker_death: str | bytes | Callable[[bytes], bytes] = REDELIVER,
        timeout: float = 5.0,
    ) -> int:
        """Connect to `address` and activate `point` with each message; return the connection.

        It is read once somebody is registered at `point`.  It is the service's, as all are: it
        outlives the worker that asked for it.

        Args:
            address: "host:port" or "unix:/path".
            tls: speak TLS: "authorities", a file of those who are trusted to sign the peer's
                certificate (without it: those that the system trusts); "server_hostname", if it is
                not the host of `address`; "certificate" and "key", if the peer wants one.
            timeout: for the connection to be there, the TLS handshake included, in seconds.

        The others are as in `listen`.

        Raises: CallFailed: it cannot be reached, its certificate is not trusted.
        """
        options = {
            "point": point,
            "framer": framer,
            "message_bytes_max": message_bytes_max,
            "unsent_bytes_max": unsent_bytes_max,
            "message_s_max": message_s_max,
            "idle_s_max": idle_s_max,
            "with_peer": with_peer,
            "handshake_s_max": min(handshake_s_max, timeout),
            "tls": None if tls is None else dict(tls),
            "on_close": on_close,
            "on_end": on_end,
            "on_room": on_room,
            "on_worker_death": _death_to_send(on_worker_death),
        }
        data = (address, options, timeout)
        patience = timeout + ANSWER_S
        result: int = self._bus.call_service(self._service, "connect", data, patience)
        return result

    def stop_listening(
        self, address: str, drain_s_max: float = 30.0, *, timeout: float = 5.0
    ) -> int:
        """Give a listening address up; return how many of its connections are open.

        They go on, and are closed when they are still open after `drain_s_max` seconds.  Another
        `listen` may have the address at once.

        Raises: CallFailed: nobody listens there.
        """
        data = (address, drain_s_max)
        hosts = self._bus.hosts_of(self._service)
        return sum(self._bus.call_service(h, "stop_listening", data, timeout) for h in hosts)

    def reload(self, address: str, *, timeout: float = 5.0) -> None:
        """Use the TLS files of a listener as they are now, for the connections to come.

        Raises: CallFailed: nobody listens there, or the files do not fit; it goes on with those
        that it had.
        """
        for host in self._bus.hosts_of(self._service):
            self._bus.call_service(host, "reload", (address,), timeout)

    def send(self, connection: int, data: bytes | bytearray | memoryview) -> None:
        """Send bytes down a connection; one that is closed already is left alone, and counted.

        What is too long for one job goes in several, in order.

        Raises: TypeError for what is no bytes, InboxFull if the service does not take them in
        time, BusBroken.
        """
        if type(data) is not bytes:
            if not isinstance(data, bytearray | memoryview):
                raise TypeError(f"bytes can be sent, and nothing else, data={data!r:.80}")
            data = bytes(data)
        if connection >> SLOT_SHIFT == self._slot and len(data) <= self._piece_bytes_max:
            self._tell_send(connection, data)
            return
        host = self._host_of(connection)
        for begin in range(0, max(len(data), 1), self._piece_bytes_max):
            piece = data[begin : begin + self._piece_bytes_max]
            self._bus.tell_service(host, "send", (connection, piece))

    def want_room(self, connection: int) -> None:
        """Ask for one activation of `on_room`: at most half of `unsent_bytes_max` is unsent then.

        It comes at once if so little is unsent now.  Who has much to send sends a piece of at most
        that size, asks, and sends the next piece when it is told.
        """
        self._bus.tell_service(self._host_of(connection), "want_room", (connection,))

    def close(self, connection: int, how: str = "both") -> None:
        """Close a connection after what was sent before has gone out.

        Args:
            connection: one that is closed already is left alone.
            how: "both" sides, or "write": only tell the peer that nothing more will be sent, and
                go on receiving.

        Raises: ValueError for another `how`.
        """
        if how not in CLOSE_CALLS:
            raise ValueError(f"how is 'both' or 'write', how={how!r}")
        self._bus.tell_service(self._host_of(connection), CLOSE_CALLS[how], (connection,))

    def _host_of(self, connection: int) -> ServiceVersion:
        slot = connection >> SLOT_SHIFT
        if slot == self._service.slot:
            return self._service
        hosts = self._bus.hosts_of(self._service)
        return next((host for host in hosts if host.slot == slot), self._service)


def _death_to_send(wanted: str | bytes | Callable[[bytes], bytes]) -> str | bytes:
    if not callable(wanted):
        return wanted
    module, name = wanted.__module__, getattr(wanted, "__qualname__", "")
    if module == "__main__" or not name.isidentifier():
        raise ValueError(
            "the supervisor must be able to import it: give a function of a module other than "
            f"__main__, on_worker_death={wanted!r}"
        )
    return f"{module}:{name}"
