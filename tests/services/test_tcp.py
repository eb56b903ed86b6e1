from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import aembus
from aembus.services.framing import Answer, Message
from tests.support.running import adds_up, statistics, tcp_counts, until, workers

TIMEOUT_S = 10.0


class KeyedFramer:
    """Lines ``key:text``; an empty line is answered on the spot."""

    def __init__(self, message_bytes_max: int) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Sequence[Message | Answer]:
        """See aembus.services.framing.Framer."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [Message(line, line.split(b":")[0]) if line else Answer(b"pong\n") for line in lines]


def echo(bus: aembus.Bus) -> None:
    """Entry point: echoes lines, prefixed by the worker's name; some words are commands."""
    tcp = bus.service("tcp")
    framer = os.environ.get("TEST_FRAMER", "line")
    tcp.listen(
        os.environ["TEST_ADDRESS"],
        "line",
        framer=framer,
        message_bytes_max=1000,
        connections_max=3,
        on_open="opened",
        on_close="closed",
    )
    opened, closed = bus.counter("opened"), bus.counter("closed")

    @bus.on("line", group="g")
    def line(event: aembus.Event, connection: int, data: bytes) -> None:
        if data == b"die":
            assert event.job is not None
            if event.job.attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        if data == b"close":
            tcp.send(connection, b"bye\n")
            tcp.close(connection)
        elif data == b"flood":
            tcp.send(connection, b"x" * 100_000)
        elif data.startswith(b"slow"):
            while not os.path.exists(os.environ["TEST_GATE"]):
                time.sleep(0.01)
        else:
            tcp.send(connection, bus.member_name.encode() + b" " + data + b"\n")

    @bus.on("opened", group="g")
    def on_open(event: aembus.Event, connection: int, peer: str) -> None:
        assert peer.startswith("127.0.0.1:")
        opened.add()

    @bus.on("closed", group="g")
    def on_close(event: aembus.Event, connection: int) -> None:
        closed.add()


@contextmanager
def serving(bus_name: str, directory: Path, count: int = 1) -> Iterator[None]:
    """Run a bus whose workers echo."""
    spec = aembus.WorkerSpec("w", "tests.services.test_tcp:echo", count=count)
    with aembus.Supervisor(
        bus_name, services=["tcp"], workers=[spec], state_directory=directory, lane_bytes=4096
    ):
        yield


