from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.telecom.sip_message import (
    BODY_BYTES_MAX,
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    URI_BYTES_MAX,
    Request,
    Response,
    build_request,
    build_response,
    parse,
    refusal,
)
from examples.telecom.sip_names import canonical_name
from examples.telecom.sip_syntax import TOKEN_BYTES, SipError, SipSyntaxError
from tests.telecom.support import SDP, invite, request


def parse_request(data: bytes) -> Request:
    """Parse and check a request that is good."""
    message = parse(data)
    assert isinstance(message, Request)
    message.check()
    return message


def broken(data: bytes) -> SipError:
    """The error that parsing and checking must give."""
    with pytest.raises(SipError) as caught:
        parse_request(data)
    return caught.value


def test_request_in_all_its_parts() -> None:
    """A request gives its method, URI, headers in order, body, and the parsed views."""
    message = parse_request(invite())
    assert (message.method, message.uri) == (b"INVITE", b"sip:service@127.0.0.1:5060")
    assert [name for name, _ in message.headers] == [
        b"Via", b"From", b"To", b"Call-ID", b"CSeq", b"Contact", b"Max-Forwards",
        b"Content-Type", b"Content-Length",
    ]  # fmt: skip
    assert message.body == SDP
    assert [via.branch for via in message.vias] == [b"z9hG4bK-1"]
    assert (message.from_.tag, message.to.tag) == (b"from-1", None)
    assert message.call_id == b"call-1@192.0.2.1"
    assert message.cseq == (1, b"INVITE")
    assert message.max_forwards == 70
    assert message.target.user == b"service"
    assert [contact.uri for contact in message.contacts] == [b"sip:caller@192.0.2.1:5061"]


def test_response_in_all_its_parts() -> None:
    """A response gives its status and its reason, which may be empty or not ASCII."""
    ok = build_response(parse_request(invite()), 200, b"to-1")
    for reason in (b"OK", b"", "да ok".encode()):
        message = parse(ok.replace(b"200 OK", b"200 " + reason, 1))
        assert isinstance(message, Response)
        assert (message.status, message.reason) == (200, reason)
        assert message.to.tag == b"to-1"


def test_names_have_one_spelling() -> None:
    """Case, short forms and blanks before the colon make no difference to a name."""
    data = request(branch=b"b").replace(b"Via: ", b"v  :").replace(b"Call-ID: ", b"I\t: ")
    data = data.replace(b"CSeq", b"cSEQ")
    message = parse_request(data)
    assert message.get(b"Via") is not None
    assert message.call_id == b"call-1@192.0.2.1"
    assert message.cseq.number == 1
    assert canonical_name(b"x-Some-THING") == canonical_name(b"X-some-thing ") == b"X-Some-Thing"


def test_lists_run_over_fields_and_commas() -> None:
    """get_list joins what several fields and commas hold, in order; get_all does not split."""
    data = request(more=[(b"Require", b"a, b"), (b"Subject", b"s"), (b"require", b"c")])
    message = parse_request(data)
    assert message.get_list(b"Require") == [b"a", b"b", b"c"]
    assert message.get_all(b"Require") == [b"a, b", b"c"]
    assert message.get_list(b"Supported") == []


def test_folded_headers_are_one_value() -> None:
    """A value may go on in lines that begin with a blank."""
    data = request().replace(b";tag=from-1", b"\r\n ;\r\n\ttag=from-1")
    assert parse_request(data).from_.tag == b"from-1"


@pytest.mark.parametrize(
    "line",
    [
        b"INVITE  sip:a@b SIP/2.0",
        b"INVITE sip:a@b  SIP/2.0",
        b"INVITE sip:a@b SIP/2.0 ",
        b" INVITE sip:a@b SIP/2.0",
        b"INVITE sip:a@b; lr SIP/2.0",
        b"INVITE sip:a@b",
        b"INVITE\tsip:a@b\tSIP/2.0",
        b"IN\xffVITE sip:a@b SIP/2.0",
        b"INVITE sip:a@b SIP/2",
        b"INVITE sip:a@b HTTP/1.1",
        b"",
        b"SIP/2.0 20 OK",
        b"SIP/2.0 2000 OK",
        b"SIP/2.0 200",
        b"SIP/2.0 099 Low",
        b"SIP/2.0 700 High",
        b"SIP/2.0  200 OK",
    ],
)
def test_start_line_has_one_form(line: bytes) -> None:
    """A start line has exactly one space between its parts and none around: else 400."""
    error = broken(line + request()[request().index(b"\r\n") :])
    assert error.status == 400


@pytest.mark.parametrize("version", [b"SIP/7.0", b"SIP/2.1", b"sip/10.22"])
def test_other_versions_are_refused(version: bytes) -> None:
    """Another SIP version is a 505, and the spelling sip/2.0 is ours."""
    assert broken(request().replace(b"SIP/2.0\r\n", version + b"\r\n", 1)).status == 505
    parse_request(request().replace(b"SIP/2.0\r\n", b"sip/2.0\r\n", 1))


