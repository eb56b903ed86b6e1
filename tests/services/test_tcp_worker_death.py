from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aembus
from aembus.services.tcp_client import TcpClient
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.running import tcp_counts, until, workers
from tests.telecom.support import request

ANSWER_S_MAX = 1.0  # what is promised
WHATS = {
    "redeliver": "redeliver",
    "close": "close",
    "bytes": b"503 try again\n",
    "function": "tests.services.test_tcp_worker_death:unavailable",
    "sip": "examples.telecom.sip_message:unavailable",
    "broken function": "tests.services.test_tcp_worker_death:raises",
    "text function": "tests.services.test_tcp_worker_death:says_text",
}


def unavailable(message: bytes) -> bytes:
    """Make a failure answer of a request, as a SIP 503 takes its headers from there."""
    return b"503 " + message + b"\n"


def raises(message: bytes) -> bytes:
    """Fail to make one."""
    raise ValueError(message)


def says_text(message: bytes) -> str:
    """Make one that is no bytes."""
    return "503"


def serve(bus: aembus.Bus) -> None:
    """Entry point: echoes lines; some of them kill it, always or the first time."""
    tcp = bus.service("tcp")
    what = WHATS[os.environ["TEST_WHAT"]]
    framer = os.environ.get("TEST_FRAMER", "line")
    tcp.listen(os.environ["TEST_ADDRESS"], "line", framer=framer, on_worker_death=what)

    waiting = bus.counter("waiting")

    @bus.on("line", group="g")
    def line(event: aembus.Event, connection: int, data: bytes) -> None:
        assert event.job is not None
        if (
            data == b"always die"
            or data.startswith(b"OPTIONS ")
            or (data == b"die" and event.job.attempt == 1)
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"wait":
            waiting.add()
            time.sleep(60)
        tcp.send(connection, b"done %s\n" % data)


@contextmanager
def serving(bus_name: str, directory: Path) -> Iterator[None]:
    """Run a bus with one worker that serves."""
    spec = aembus.WorkerSpec("w", "tests.services.test_tcp_worker_death:serve")
    with aembus.Supervisor(bus_name, services=["tcp"], workers=[spec], state_directory=directory):
        yield


@pytest.fixture
def port(free_port: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The port that the worker listens on."""
    monkeypatch.setenv("TEST_ADDRESS", f"127.0.0.1:{free_port}")
    return free_port


class Peer:
    """A TCP client that asks by lines."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10.0)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def ask(self, line: bytes) -> bytes:
        self.socket.sendall(line + b"\n")
        return self._file.readline()

    def ask_in_time(self, line: bytes) -> bytes:
        """Ask what kills the worker; the answer, or the end, has to come within the promise."""
        self.socket.settimeout(ANSWER_S_MAX + 0.5)  # the death itself comes a moment later
        try:
            return self.ask(line)
        finally:
            self.socket.settimeout(10.0)


def points(directory: Path) -> list[tuple[str, str]]:
    """Return which jobs became dead letters, and why."""
    return [(letter["point"], letter["reason"]) for letter in DeadLetters(directory).read()]


def test_a_request_is_redelivered(
    bus_name: str, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default: the same connection gets the answer of the replacement."""
    monkeypatch.setenv("TEST_WHAT", "redeliver")
    with serving(bus_name, tmp_path), Peer(port) as peer:
        assert peer.ask(b"one") == b"done one\n"
        assert peer.ask(b"die") == b"done die\n"
        assert peer.ask(b"two") == b"done two\n"
        assert tcp_counts(bus_name)["accepted"] == 1
    assert points(tmp_path) == []


def test_a_request_that_is_given_up_closes_its_connection(
    bus_name: str, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that kills three workers leaves no peer waiting, and the others are served."""
    monkeypatch.setenv("TEST_WHAT", "redeliver")
    with serving(bus_name, tmp_path), Peer(port) as peer, Peer(port) as other:
        assert peer.ask(b"always die") == b""
        assert other.ask(b"two") == b"done two\n"
        assert len(points(tmp_path)) == 1


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("close", b""),
        ("bytes", b"503 try again\n"),
        ("function", b"503 die\n"),
        ("broken function", b""),
        ("text function", b""),
    ],
)
def test_a_request_is_answered_at_once(
    bus_name: str,
    tmp_path: Path,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    answer: bytes,
) -> None:
    """As configured, once, and without a second delivery; other connections stay."""
    monkeypatch.setenv("TEST_WHAT", what)
    with serving(bus_name, tmp_path), Peer(port) as peer, Peer(port) as other:
        assert other.ask(b"zero") == b"done zero\n"
        assert peer.ask_in_time(b"die") == answer
        if answer:
            assert peer.ask(b"one") == b"done one\n"  # the same connection, and no "done die"
        assert other.ask(b"two") == b"done two\n"
        (worker,) = workers(bus_name)
        assert (worker["restarts"], worker["dead_lettered"]) == (1, 1)
        assert tcp_counts(bus_name)["worker_deaths"] == 1
    ((point, reason),) = points(tmp_path)
    assert (point, "service has seen to it" in reason) == ("line", True)


def test_a_sip_request_gets_503(
    bus_name: str, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole response, made of the request; the connection and the next request go on."""
    monkeypatch.setenv("TEST_WHAT", "sip")
    monkeypatch.setenv("TEST_FRAMER", "examples.telecom.sip_framer:SipFramer")
    with serving(bus_name, tmp_path), Peer(port) as peer:
        for number in (1, 2):
            sent = request(b"OPTIONS", call_id=b"call-%d@x" % number)
            peer.socket.sendall(sent)
            lines = [line.strip() for line in iter(peer._file.readline, b"\r\n")]
            assert lines[0] == b"SIP/2.0 503 Service Unavailable"
            assert b"Call-ID: call-%d@x" % number in lines
            until("it is back", lambda: workers(bus_name)[0]["state"] == "running")


def test_what_is_queued_behind_waits_for_the_replacement(
    bus_name: str, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the message in hand is answered with the failure."""
    monkeypatch.setenv("TEST_WHAT", "bytes")
    with serving(bus_name, tmp_path), Peer(port) as peer:
        peer.socket.sendall(b"wait\none\ntwo\n")
        (worker,) = until(
            "it is in hand, and the others wait",
            lambda: [
                w for w in workers(bus_name) if w["queued"] == 3 and w["counters"].get("waiting")
            ],
        )
        os.kill(worker["pid"], signal.SIGKILL)
        assert [peer._file.readline() for _ in range(3)] == [
            b"503 try again\n",
            b"done one\n",
            b"done two\n",
        ]


def test_a_degraded_worker_leaves_nobody_waiting(
    bus_name: str, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is not restarted at once, what is queued for it is answered as well."""
    monkeypatch.setenv("TEST_WHAT", "bytes")
    with serving(bus_name, tmp_path), Peer(port) as peer:
        for _ in range(6):
            assert peer.ask_in_time(b"always die") == b"503 try again\n"
            until("it is back", lambda: workers(bus_name)[0]["state"] == "running")
        assert peer.ask(b"one") == b"done one\n"


def test_what_makes_no_sense_is_refused(bus_name: str, tmp_path: Path, free_port: int) -> None:
    """By the one who listens, with the reason."""
    with (
        aembus.Supervisor(bus_name, services=["tcp"], state_directory=tmp_path),
        aembus.connect(bus_name) as bus,
    ):
        tcp: TcpClient = bus.service("tcp")
        address = f"127.0.0.1:{free_port}"
        for wrong in ("explode", "no_such_module:f", "os:no_such_function", "os:name"):
            with pytest.raises(aembus.CallFailed, match="on_worker_death"):
                tcp.listen(address, "p", on_worker_death=wrong)
        with pytest.raises(ValueError, match="import"):
            tcp.listen(address, "p", on_worker_death=lambda message: b"")
        assert tcp.listen(address, "p", on_worker_death=unavailable) == address
        with pytest.raises(aembus.CallFailed, match="other options"):
            tcp.listen(address, "p")
