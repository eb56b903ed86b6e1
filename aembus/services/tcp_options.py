"""What a listener, or an outgoing connection, was asked for.  Pure.

Made by the service from what `TcpClient.listen` and `connect` send, and compared when another
worker asks for the same address.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from aembus.errors import ServiceError

_COUNTS: Final = ("message_bytes_max", "unsent_bytes_max", "connections_max")
_TIMES: Final = ("message_s_max", "idle_s_max", "handshake_s_max")
TIME_S_MAX: Final = 10 * 366 * 86400.0  # ten years: who gives more, or math.inf, means for ever


@dataclass(frozen=True, slots=True)
class Options:
    """See TcpClient.listen for what each of them means."""

    point: str
    framer: str
    message_bytes_max: int
    unsent_bytes_max: int
    on_close: str | None
    on_end: str | None
    on_room: str | None
    on_worker_death: str | bytes
    with_peer: bool
    message_s_max: float | None
    idle_s_max: float | None
    handshake_s_max: float
    tls: dict[str, str] | None
    connections_max: int = 1
    connections_per_address_max: int | None = None
    on_open: str | None = None
    proxy_protocol: bool = False
    reuse_port: bool = False
    mode: int | None = None

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ServiceError(f"{name} must be at least 1, {name}={getattr(self, name)}")
        for name in _TIMES:
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if not seconds > 0:
                raise ServiceError(f"{name} must be above 0, or None for ever, {name}={seconds}")
            object.__setattr__(self, name, min(seconds, TIME_S_MAX))
        limit = self.connections_per_address_max
        if limit is not None and limit < 1:
            raise ServiceError(
                "connections_per_address_max must be at least 1, or None for no limit, "
                f"connections_per_address_max={limit}"
            )

    def difference(self, there: Options) -> str:
        """Return which of these are not as those of a listener that is there already."""
        names = [f.name for f in fields(self) if getattr(self, f.name) != getattr(there, f.name)]
        return ", ".join(
            f"{name}={getattr(self, name)!r} (there: {getattr(there, name)!r})" for name in names
        )

    def check_message_fits(self, bytes_max: int) -> None:
        """Raise ServiceError if a message may become longer than what fits into a job."""
        if self.message_bytes_max > bytes_max:
            raise ServiceError(
                "such a message does not fit into a job: lower message_bytes_max, or give the "
                f"supervisor larger lanes (lane_bytes), wanted={self.message_bytes_max}, "
                f"max={bytes_max}"
            )
