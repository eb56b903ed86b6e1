"""The state of the TCP service on its way to another version of it.

Plain data and descriptors: `pack` belongs to the version that gives, `unpack` to the one that gets.
A descriptor is named by its place in the list.

    {"listeners":   [{names, options, descriptor}, ...]
     "origins":     [{options, address}, ...]           of outgoing connections
     "connections": [{number, where it comes from, descriptor, what it and its stream say}, ...]
     "counts":      {...}}

Not here: what cannot cross.  That is a connection that speaks TLS, one that is only being opened,
and one whose framer does not say what is unfinished.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from aembus.services.base import HandOver

from .tcp_connection import Connection, Origin
from .tcp_listener import Listener
from .tcp_options import Options
from .tcp_outgoing import Outgoing


@dataclass(frozen=True, slots=True)
class Given:
    """What stands still, for it was given away: until it is known whether it arrives."""

    listeners: dict[str, Listener]
    connections: list[Connection]


def pack(
    listeners: Mapping[str, Listener],
    connections: Iterable[Connection],
    counts: Mapping[str, int],
) -> HandOver:
    """Return the state of what crosses; all of it stands still already.

    Raises: OSError: there are no descriptors for copies; none is left open.
    """
    descriptors: list[int] = []
    packed: list[dict[str, Any]] = []
    outgoing: list[dict[str, Any]] = []
    places: dict[int, list[Any]] = {}  # of an origin's id(): which list it is in, and where
    try:
        for listener in dict.fromkeys(listeners.values()):
            places[id(listener)] = ["listeners", len(packed)]
            names = [name for name, other in listeners.items() if other is listener]
            packed.append(
                {
                    "names": names,
                    "options": asdict(listener.options),
                    "descriptor": _copy(listener.socket, descriptors),
                }
            )
        states = []
        for connection in connections:
            origin = connection.origin
            if id(origin) not in places:  # outgoing, or of a listener that was stopped
                places[id(origin)] = ["origins", len(outgoing)]
                outgoing.append({"options": asdict(origin.options), "address": connection.peer})
            states.append(
                {
                    "number": connection.id,
                    "origin": places[id(origin)],
                    "descriptor": _copy(connection.stream.socket, descriptors),
                    "peer": connection.peer,
                    "counted_as": connection.counted_as,
                    **connection.state(),
                }
            )
    except OSError:
        close_all(descriptors)
        raise
    data = {
        "listeners": packed,
        "origins": outgoing,
        "connections": states,
        "counts": dict(counts),
    }
    return HandOver(data, descriptors)


def _copy(given: socket.socket, descriptors: list[int]) -> int:
    descriptors.append(os.dup(given.fileno()))
    return len(descriptors) - 1


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody has taken."""
    for descriptor in descriptors:
        os.close(descriptor)


@dataclass(slots=True)
class Unpacked:
    """What has arrived.

    names: of each listener.
    connections: the state of each, its socket, and where it comes from.
    """

    names: dict[str, Listener] = field(default_factory=dict)
    connections: list[tuple[dict[str, Any], socket.socket, Origin]] = field(default_factory=list)


class Unpacker:
    """Makes listeners, origins and sockets of a state.

    Args:
        handed: the state.
    """

    def __init__(self, handed: HandOver) -> None:
        self._data: dict[str, Any] = handed.data
        self._left = set(handed.descriptors)
        self._descriptors = list(handed.descriptors)
        self._sockets: list[socket.socket] = []

    def unpack(
        self,
        make_listener: Callable[[Options, socket.socket], Listener],
        make_outgoing: Callable[[Options, str], Outgoing],
    ) -> Unpacked:
        """Return what there is.  Raises: what the two raise; `close` is up to the caller then."""
        unpacked = Unpacked()
        made: dict[str, list[Origin]] = {"listeners": [], "origins": []}
        for packed in self._data["listeners"]:
            bound = self._socket(packed["descriptor"])
            listener = make_listener(Options(**packed["options"]), bound)
            made["listeners"].append(listener)
            unpacked.names.update(dict.fromkeys(packed["names"], listener))
        for packed in self._data["origins"]:
            options = Options(**packed["options"])
            made["origins"].append(make_outgoing(options, packed["address"]))
        for state in self._data["connections"]:
            kind, place = state["origin"]
            connected = self._socket(state["descriptor"])
            unpacked.connections.append((state, connected, made[kind][place]))
        return unpacked

    def close(self) -> None:
        """Let go of everything."""
        for opened in self._sockets:
            opened.close()
        close_all(self._left)
        self._sockets, self._left = [], set()

    def _socket(self, place: int) -> socket.socket:
        descriptor = self._descriptors[place]
        made = socket.socket(fileno=descriptor)
        self._left.discard(descriptor)
        made.setblocking(False)
        self._sockets.append(made)
        return made
