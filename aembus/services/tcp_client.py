"""TCP, as a member uses it: ``tcp = bus.service("tcp")``.

The service owns the sockets, so a member's death closes no connection; members own the logic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aembus.bus import Bus
from aembus.routing import ServiceVersion

REDELIVER: Final = "redeliver"
CLOSE: Final = "close"
ENVELOPE_BYTES: Final = 128  # what encoding a connection, some bytes and a peer adds, at most
CLOSE_CALLS: Final = {"both": "close", "write": "shut"}


class TcpClient:
    """The TCP service's calls."""

    def __init__(self, bus: Bus, service: ServiceVersion) -> None:
        self._bus = bus
        self._service = service

    def rejoin(self, service: ServiceVersion) -> None:
        """Listeners and connections went with the last supervisor: listen again."""
        self._service = service

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
            address: "host:port"; port 0 lets the system choose, once for each `point`.
            point: activated with (connection, message), keyed by what the framer says, else by
                the connection.
            framer: "raw", "line", "length", or "module:Class".
            message_bytes_max: a longer message ends its connection.
            unsent_bytes_max: a peer that leaves more than this unread, beside what the kernel
                buffers, is closed.  So send what is long in pieces, see `want_room`.
            connections_max: more are closed at once, and counted.
            connections_per_address_max: likewise for those of one address; None: no limit.
            message_s_max: a message that was begun and is not whole after so many seconds ends
                its connection; None: it may take for ever.
            idle_s_max: a connection on which nothing came or went for so long is closed; None:
                it stays.
            with_peer: activate `point` with (connection, message, peer's address).
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
            "on_open": on_open,
            "on_close": on_close,
            "on_end": on_end,
            "on_room": on_room,
            "on_worker_death": _death_to_send(on_worker_death),
        }
        result: str = self._bus.call_service(self._service, "listen", (address, options), timeout)
        return result

    def send(self, connection: int, data: bytes) -> None:
        """Send bytes down a connection; one that is closed already is left alone, and counted.

        What is too long for one job goes in several, in order.

        Raises: InboxFull if the service does not take them in time, BusBroken.
        """
        size_max = self._bus.job_bytes_max - ENVELOPE_BYTES
        if len(data) <= size_max:
            self._bus.tell_service(self._service, "send", (connection, data))
            return
        for begin in range(0, len(data), size_max):
            piece = data[begin : begin + size_max]
            self._bus.tell_service(self._service, "send", (connection, piece))

    def want_room(self, connection: int) -> None:
        """Ask for one activation of `on_room`: at most half of `unsent_bytes_max` is unsent then.

        It comes at once if so little is unsent now.  Who has much to send sends a piece of at most
        that size, asks, and sends the next piece when it is told.
        """
        self._bus.tell_service(self._service, "want_room", (connection,))

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
        self._bus.tell_service(self._service, CLOSE_CALLS[how], (connection,))


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
