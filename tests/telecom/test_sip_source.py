from __future__ import annotations

import pytest

from examples.telecom.sip_message import Request, build_response, parse
from examples.telecom.sip_source import mark_source
from tests.telecom.support import request

VIA = b"SIP/2.0/TCP 192.0.2.1:5061;branch=z9hG4bK-1"


def answered(via: bytes, peer: str) -> list[bytes]:
    """The Via fields of the answer to a request with this Via field, from this peer."""
    message = parse(request().replace(VIA, via))
    assert isinstance(message, Request)
    message.check()
    mark_source(message, peer)
    return parse(build_response(message, 200, b"tag")).get_all(b"Via")


@pytest.mark.parametrize(
    ("via", "peer", "wanted"),
    [
        (VIA, "192.0.2.1:40000", VIA),
        (VIA, "203.0.113.7:40000", VIA + b";received=203.0.113.7"),
        (VIA + b";received=10.0.0.1", "203.0.113.7:1", VIA + b";received=203.0.113.7"),
        (VIA + b";received=10.0.0.1", "192.0.2.1:1", VIA),
        (
            VIA + b";rport",
            "192.0.2.1:40000",
            VIA + b";rport=40000;received=192.0.2.1",
        ),
        (VIA + b";rport=7", "192.0.2.1:40000", VIA + b";rport=7"),
        (
            b'SIP / 2.0 / TCP pbx ; branch=z9hG4bK1;x=";rport"',
            "203.0.113.7:1",
            b'SIP/2.0/TCP pbx;branch=z9hG4bK1;x=";rport";received=203.0.113.7',
        ),
        (
            b"SIP/2.0/TCP [2001:DB8:0::1];branch=z9hG4bK1",
            "[2001:db8::1]:40000",
            b"SIP/2.0/TCP [2001:DB8:0::1];branch=z9hG4bK1",
        ),
        (
            b"SIP/2.0/TCP [2001:db8::1];branch=z9hG4bK1",
            "[2001:db8::9]:40000",
            b"SIP/2.0/TCP [2001:db8::1];branch=z9hG4bK1;received=2001:db8::9",
        ),
        (VIA, "[::ffff:192.0.2.1]:40000", VIA),
        (VIA + b";rport", "unix:pid=1,uid=0", VIA + b";rport"),
    ],
)
def test_the_top_via_tells_the_source(via: bytes, peer: str, wanted: bytes) -> None:
    """`received` where the host is another one, `rport` where it is asked for, the rest stays."""
    assert answered(via, peer) == [wanted]


def test_the_other_elements_stay() -> None:
    """Only the top element is the peer's own, whether they share a field or not."""
    second, third = b"SIP/2.0/UDP a;branch=z9hG4bK-2;rport", b"SIP/2.0/UDP b;branch=z9hG4bK-3"
    found = answered(VIA + b", " + second + b"\r\nVia: " + third, "203.0.113.7:1")
    assert found == [VIA + b";received=203.0.113.7, " + second, third]
