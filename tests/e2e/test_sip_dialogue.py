from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from examples.telecom.sip_framer import SipFramer
from examples.telecom.sip_message import Response, parse, unavailable
from tests.support.running import sip_responder, statistics, until, workers
from tests.telecom.support import MESSAGE_BYTES_MAX, invite, request

pytestmark = pytest.mark.e2e

TIMEOUT_S = 10.0


class Phone:
    """A SIP client that sends bytes and reads whole responses."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._framer = SipFramer(MESSAGE_BYTES_MAX)
        self._responses: list[Response] = []

    def __enter__(self) -> Phone:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def address(self) -> tuple[bytes, bytes]:
        host, port = self._socket.getsockname()
        return host.encode(), b"%d" % port

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def response(self) -> Response:
        while not self._responses:
            data = self._socket.recv(65536)
            assert data, "the connection was closed"
            for frame in self._framer.feed(data):
                message = parse(frame.data)
                assert isinstance(message, Response)
                self._responses.append(message)
        return self._responses.pop(0)

    def ask(self, data: bytes) -> int:
        self.send(data)
        return self.response().status

    def ended(self) -> bool:
        return self._socket.recv(1) == b""


@pytest.fixture
def phone(bus_name: str, free_port: int) -> Iterator[Phone]:
    """A phone at a responder that answers at once."""
    with sip_responder(bus_name, free_port), Phone(free_port) as phone:
        yield phone


@pytest.fixture
def ringing_phone(bus_name: str, free_port: int) -> Iterator[Phone]:
    """A phone at a responder that lets calls ring for 1.5 s."""
    with sip_responder(bus_name, free_port, "--ring", "1.5"), Phone(free_port) as phone:
        yield phone


def test_a_client_learns_its_address(phone: Phone) -> None:
    """The answer's Via tells the address and port that the request came from, where asked."""
    phone.send(request().replace(b"branch=z9hG4bK-1", b"branch=z9hG4bK-1;rport"))
    via = phone.response().vias[0]
    assert (via.params[b"received"], via.params[b"rport"]) == phone.address
    assert via.host == b"192.0.2.1"


def test_a_call_and_what_belongs_to_none(bus_name: str, phone: Phone) -> None:
    """A call is set up and ended, and what fits no call is refused, on one connection."""
    phone.send(invite())
    answer = phone.response()
    assert answer.status == 200
    tag = answer.to.tag
    assert tag is not None
    phone.send(request(b"ACK", branch=b"z9hG4bK-2", to_tag=tag))
    assert phone.ask(request(b"BYE", branch=b"z9hG4bK-3", cseq=2, to_tag=b"wrong")) == 481
    assert phone.ask(request(b"BYE", branch=b"z9hG4bK-4", cseq=2, to_tag=tag)) == 200
    assert phone.ask(request(b"CANCEL", branch=b"z9hG4bK-5")) == 481
    assert phone.ask(request(b"OPTIONS", branch=b"z9hG4bK-6")) == 200
    assert phone.ask(request(b"REGISTER", branch=b"z9hG4bK-7", uri=b"sip:127.0.0.1")) == 200
    assert phone.ask(request(b"NOTIFY", branch=b"z9hG4bK-8")) in (405, 501)
    counters: dict[str, int] = {}
    for worker in workers(bus_name):
        for name, number in worker["counters"].items():
            counters[name] = counters.get(name, 0) + number
    assert (counters["calls"], counters["calls_ended"]) == (1, 1)
    assert counters["registrations"] == 1


def test_a_ringing_call_can_be_cancelled(bus_name: str, ringing_phone: Phone) -> None:
    """CANCEL while it rings: 200, and 487 for the INVITE; the ring timer is gone."""
    ringing_phone.send(invite())
    assert [ringing_phone.response().status for _ in range(2)] == [100, 180]
    ringing_phone.send(request(b"CANCEL"))
    assert [ringing_phone.response().status for _ in range(2)] == [200, 487]
    assert ringing_phone.ask(request(b"OPTIONS", branch=b"z9hG4bK-9")) == 200


def test_a_ringing_call_survives_its_worker(bus_name: str, ringing_phone: Phone) -> None:
    """The call is answered in its time although its worker was killed while it rang."""
    ringing_phone.send(invite())
    assert [ringing_phone.response().status for _ in range(2)] == [100, 180]
    victim = max(workers(bus_name), key=lambda worker: int(worker["delivered"]))
    os.kill(victim["pid"], signal.SIGKILL)
    answer = ringing_phone.response()
    assert answer.status == 200
    tag = answer.to.tag
    assert tag is not None
    ringing_phone.send(request(b"ACK", branch=b"z9hG4bK-2", to_tag=tag))
    assert ringing_phone.ask(request(b"BYE", branch=b"z9hG4bK-3", cseq=2, to_tag=tag)) == 200
    until("replacement", lambda: all(w["state"] == "running" for w in workers(bus_name)))
    assert sum(w["restarts"] for w in workers(bus_name)) == 1


def test_what_is_not_sip_is_refused(bus_name: str, phone: Phone, free_port: int) -> None:
    """Garbage gets a 400 and loses its connection; the next connection is served."""
    phone.send(b"HELLO WORLD\r\n\r\n")
    assert phone.response().status == 400
    assert phone.ended()
    with Phone(free_port) as other:
        assert other.ask(request()) == 200
    services = {service["name"]: service for service in statistics(bus_name)["services"]}
    assert services["tcp"]["framing_errors"] == 1


def test_the_503_carries_what_the_request_said() -> None:
    """Via, From, To, Call-ID and CSeq; and nothing is answered to an ACK."""
    response = parse(unavailable(request(b"OPTIONS")))
    assert isinstance(response, Response)
    assert (response.status, response.cseq.method) == (503, b"OPTIONS")
    assert response.get(b"Via") is not None
    assert unavailable(request(b"ACK")) == b""