@pytest.fixture
def port(free_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """The port that the workers listen on."""
    monkeypatch.setenv("TEST_ADDRESS", f"127.0.0.1:{free_port}")
    monkeypatch.setenv("TEST_GATE", str(tmp_path / "gate"))
    return free_port


class Peer:
    """A blocking TCP client that reads lines."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        return self._file.readline()

    def ask(self, data: bytes) -> bytes:
        self.send(data + b"\n")
        return self.line()


def test_lines_are_answered(bus_name: str, port: int, tmp_path: Path) -> None:
    """Messages reach a worker and its answers come back in order, on several connections."""
    with serving(bus_name, tmp_path), Peer(port) as a, Peer(port) as b:
        for number in range(50):
            a.send(b"a%d\n" % number)
            b.send(b"b%d\n" % number)
        assert [a.line() for _ in range(50)] == [b"w-1 a%d\n" % n for n in range(50)]
        assert [b.line() for _ in range(50)] == [b"w-1 b%d\n" % n for n in range(50)]


def test_a_connection_stays_with_its_worker(bus_name: str, port: int, tmp_path: Path) -> None:
    """A framer that names no key keeps each connection with one worker."""
    with serving(bus_name, tmp_path, 2), Peer(port) as a, Peer(port) as b, Peer(port) as c:
        for peer in (a, b, c):
            assert len({peer.ask(b"x") for _ in range(10)}) == 1


def test_a_users_framer_names_the_key(
    bus_name: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of one key reach one worker from any connection; the framer may answer itself."""
    monkeypatch.setenv("TEST_FRAMER", "tests.services.test_tcp:KeyedFramer")
    with serving(bus_name, tmp_path, 2), Peer(port) as a, Peer(port) as b:
        names: dict[int, set[bytes]] = {}
        for number in range(40):
            key = number % 8
            answer = (a if number % 3 else b).ask(b"%d:x" % key)
            names.setdefault(key, set()).add(answer.split()[0])
        assert all(len(found) == 1 for found in names.values())
        assert len(set.union(*names.values())) == 2
        assert a.ask(b"") == b"pong\n"


def test_a_connection_survives_its_worker(bus_name: str, port: int, tmp_path: Path) -> None:
    """When a worker dies with a message in hand, its replacement answers on the same connection."""
    with serving(bus_name, tmp_path), Peer(port) as peer:
        assert peer.ask(b"one") == b"w-1 one\n"
        assert peer.ask(b"die") == b"w-1 die\n"
        assert peer.ask(b"two") == b"w-1 two\n"
        assert workers(bus_name)[0]["restarts"] == 1


def test_too_long_a_message_ends_its_connection(bus_name: str, port: int, tmp_path: Path) -> None:
    """A message over the limit costs its sender the connection, and nobody else."""
    with serving(bus_name, tmp_path), Peer(port) as good, Peer(port) as bad:
        bad.send(b"x" * 5000)
        assert bad.line() == b""
        assert good.ask(b"still") == b"w-1 still\n"
        assert tcp_counts(bus_name)["framing_errors"] == 1


def test_too_many_connections_are_refused(bus_name: str, port: int, tmp_path: Path) -> None:
    """A connection beyond the limit is closed at once; when another ends, there is room again."""
    with serving(bus_name, tmp_path), Peer(port) as a, Peer(port) as b:
        with Peer(port) as c:
            for peer in (a, b, c):
                assert peer.ask(b"x")
            with Peer(port) as d, contextlib.suppress(ConnectionResetError):
                assert d.line() == b""
            assert tcp_counts(bus_name)["refused"] == 1
        until("c is gone", lambda: tcp_counts(bus_name)["connections"] == 2)
        with Peer(port) as e:
            assert e.ask(b"x")


def test_open_and_close_are_told(bus_name: str, port: int, tmp_path: Path) -> None:
    """Points named for it hear of each new connection and of each end, on either side."""
    with serving(bus_name, tmp_path):
        with Peer(port) as a:
            a.ask(b"x")
        with Peer(port) as b:
            assert b.ask(b"close") == b"bye\n"
            assert b.line() == b""
        until(
            "both are told",
            lambda: workers(bus_name)[0]["counters"] == {"opened": 2, "closed": 2},
        )


def test_a_busy_worker_stops_its_connection_only(bus_name: str, port: int, tmp_path: Path) -> None:
    """What a full worker cannot take is parked, then its sender is held; others are served.

    Nothing is lost: when the worker goes on, everything is answered, in order.
    """
    with serving(bus_name, tmp_path, 2), Peer(port) as probe:
        peers = [probe, Peer(port), Peer(port)]
        home = {peer: peer.ask(b"x").split()[0] for peer in peers}
        if len(set(home.values())) == 1:  # all three hash to one worker: move one
            peers[2].__exit__()
            until("gone", lambda: tcp_counts(bus_name)["connections"] == 2)
            while (peer := Peer(port)).ask(b"x").split()[0] == home[probe]:
                peer.__exit__()
                until("gone", lambda: tcp_counts(bus_name)["connections"] == 2)
            peers[2] = peer
            home[peer] = b"other"
        other = next(p for p in peers if home[p] != home[probe])
        line = b"y" * 900
        count = 4000
        sender = threading.Thread(
            target=lambda: probe.send(b"slow\n" + b"".join(line + b"\n" for _ in range(count)))
        )
        sender.start()
        until("it is held", lambda: tcp_counts(bus_name).get("pauses", 0) > 0)
        for _ in range(20):
            assert other.ask(b"still") == workers_name(other, home) + b" still\n"
        (tmp_path / "gate").touch()
        prefix = home[probe] + b" "
        for _ in range(count):
            assert probe.line() == prefix + line + b"\n"
        sender.join()
        for peer in peers:
            peer.__exit__()
        totals = statistics(bus_name)["totals"]
        assert adds_up(totals)
        assert totals["dead_lettered"] == 0


def workers_name(peer: Peer, home: dict[Peer, bytes]) -> bytes:
    """Return the name of the worker that serves a peer."""
    name = home[peer]
    return peer.ask(b"name").split()[0] if name == b"other" else name


def test_a_peer_that_does_not_read_is_cut_off(bus_name: str, port: int, tmp_path: Path) -> None:
    """Unsent bytes are bounded: who leaves too much unread loses the connection."""
    with serving(bus_name, tmp_path), Peer(port) as greedy, Peer(port) as good:
        greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.send(b"flood\n" * 200)
        until("it is cut off", lambda: tcp_counts(bus_name).get("slow_readers", 0) == 1)
        assert good.ask(b"still") == b"w-1 still\n"


def test_a_port_in_use_is_told(bus_name: str, port: int, tmp_path: Path) -> None:
    """Listening where another process listens fails the start, with the address in the message."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with (
            pytest.raises(aembus.SupervisorError, match=rf"127.0.0.1:{port}.*in use"),
            serving(bus_name, tmp_path),
        ):
            pass


def test_a_listener_with_other_options_is_refused(bus_name: str, port: int, tmp_path: Path) -> None:
    """Asking for an address that is listened on joins with the same options only."""
    with serving(bus_name, tmp_path), aembus.connect(bus_name) as client:
        tcp = client.service("tcp")
        with pytest.raises(aembus.CallFailed, match="other options"):
            tcp.listen(f"127.0.0.1:{port}", "elsewhere")
        with pytest.raises(aembus.CallFailed, match="host:port"):
            tcp.listen("nonsense", "elsewhere", message_bytes_max=1000)
        with pytest.raises(aembus.CallFailed, match="known"):
            tcp.listen("127.0.0.1:0", "elsewhere", framer="nonsense", message_bytes_max=1000)
        with pytest.raises(aembus.CallFailed, match="lane_bytes"):
            tcp.listen("127.0.0.1:0", "elsewhere")
