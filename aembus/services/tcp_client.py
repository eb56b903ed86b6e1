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
ENVELOPE_BYTES: Final = 32  # what encoding a connection and some bytes adds, at most


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
        connections_max: int = 10_000,
        on_open: str | None = None,
        on_close: str | None = None,
        on_worker_death: str | bytes | Callable[[bytes], bytes] = REDELIVER,
        timeout: float = 5.0,
    ) -> str:
        """Listen on `address` and activate `point` with each message; return the bound address.

        Asking again for the same address with the same options joins the listener that is there,
        so each worker may ask, at each start.  Connections are accepted once somebody is
        registered at `point`.

        Args:
            address: "host:port"; port 0 lets the system choose.
            point: activated with (connection, message), keyed by what the framer says, else by
                the connection.
            framer: "raw", "line", "length", or "module:Class".
            message_bytes_max: a longer message ends its connection.
            connections_max: more are closed at once, and counted.
            on_open: a point activated with (connection, peer's address).
            on_close: a point activated with (connection,).
            on_worker_death: what becomes of a message that a worker had in hand when it died.
                "redeliver": the replacement gets it again; if it is given up in the end (in hand
                at three deaths, redeliver=False, no member left), its connection is closed.
                "close": its connection is closed at once.  Bytes: they are sent at once.  A
                function of a module: it is called in the supervisor with the message, and what it
                returns is sent at once.  What was answered so is not delivered again, but kept
                with the dead letters.  While the worker is not restarted at once (degraded), what
                waits for it is treated the same.

        Raises: CallFailed: the port is in use, another listener there has other options, no such
        framer.
        """
        data = (
            address,
            point,
            framer,
            message_bytes_max,
            connections_max,
            on_open,
            on_close,
            _death_to_send(on_worker_death),
        )
        result: str = self._bus.call_service(self._service, "listen", data, timeout)
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

    def close(self, connection: int) -> None:
        """Close a connection after what was sent before has gone out."""
        self._bus.tell_service(self._service, "close", (connection,))


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
