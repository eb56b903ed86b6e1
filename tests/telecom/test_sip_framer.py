from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aembus.services.framing import Answer, Framer, FramingError, Message
from examples.telecom.sip_framer import SipFramer
from examples.telecom.sip_message import BODY_BYTES_MAX, HEAD_BYTES_MAX, Response, parse
from examples.telecom.sip_syntax import SipError
from tests.telecom.support import MESSAGE_BYTES_MAX, invite, request

PONG = Answer(b"\r\n")


def feed_all(pieces: Iterable[bytes]) -> tuple[list[Message | Answer], FramingError | None]:
    """Feed as the tcp service does: after messages, once more with nothing."""
    framer: Framer = SipFramer(MESSAGE_BYTES_MAX)
    out: list[Message | Answer] = []
    try:
        for piece in pieces:
            data = piece
            while found := framer.feed(data):
                out += found
                data = b""
    except FramingError as error:
        return out, error
    return out, None


def broken(data: bytes) -> bytes:
    """The answer to a stream that breaks at once; however it is cut, it is the same break."""
    out, error = feed_all([data])
    assert out == []
    assert error is not None
    bytewise, error_bytewise = feed_all(bytes([byte]) for byte in data)
    assert bytewise == []
    assert error_bytewise is not None
    return error.answer


def status_of(answer: bytes) -> int:
    """The status of an answer that must be a response."""
    message = parse(answer)
    assert isinstance(message, Response)
    return message.status


STREAM: list[Message | Answer] = [
    Message(invite(), b"call-1@192.0.2.1"),
    PONG,
    Message(request(b"ACK", call_id=b"other"), b"other"),
    Message(request().replace(b"Call-ID:", b"i :"), b"call-1@192.0.2.1"),
    Message(request().replace(b"Call-ID:", b"Call-Id:\r\n "), b"call-1@192.0.2.1"),
    Message(b"SIP/2.0 200 OK\r\nl:3\r\n\r\nabc", None),
    Message(invite(call_id=b"last"), b"last"),
]
STREAM_BYTES = b"".join(
    b"\r\n\r\n" if isinstance(piece, Answer) else piece.data for piece in STREAM
)


def test_whole_bytewise_and_in_two_pieces() -> None:
    """A stream gives the same messages whole, byte by byte, and cut in two anywhere."""
    assert feed_all([STREAM_BYTES]) == (STREAM, None)
    assert feed_all(bytes([byte]) for byte in STREAM_BYTES) == (STREAM, None)
    for cut in range(len(STREAM_BYTES)):
        assert feed_all([STREAM_BYTES[:cut], STREAM_BYTES[cut:]]) == (STREAM, None)


@given(st.lists(st.integers(0, len(STREAM_BYTES)), max_size=12).map(sorted))
def test_any_pieces(cuts: list[int]) -> None:
    """A stream gives the same messages in any pieces."""
    ends = [*cuts, len(STREAM_BYTES)]
    pieces = [STREAM_BYTES[a:b] for a, b in zip([0, *cuts], ends, strict=True)]
    assert feed_all(pieces) == (STREAM, None)


def test_trailing_bytes_wait() -> None:
    """What follows a message waits for its rest, whatever it is so far."""
    for end in range(1, len(invite())):
        framer = SipFramer(MESSAGE_BYTES_MAX)
        assert framer.feed(request() + invite()[:end]) == [Message(request(), b"call-1@192.0.2.1")]
        assert framer.feed(b"") == ()
        assert framer.feed(invite()[end:]) == [Message(invite(), b"call-1@192.0.2.1")]


def test_ping_is_answered_and_a_lone_crlf_is_not() -> None:
    """CRLFCRLF between messages gets one CRLF at once; a lone one before a message is skipped."""
    framer = SipFramer(MESSAGE_BYTES_MAX)
    assert framer.feed(b"\r\n\r\n") == [PONG]
    assert framer.feed(b"\r\n") == []
    assert framer.feed(request()) == [Message(request(), b"call-1@192.0.2.1")]
    assert framer.feed(b"\r\n\r") == []
    assert framer.feed(b"\n") == [PONG]
    assert framer.feed(b"\r\n\r\n\r\n\r\n\r\n") == [PONG, PONG]


def test_messages_before_a_break_are_not_lost() -> None:
    """What was whole is returned first; the error comes with the next feed and stays."""
    framer = SipFramer(MESSAGE_BYTES_MAX)
    assert framer.feed(request() + b"GET / HTTP/1.1\r\n") == [
        Message(request(), b"call-1@192.0.2.1")
    ]
    for data in (b"", request()):
        with pytest.raises(FramingError):
            framer.feed(data)


@pytest.mark.parametrize(
    "length",
    [
        b"",
        b"Content-Length: -999\r\n",
        b"Content-Length: +1\r\n",
        b"Content-Length: x\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 1 1\r\n",
        b"Content-Length: 0, 0\r\n",
        b"Content-Length: 00000001\r\n",
        b"Content-Length: \xd9\xa1\r\n",
        b"Content-Length: 1\r\nl: 2\r\n",
        b"l: 2\r\nX: y\r\nCONTENT-LENGTH : 1\r\n",
        b"Content-Length\r\n : 0\r\n",
        b"X: y\r\n Content-Length: 0\r\n",
        b"X: y\nContent-Length: 0\r\n",
        b"X: y\rContent-Length: 0\r\n",
        b"Content-Length 0\r\n",
    ],
)
def test_content_length_that_cannot_be_trusted(length: bytes) -> None:
    """Missing, negative, not numeric, conflicting, hidden: 400 with the request's headers."""
    answer = broken(request(b"INVITE").replace(b"Content-Length: 0\r\n", length))
    assert status_of(answer) == 400
    message = parse(answer)
    message.check()
    assert (message.call_id, message.cseq.method) == (b"call-1@192.0.2.1", b"INVITE")


