"""Somebody who speaks over a bus's control socket by hand."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aembus.control import FrameReader, pack_frame
from aembus.shm import names


class Peer:
    """One connection, after its greeting."""

    def __init__(self, bus: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20.0)
        self.socket.connect(str(names.control_path(bus)))
        self._reader = FrameReader()
        hello = self.read()
        self.send({"hello": hello["hello"], "pid": os.getpid()})

    def send(self, message: dict[str, Any]) -> None:
        self.socket.sendall(pack_frame(message))

    def read(self) -> dict[str, Any]:
        """Return the next frame; none if the supervisor has hung up."""
        frames: list[dict[str, Any]] = []
        while not frames:
            data = self.socket.recv(65536)
            if not data:
                return {}
            frames = self._reader.feed(data)
        return frames[0]


@contextmanager
def peer_of(bus: str) -> Iterator[Peer]:
    """Speak with the supervisor until the end of the block."""
    peer = Peer(bus)
    with peer.socket:
        yield peer
