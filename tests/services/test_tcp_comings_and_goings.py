"""What `on_open` and `on_close` tell while nobody has room for it."""

from __future__ import annotations

import socket
from collections import defaultdict
from pathlib import Path

import pytest

import aembus
from tests.support.running import tcp_counts, until

pytestmark = pytest.mark.e2e

SOON_S = 20.0
AT_ONCE = 50
MOST = 10_000  # connections, each told of twice, are more than is kept for a member without room
MORE = 20


def come_and_go(address: tuple[str, int], times: int) -> int:
    """Connect, and close at once; return how often."""
    for _ in range(times):
        socket.create_connection(address, SOON_S).close()
    return times


def test_a_listener_accepts_nothing_while_too_many_ends_wait(bus_name: str, tmp_path: Path) -> None:
    """Who comes and goes cannot fill the memory; when there is room, all of it is told in order."""
    told: dict[int, list[str]] = defaultdict(list)
    with (
        aembus.Supervisor(bus_name, services=["tcp"], state_directory=tmp_path, lane_bytes=4096),
        aembus.connect(bus_name) as bus,
    ):
        bus.register("line", print)
        bus.register("opened", lambda event, number, peer: told[number].append("opened"))
        bus.register("closed", lambda event, number: told[number].append("closed"))
        host, port = (
            bus.service("tcp")
            .listen(
                "127.0.0.1:0",
                "line",
                framer="line",
                message_bytes_max=1000,
                on_open="opened",
                on_close="closed",
            )
            .split(":")
        )
        address, came = (host, int(port)), 0
        while not tcp_counts(bus_name).get("accept_pauses"):
            assert came < MOST, "everybody is accepted, and never told of"
            came += come_and_go(address, AT_ONCE)
        accepted = tcp_counts(bus_name)["accepted"]
        came += come_and_go(address, MORE)
        assert tcp_counts(bus_name)["accepted"] == accepted
        assert accepted < came

        def all_told() -> bool:
            bus.poll(0.01)
            return len(told) == came and all(len(words) == 2 for words in told.values())

        until("all is told", all_told, SOON_S)
        assert all(words == ["opened", "closed"] for words in told.values())
        assert tcp_counts(bus_name)["connections"] == 0
