from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import aembus
from tests.support.running import adds_up, sip_responder, statistics, until
from tests.support.sipp import Sipp

pytestmark = pytest.mark.e2e

MODULE = "tests.services.test_tcp_hosts"
HOSTS = 2
CONNECTIONS = 16


def echo(bus: aembus.Bus) -> None:
    """Entry point: sends each line back, with a mark."""
    tcp = bus.service("tcp")

    @bus.on("line", group="g")
    def line(event: aembus.Event, connection: int, data: bytes) -> None:
        tcp.send(connection, b"> " + data + b"\n")

    Path(os.environ["ECHO_ADDRESS"]).write_text(tcp.listen("127.0.0.1:0", "line", framer="line"))


@contextmanager
def running(bus: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the echo server with tcp in hosts; yields its address."""
    monkeypatch.setenv("ECHO_ADDRESS", str(directory / "address"))
    with aembus.Supervisor(
        bus,
        services=[aembus.ServiceSpec("tcp", hosts=HOSTS)],
        workers=[aembus.WorkerSpec("w", f"{MODULE}:echo", count=2)],
        state_directory=directory,
        log_level="CRITICAL",
    ):
        yield (directory / "address").read_text()


def dial(address: str) -> socket.socket:
    """Connect to the echo server."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=10.0)
    connection.settimeout(10.0)
    return connection


def answers(connection: socket.socket, text: bytes) -> bool:
    """Say whether a line comes back; False if the connection is closed."""
    try:
        connection.sendall(text + b"\n")
        return connection.recv(4096) == b"> " + text + b"\n"
    except ConnectionError:
        return False


def per_host(bus: str, figure: str) -> dict[str, int]:
    """Return one of the service's counts, for each host."""
    services: list[dict[str, Any]] = statistics(bus)["services"]
    return {s["host"]: s.get(figure, 0) for s in services if s["name"] == "tcp"}


def test_hosts_share_a_port(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has connections of its own, and every answer finds the way back to its own."""
    with running(bus_name, tmp_path, monkeypatch) as address:
        dialled = [dial(address) for _ in range(CONNECTIONS)]
        for number, connection in enumerate(dialled):
            assert answers(connection, b"%d" % number)
        accepted = per_host(bus_name, "accepted")
        assert len(accepted) == HOSTS
        assert sum(accepted.values()) == CONNECTIONS
        assert all(accepted.values()), "the kernel has given all to one of them"
        for connection in dialled:
            connection.close()
        assert adds_up(statistics(bus_name)["totals"])


def test_a_host_that_dies_takes_its_own_connections_with_it(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on; its replacement listens at the same port without being told."""
    with running(bus_name, tmp_path, monkeypatch) as address:
        dialled = [dial(address) for _ in range(CONNECTIONS)]
        assert all(answers(connection, b"before") for connection in dialled)
        before = per_host(bus_name, "accepted")
        host = next(m for m in statistics(bus_name)["members"] if m["kind"] == "host")
        os.kill(host["pid"], signal.SIGKILL)
        alive = [connection for connection in dialled if answers(connection, b"after")]
        assert len(alive) == CONNECTIONS - before[host["name"]]
        until("it listens again", lambda: per_host(bus_name, "listeners")[host["name"]] == 1)
        again: list[socket.socket] = []

        def reached() -> bool:
            again.append(dial(address))
            assert answers(again[-1], b"again")
            return per_host(bus_name, "accepted")[host["name"]] > 0

        until("it accepts again", reached)
        assert all(answers(connection, b"still") for connection in alive)
        for connection in (*dialled, *again):
            connection.close()


def test_what_a_host_cannot_promise_is_refused(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answering for a worker that died is the supervisor's: a host says so at once."""
    with running(bus_name, tmp_path, monkeypatch), aembus.connect(bus_name) as client:
        with pytest.raises(aembus.CallFailed, match="service host"):
            client.service("tcp").listen("127.0.0.1:0", "other", on_worker_death="close")


def test_sip_over_hosts(bus_name: str, free_port: int, tmp_path: Path) -> None:
    """The SIP responder answers calls over two hosts as it does over one."""
    with sip_responder(bus_name, free_port, "--tcp-hosts", "2") as responder:
        sipp = Sipp(tmp_path, free_port, "-t", "t1", "-m", "400", "-r", "200")
        assert sipp.counts() == (400, 0)
        assert adds_up(statistics(bus_name)["totals"])
        assert responder.end() == 0
