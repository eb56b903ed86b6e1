from __future__ import annotations

import pytest

from examples.telecom.sip_inspection import ALLOW, inspect
from examples.telecom.sip_message import Header, Request, parse
from tests.telecom.support import SDP, invite, request


def refusal(data: bytes, users: frozenset[bytes] | None = None) -> tuple[int, dict[bytes, bytes]]:
    """The status that a message is refused with, 0 if it is not, and the headers."""
    message = parse(data)
    assert isinstance(message, Request)
    message.check()
    found = inspect(message, users)
    return (0, {}) if found is None else (found.status, dict(found.headers))


def typed(content_type: bytes, *more: Header) -> bytes:
    """An INVITE whose body is said to be of this type."""
    return invite(more=more).replace(b"application/sdp", content_type)


@pytest.mark.parametrize("method", [b"INVITE", b"ACK", b"BYE", b"CANCEL", b"OPTIONS", b"REGISTER"])
def test_what_is_allowed_passes(method: bytes) -> None:
    """The methods that are served pass, with and without a description."""
    assert refusal(request(method))[0] == 0
    assert refusal(request(method, body=SDP))[0] == 0


def test_methods() -> None:
    """A method of the standards is a 405, any other a 501; both say what is allowed."""
    assert refusal(request(b"MESSAGE")) == (405, dict([ALLOW]))
    for method in (b"NEWMETHOD", b"invite", b"INVITE!", b"RE%47IST%45R"):
        assert refusal(request(method)) == (501, dict([ALLOW]))


def test_schemes() -> None:
    """A Request-URI that is neither sip nor sips is a 416."""
    assert refusal(request(uri=b"tel:+1234"))[0] == 416
    assert refusal(request(uri=b"sips:a@b"))[0] == 0


def test_users() -> None:
    """Where users are given, others are a 404, but not within a dialog nor for the server."""
    users = frozenset([b"service", b"a b"])
    assert refusal(request(uri=b"sip:nobody@h"), users)[0] == 404
    for uri in (b"sip:service@h", b"sip:a%20b@h", b"sip:h"):
        assert refusal(request(uri=uri), users)[0] == 0
    assert refusal(request(b"BYE", uri=b"sip:nobody@h", to_tag=b"x"), users)[0] == 0
    assert refusal(request(b"REGISTER", uri=b"sip:h"), users)[0] == 0
    other = request(b"REGISTER", uri=b"sip:h").replace(b"To: <sip:service", b"To: <sip:nobody")
    assert refusal(other, users)[0] == 404


def test_extensions() -> None:
    """A required extension is a 420 that names all of them, but for CANCEL."""
    more: list[Header] = [(b"Require", b"a, b"), (b"Proxy-Require", b"c")]
    assert refusal(request(more=more)) == (420, {b"Unsupported": b"a, b, c"})
    assert refusal(request(b"CANCEL", more=more))[0] == 0


def test_bodies() -> None:
    """A body that is not a description is a 415 with Accept, unless it may be ignored."""
    status, headers = refusal(typed(b"text/plain"))
    assert (status, headers[b"Accept"]) == (415, b"application/sdp")
    assert refusal(typed(b"Application/SDP ; charset=utf-8"))[0] == 0
    optional = (b"Content-Disposition", b"render; handling = optional")
    assert refusal(typed(b"text/plain", optional))[0] == 0
    status, headers = refusal(typed(b"application/sdp", (b"Content-Encoding", b"gzip")))
    assert (status, headers[b"Accept-Encoding"]) == (415, b"identity")


def test_what_the_caller_accepts() -> None:
    """An INVITE whose Accept leaves no room for a description is a 406."""
    for accepted in (b"text/plain", b"", b"application/sdp2"):
        assert refusal(invite(more=[(b"Accept", accepted)]))[0] == 406
    for accepted in (b"application/sdp;level=1, a/b", b"application/*", b"*/*;q=0.1"):
        assert refusal(invite(more=[(b"Accept", accepted)]))[0] == 0
    assert refusal(request(more=[(b"Accept", b"text/plain")]))[0] == 0


def test_order() -> None:
    """The first of several reasons is the one that the RFC names first."""
    everything: list[Header] = [(b"Require", b"x"), (b"Accept", b"text/plain")]
    users = frozenset([b"nobody"])
    data = typed(b"text/plain", *everything)
    assert refusal(data, users)[0] == 404
    assert refusal(data)[0] == 420
    assert refusal(data.replace(b"Require: x\r\n", b""))[0] == 415
    assert refusal(data.replace(b"INVITE", b"MESSAGE"), users)[0] == 405