@pytest.mark.parametrize("name", [b"Via", b"From", b"To", b"Call-ID", b"CSeq"])
def test_required_headers(name: bytes) -> None:
    """A request without a header that every request has is a 400, and so is an empty one."""
    lines = request().split(b"\r\n")
    without = [line for line in lines if not line.startswith(name + b":")]
    assert broken(b"\r\n".join(without)).reason == f"Missing {name.decode()}"
    emptied = [name + b":" if line.startswith(name + b":") else line for line in lines]
    assert broken(b"\r\n".join(emptied)).status == 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"From", b"<sip:other@example>;tag=1"),
        (b"t", b"<sip:other@example>"),
        (b"Call-ID", b"call-1@192.0.2.1"),
        (b"CSeq", b"1 OPTIONS"),
        (b"Max-Forwards", b"70"),
        (b"L", b"0"),
    ],
)
def test_single_headers_stand_once(name: bytes, value: bytes) -> None:
    """A header of a single value that is given twice is a 400, also when both say the same."""
    assert "Given Twice" in broken(request(more=[(name, value)])).reason


@pytest.mark.parametrize("value", [b"256", b"-1", b"", b"x", b"7 0"])
def test_max_forwards_is_a_byte(value: bytes) -> None:
    """Max-Forwards is a number up to 255."""
    data = request().replace(b"Max-Forwards: 70", b"Max-Forwards: " + value)
    assert broken(data).status == 400


@pytest.mark.parametrize("call_id", [b"a@b@c", b"a b", b"a,b", b"\xff", b"a\0"])
def test_call_id_is_words(call_id: bytes) -> None:
    """A Call-ID is one word, or two with an @ between."""
    assert broken(request(call_id=call_id)).status == 400


def test_cseq_names_the_method() -> None:
    """A CSeq with another method than the start line is a 400."""
    assert broken(request().replace(b"CSeq: 1 OPTIONS", b"CSeq: 1 INVITE")).status == 400


def test_contact_of_an_invite_is_looked_at() -> None:
    """An INVITE whose Contact is malformed is a 400: no dialog could be made of it."""
    assert broken(invite().replace(b"Contact: <sip:", b"Contact: <")).status == 400


@pytest.mark.parametrize("line", [b"no colon", b": x", b"a b: x", b"\xc3\xa4: x", b"a\0: x"])
def test_header_names_are_tokens(line: bytes) -> None:
    """A line without a colon, or whose name is no token, is a 400."""
    assert broken(request().replace(b"Max-Forwards", line + b"\r\nMax-Forwards")).status == 400


@pytest.mark.parametrize(
    "length", [b"-1", b"+0", b"0x0", b"", b"0, 0", b"00000000", b"1", b"\xd9\xa0", b"0 0"]
)
def test_content_length_says_the_truth(length: bytes) -> None:
    """A Content-Length that is no number, too long, or not the body's ends the connection."""
    error = broken(request().replace(b"Content-Length: 0", b"Content-Length: " + length))
    assert (error.status, error.close) == (400, True)


def test_content_length_is_needed() -> None:
    """Without Content-Length nobody knows where the message ends: 400 and close."""
    error = broken(request().replace(b"Content-Length: 0\r\n", b""))
    assert (error.status, error.close) == (400, True)


def test_limits() -> None:
    """Each limit has its status: 513 headers and head, 413 body, 414 URI (which can go on)."""
    many = [(b"X", b"y")] * HEADERS_MAX
    assert (broken(request(more=many)).status, broken(request(more=many)).close) == (513, True)
    parse_request(request(more=many[: HEADERS_MAX - 8]))
    error = broken(request(more=[(b"X", b"y" * HEAD_BYTES_MAX)]))
    assert (error.status, error.close) == (513, True)
    error = broken(request(b"OPTIONS", body=b"y" * (BODY_BYTES_MAX + 1)))
    assert (error.status, error.close) == (413, True)
    parse_request(request(b"OPTIONS", body=b"y" * BODY_BYTES_MAX))
    error = broken(request(uri=b"sip:" + b"a" * URI_BYTES_MAX + b"@b"))
    assert (error.status, error.close) == (414, False)


def test_parse_takes_one_message_and_no_byte_more() -> None:
    """Whole it parses; with any byte missing or added it does not."""
    data = invite()
    parse_request(data)
    for end in range(len(data)):
        with pytest.raises(SipError):
            parse(data[:end])
    with pytest.raises(SipError):
        parse(data + b"\r\n")


