"""A full listener: whom it refuses, how soon, and who comes in next."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable

from aembus.services.tcp_address import PROBES, bind
from aembus.services.tcp_handshakes import Handshakes
from aembus.services.tcp_limits import REFUSED
from aembus.services.tcp_listener import REFUSALS_MAX, Listener, find_parts
from aembus.services.tcp_options import Options
from aembus.services.tcp_outgoing import open_socket

CONNECTIONS_MAX = 3


class Roomy:
    """A host that always has room."""

    def new_source(self) -> int:
        """See services.base.Host."""
        return 1

    def congested(self, source: int) -> bool:
        """See services.base.Host."""
        return False

    def forget_source(self, source: int) -> None:
        """See services.base.Host."""


class Acceptor:
    """Keeps what is accepted, and tells of each change."""

    def __init__(self) -> None:
        self.host = Roomy()
        self.changed = asyncio.Event()
        self.handshakes = Handshakes(asyncio.get_running_loop())
        self.accepted_sockets: list[socket.socket] = []
        self.counts: Counter[str] = Counter()

    def accepted(self, listener: Listener, connected: socket.socket, name: object) -> None:
        """See tcp_listener.Acceptor."""
        self.accepted_sockets.append(connected)
        self.changed.set()

    def count(self, what: str) -> None:
        """See tcp_listener.Acceptor."""
        self.counts[what] += 1
        self.changed.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(20):
            while not is_so():
                self.changed.clear()
                await self.changed.wait()


def rests(listener: Listener) -> bool:
    """Say whether it accepts nothing now."""
    return not listener.is_accepting


def test_a_full_listener_rests_between_refusals() -> None:
    """A flood is refused in pieces, and counted; a connection that ends lets the next in."""

    async def run(stack: contextlib.ExitStack) -> None:
        acceptor = Acceptor()
        options = Options(
            point="x",
            framer="raw",
            message_bytes_max=1,
            unsent_bytes_max=1,
            on_close=None,
            on_end=None,
            on_room=None,
            on_worker_death="close",
            with_peer=False,
            message_s_max=None,
            idle_s_max=None,
            handshake_s_max=1.0,
            tls=None,
            connections_max=CONNECTIONS_MAX,
        )
        bound = bind("127.0.0.1:0", reuse_port=False, mode=None)
        parts = find_parts(options, server_side=True)
        listener = Listener(asyncio.get_running_loop(), bound, parts, acceptor)
        stack.callback(listener.close)
        peers = 2 * REFUSALS_MAX + CONNECTIONS_MAX + 1
        for _ in range(peers):
            stack.enter_context(socket.create_connection(bound.getsockname(), 20))
        listener.start()
        await acceptor.until(lambda: acceptor.counts[REFUSED] == REFUSALS_MAX)
        assert rests(listener)
        assert len(acceptor.accepted_sockets) == CONNECTIONS_MAX

        listener.leave("")
        assert not rests(listener)
        await acceptor.until(lambda: len(acceptor.accepted_sockets) > CONNECTIONS_MAX)

        await acceptor.until(lambda: acceptor.counts[REFUSED] == 2 * REFUSALS_MAX)
        assert len(acceptor.accepted_sockets) == CONNECTIONS_MAX + 1
        for connected in acceptor.accepted_sockets:
            connected.close()

    with contextlib.ExitStack() as stack:
        asyncio.run(run(stack))


def test_every_socket_sends_at_once_and_looks_for_its_peer() -> None:
    """Either way: else an answer may wait for a delayed ACK, and who is gone never ends."""

    def check(connected: socket.socket) -> None:
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for option, value in PROBES.items():
            assert connected.getsockopt(socket.IPPROTO_TCP, option) == value

    async def run(stack: contextlib.ExitStack) -> None:
        bound = stack.enter_context(bind("127.0.0.1:0", reuse_port=False, mode=None))
        host, port = bound.getsockname()
        connected, _ = await open_socket(asyncio.get_running_loop(), f"{host}:{port}")
        stack.enter_context(connected)
        accepted = stack.enter_context(bound.accept()[0])
        check(connected)
        check(accepted)

    with contextlib.ExitStack() as stack:
        asyncio.run(run(stack))