@pytest.mark.parametrize(
    "length",
    [
        b"Content-Length:   4",
        b"l:4",
        b"CONTENT-length \t:\t4",
        b"Content-Length:\r\n 4",
        b"Content-Length: 0000004",
        b"l: 4\r\nContent-Length: 4",
    ],
)
def test_content_length_in_all_its_spellings(length: bytes) -> None:
    """Blanks, case, the short form, folding and leading zeros are all understood."""
    data = request().replace(b"Content-Length: 0", length) + b"body"
    assert feed_all([data + request()])[0] == [
        Message(data, b"call-1@192.0.2.1"),
        Message(request(), b"call-1@192.0.2.1"),
    ]


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\n",
        b"INVITE sip:a@b\r\n",
        b"INVITE sip:a@b SIP/2.0\n",
        b"\x16\x03\x01",
        b"\n",
        b" INVITE sip:a@b SIP/2.0\r\n",
        b"\rX",
    ],
)
def test_other_protocols_are_told_at_once(start: bytes) -> None:
    """What cannot be a SIP start line is answered 400 without waiting for more."""
    assert status_of(broken(start)) == 400


@pytest.mark.parametrize(
    "line",
    [b"OPTIONS  sip:a@b  SIP/2.0", b"OPTIONS sip:a@b SIP/2.0  ", b"OPTIONS <sip:a@b> SIP/2.0",
     b"OPTIONS sip:a@b SIP/7.0"],
)  # fmt: skip
def test_a_bad_start_line_that_can_be_cut_goes_to_a_worker(line: bytes) -> None:
    """What is wrong within a frame that is right is the parser's affair: the stream goes on."""
    data = line + request()[request().index(b"\r\n") :]
    out, error = feed_all([data + request()])
    assert error is None
    assert len(out) == 2


def test_limits() -> None:
    """Head 16 KiB: 513. Body 64 KiB: 413. Both as soon as they are known."""
    fill = HEAD_BYTES_MAX - len(request(more=[(b"X", b"")]))
    largest = request(more=[(b"X", b"y" * fill)])
    assert len(largest) == HEAD_BYTES_MAX
    assert feed_all([largest])[0] == [Message(largest, b"call-1@192.0.2.1")]
    assert status_of(broken(request(more=[(b"X", b"y" * (fill + 1))])[:HEAD_BYTES_MAX])) == 513
    body = request(body=b"z" * BODY_BYTES_MAX)
    assert feed_all([body])[0] == [Message(body, b"call-1@192.0.2.1")]
    head = request().replace(b"Length: 0", b"Length: %d" % (BODY_BYTES_MAX + 1))
    assert status_of(broken(head)) == 413


def test_the_callers_limit() -> None:
    """A message larger than the caller can carry is refused, by its head or by its body."""
    size = len(invite())
    assert len(SipFramer(size).feed(invite())) == 1
    with pytest.raises(FramingError) as caught:
        SipFramer(size - 1).feed(invite())
    assert status_of(caught.value.answer) == 413
    with pytest.raises(FramingError) as caught:
        SipFramer(100).feed(invite())
    assert status_of(caught.value.answer) == 513


def test_nobody_answers_an_ack_or_a_response() -> None:
    """A break within an ACK or a response closes without a word."""
    assert broken(request(b"ACK").replace(b"Content-Length: 0\r\n", b"")) == b""
    assert broken(b"SIP/2.0 200 OK\r\nContent-Length: x\r\n\r\n") == b""


@given(
    st.lists(
        st.sampled_from([invite(), request(), b"\r\n", b"\r\n\r\n", b"SIP/2.0", b":", b" "])
        | st.binary(max_size=12),
        max_size=8,
    ),
    st.integers(1, 40),
)
def test_framer_and_parser_agree(parts: list[bytes], size: int) -> None:
    """Any bytes in any pieces: nothing but FramingError, the same cuts, and the parser agrees."""
    data = b"".join(parts)
    out, error = feed_all([data])
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    again, error_again = feed_all(pieces)
    assert (again, error_again is None) == (out, error is None)
    assert error is None or not error.answer or isinstance(parse(error.answer), Response)
    for piece in out:
        if isinstance(piece, Message):
            try:
                key = parse(piece.data).get(b"Call-ID")
            except SipError as problem:
                reason = problem.reason
            else:
                reason = ""
                assert (key or None) == piece.key
            assert "Content-Length" not in reason or "Twice" in reason


def test_another_framer_goes_on_anywhere() -> None:
    """At each cut but within a ping, what is unfinished brings a new framer to the same place."""
    ping = len(invite())
    for cut in range(len(STREAM_BYTES)):
        first, second = SipFramer(MESSAGE_BYTES_MAX), SipFramer(MESSAGE_BYTES_MAX)
        before = list(first.feed(STREAM_BYTES[:cut]))
        assert list(second.feed(first.unfinished())) == []
        found = before + list(second.feed(STREAM_BYTES[cut:]))
        halved = cut in (ping + 2, ping + 3)
        assert found == [piece for piece in STREAM if not (halved and piece == PONG)]


def test_a_lone_crlf_begins_no_message() -> None:
    """Between messages it is nothing that its sender owes the rest of."""
    framer = SipFramer(MESSAGE_BYTES_MAX)
    framer.feed(request() + b"\r\n")
    assert framer.unfinished() == b""
    framer.feed(b"O")
    assert framer.unfinished() == b"O"