def test_response_copies_what_the_rfc_says() -> None:
    """Every Via in order, From, Call-ID, CSeq and To come back; To gets the tag once."""
    data = request(to_tag=b"").replace(b"Via: ", b"Via: SIP/2.0/TCP p;branch=1, ", 1)
    data = data.replace(b"From:", b"v: SIP/2.0/UDP q;branch=2\r\nFrom:", 1)
    asked = parse_request(data)
    answer = parse(build_response(asked, 200, b"mine", [(b"Contact", b"<sip:x>")], b"body"))
    assert isinstance(answer, Response)
    answer.check()
    assert answer.get_all(b"Via") == asked.get_all(b"Via")
    for name in (b"From", b"Call-ID", b"CSeq"):
        assert answer.get(name) == asked.get(name)
    assert answer.to.uri == asked.to.uri
    assert answer.to.tag == b"mine"
    assert answer.body == b"body"
    again = build_response(parse_request(request(to_tag=b"theirs")), 200, b"mine")
    assert b";tag=theirs\r\n" in again
    assert b"mine" not in again


def test_nothing_is_smuggled_into_what_is_built() -> None:
    """A line end in a value of ours is our bug, and never leaves as a header."""
    for value in (b"a\r\nb: c", b"a\nb", b"a\rb"):
        with pytest.raises(ValueError, match="line end"):
            build_request(b"OPTIONS", b"sip:a@b", [(b"Subject", value)])
    with pytest.raises(ValueError, match="line end"):
        build_request(b"OPTIONS", b"sip:a@b\r\nX: y", [])


def test_refusal_copies_what_can_be_read() -> None:
    """A broken request is answered with its own Vias, From, To, Call-ID and CSeq."""
    data = request(b"INVITE").replace(b"Max-Forwards: 70", b"no colon").replace(b"Via:", b"v :")
    answer = parse(refusal(data, SipSyntaxError("Some Reason")))
    assert isinstance(answer, Response)
    answer.check()
    assert (answer.status, answer.reason) == (400, b"Some Reason")
    assert answer.call_id == b"call-1@192.0.2.1"
    assert answer.cseq == (1, b"INVITE")
    assert answer.vias[0].branch == b"z9hG4bK-1"
    assert answer.to.tag
    assert refusal(data, SipSyntaxError("Some Reason")) == refusal(
        data, SipSyntaxError("Some Reason")
    )


def test_refusal_leaves_a_broken_to_as_it_is() -> None:
    """A To that cannot be parsed gets no tag, which might land within its quotes."""
    data = request().replace(b"To: <", b'To: "open <')
    answer = refusal(data, SipSyntaxError("Bad Address"))
    assert b'\r\nTo: "open <sip:service@127.0.0.1:5060>\r\n' in answer


def test_refusal_is_silent_where_it_must_be() -> None:
    """Neither a response nor an ACK is ever answered."""
    error = SipSyntaxError("Any")
    assert refusal(request(b"ACK"), error) == b""
    assert refusal(b"SIP/2.0 999 Bad\r\n\r\n", error) == b""
    assert refusal(b"garbage", error).startswith(b"SIP/2.0 400 Any\r\n")


TOKENS = st.lists(st.sampled_from(TOKEN_BYTES), min_size=1, max_size=12).map(bytes)
VALUES = st.binary(max_size=30).filter(lambda v: not set(v) & set(b"\r\n") and v == v.strip(b" \t"))
HEADERS = st.lists(st.tuples(TOKENS.map(lambda t: b"X-" + t), VALUES), max_size=8)


@given(TOKENS, st.binary(min_size=1, max_size=40).filter(lambda u: not set(u) & set(b" \r\n")),
       HEADERS, st.binary(max_size=80))  # fmt: skip
def test_what_is_built_parses_to_the_same(
    method: bytes, uri: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Building and parsing are each other's inverse, names in their canonical spelling apart."""
    message = parse(build_request(method, uri, headers, body))
    assert isinstance(message, Request)
    assert (message.method, message.uri, message.body) == (method, uri, body)
    expected = [(canonical_name(name), value) for name, value in headers]
    assert message.headers == [*expected, (b"Content-Length", b"%d" % len(body))]


@st.composite
def mutilated(draw: Any) -> bytes:
    """A good message with a few bytes changed, taken out or put in."""
    data = bytearray(draw(st.sampled_from([invite(), request(), request(b"ACK", to_tag=b"x")])))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data) - 1))
        size = draw(st.integers(0, 3))
        data[position : position + size] = draw(
            st.sampled_from(
                [b"", b"\r\n", b"\n", b"\r\n ", b":", b";", b",", b'"', b"<", b">", b"\0"]
            )
            | st.binary(max_size=3)
        )
    return bytes(data)


@given(mutilated() | st.binary(max_size=200))
def test_parse_and_check_raise_nothing_but_sip_errors(data: bytes) -> None:
    """Whatever the bytes are, there is a message or a SipError, and the refusal can be built."""
    try:
        message = parse(data)
        message.check()
        if isinstance(message, Request):
            _ = message.contacts
    except SipError as error:
        answer = refusal(data, error)
        assert not answer or isinstance(parse(answer), Response)
    else:
        if isinstance(message, Request):
            answered = parse(build_response(message, 200, b"tag"))
            answered.check()
            assert answered.call_id == message.call_id
