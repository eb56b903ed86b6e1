"""What the TCP service still takes in once its bus is about to stop: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from typing import Any

from aembus.services.base import Caller
from aembus.services.tcp import TcpService
from aembus.services.tcp_connection import MESSAGES_A_TURN

CALLER = Caller(1, 10)


class Host:
    """A host with room for everything: it counts what its services activate."""

    job_bytes_max = 65536
    is_supervisor = True
    kept = None

    def __init__(self) -> None:
        self.activated = 0
        self.has_begun = asyncio.Event()
        self.has_listeners = True
        self._sources = itertools.count(1)
        self.new_source = self._sources.__next__
        self.now_ns = time.monotonic_ns

    def point(self, name: str, source: int) -> Host:
        """See Host: one stands for all."""
        return self

    def activate(self, *data: Any, **options: Any) -> int:
        """See Host and SourcePoint."""
        self.activated += 1
        self.has_begun.set()
        return 1

    def has_events(self, point: str) -> bool:
        """See Host."""
        return self.has_listeners

    def congested(self, source: int) -> bool:
        """See Host."""
        return False

    def keep(self, data: Any) -> None:
        """See Host."""

    def forget_source(self, source: int) -> None:
        """See Host."""


def listen(service: TcpService) -> tuple[str, int]:
    """Have a service listen, and return where."""
    given = {
        "point": "x", "framer": "line", "message_bytes_max": 100, "unsent_bytes_max": 100,
        "on_close": None, "on_end": None, "on_room": None, "on_worker_death": "close",
        "with_peer": False, "message_s_max": None, "idle_s_max": None, "handshake_s_max": 1.0,
        "tls": None,
    }  # fmt: skip
    host, _, port = service.listen(CALLER, "127.0.0.1:0", given).rpartition(":")
    return host, int(port)


def test_a_flood_that_is_under_way_is_not_read_on() -> None:
    """Else workers would be fed for as long as they are given to drain."""

    async def run(stack: contextlib.ExitStack) -> None:
        host = Host()
        service = TcpService(host)  # type: ignore[arg-type]
        peer = stack.enter_context(socket.create_connection(listen(service)))
        peer.sendall(b"x\n" * 30_000)
        async with asyncio.timeout(20):
            await host.has_begun.wait()
        service.close_intakes()
        taken = host.activated
        assert MESSAGES_A_TURN <= taken < 30_000
        host.has_listeners = False
        service.on_registry_changed()
        host.has_listeners = True
        service.on_registry_changed()
        for _ in range(100):
            await asyncio.sleep(0)
        assert host.activated == taken
        await service.stop()

    with contextlib.ExitStack() as stack:
        asyncio.run(run(stack))
