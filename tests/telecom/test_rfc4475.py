"""The torture messages of RFC 4475, through the framer and a SipServer as over TCP.

The project carries none of these files; they are read from a folder beside it, where it exists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aembus.services.framing import Answer, FramingError
from examples.telecom.sip_framer import SipFramer
from examples.telecom.sip_message import Request, Response, parse
from tests.telecom.support import MESSAGE_BYTES_MAX, Driver, responses

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "rfc4475"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the messages of RFC 4475 are not beside the project"
)

# What each file gets, in order; "break" is the end of the stream.
EXPECTED: dict[str, list[int | str]] = {
    # Ordinary requests that look strange. (wsinv is an INVITE within a dialog nobody here has.)
    "wsinv": [481],
    "lwsdisp": [200],
    "semiuri": [200],
    "transports": [200],
    "longreq": [200],
    "esc01": [200],
    "zeromf": [200],
    "baddate": [200],
    "escnull": [200],
    "cparam01": [200],
    "cparam02": [200],
    "regescrt": [200],
    "regaut01": [200],
    # Its second message is longer than it says: three bytes are left over.
    "dblreq": [200, 200, 400, "break"],
    # Methods, schemes, extensions, bodies that are not served here.
    "intmeth": [501],
    "esc02": [501],
    "mpart01": [405],
    "unkscm": [416],
    "novelsc": [416],
    "bext01": [420],
    "invut": [415],
    "sdp01": [406],
    "badvers": [505],
    # Responses: dropped.
    "unreason": [],
    "noreason": [],
    "bcast": [],
    "scalarlg": [],
    "bigcode": [],
    # Malformed within a frame that holds: the connection stays.
    "badinv01": [400],
    "quotbal": [400],
    "ltgtruri": [400],
    "lwsruri": [400],
    "regbadct": [400],
    "badaspec": [400],
    "baddn": [400],
    "mismatch01": [400],
    "mismatch02": [400],
    "lwsstart": [400],
    "trws": [400],
    "escruri": [400],
    "scalar02": [400],
    "badbranch": [400],
    "insuf": [400],
    "unksm2": [400],
    "multi01": [400],
    # The frame itself is broken.
    "ncl": [400, "break"],
    "mcl01": [400, "break"],
    "inv2543": [400, "break"],
    "test": [400, "break"],
    # Says more than it sends: nothing until the tcp service's time-out.
    "clerr": [],
}

# Judged in a later issue; none: all have a row above.
DEFERRED: frozenset[str] = frozenset()


@dataclass
class Outcome:
    answers: list[Response] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    events: list[int | str] = field(default_factory=list)
    driver: Driver = field(default_factory=Driver)


def outcome_of(name: str, step: int = 0) -> Outcome:
    """Feed a file in pieces of so many bytes (0: whole) and act on what comes out."""
    data = (FOLDER / f"{name}.dat").read_bytes()
    framer = SipFramer(MESSAGE_BYTES_MAX)
    outcome = Outcome()
    try:
        for start in range(0, len(data), step or len(data)):
            piece = data[start : start + (step or len(data))]
            while found := framer.feed(piece):
                for item in found:
                    if not isinstance(item, Answer):
                        take(item.data, outcome)
                piece = b""
    except FramingError as error:
        for answer in responses(error.answer):
            outcome.answers.append(answer)
            outcome.events.append(answer.status)
        outcome.events.append("break")
    return outcome


def take(data: bytes, outcome: Outcome) -> None:
    """Give a message to the server, and note what it answers."""
    for answer in outcome.driver.receive(data):
        outcome.answers.append(answer)
        outcome.events.append(answer.status)
    if outcome.events and outcome.events[-1] == 200:
        message = parse(data)
        assert isinstance(message, Request)
        outcome.requests.append(message)


def test_no_file_is_forgotten() -> None:
    """Each file is judged here or listed as deferred, and none is both."""
    names = {path.stem for path in FOLDER.glob("*.dat")}
    assert names == set(EXPECTED) | DEFERRED
    assert not set(EXPECTED) & DEFERRED


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("name", EXPECTED)
def test_each_gets_what_it_should(name: str, step: int) -> None:
    """Each message gets its answer, however the stream is cut."""
    assert outcome_of(name, step).events == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_answers_copy_what_the_request_said(name: str) -> None:
    """Every answer to a request that was not broken holds what a response must."""
    outcome = outcome_of(name)
    for asked, answer in zip(outcome.requests, outcome.answers, strict=False):
        answer.check()
        assert answer.get_all(b"Via") == asked.get_all(b"Via")
        assert answer.get(b"From") == asked.get(b"From")
        assert answer.to.uri == asked.to.uri
        assert answer.call_id == asked.call_id
        assert answer.cseq == asked.cseq


def test_what_the_answers_explain() -> None:
    """Refusals name what would have been right."""

    def answer(name: str) -> Response:
        return outcome_of(name).answers[0]

    for name in ("intmeth", "esc02", "mpart01"):
        assert b"INVITE" in answer(name).get_list(b"Allow")
    unsupported = answer("bext01").get_list(b"Unsupported")
    assert unsupported[:2] == [b"nothingSupportsThis", b"nothingSupportsThisEither"]
    assert answer("invut").get(b"Accept") == b"application/sdp"


def test_bindings_keep_what_was_registered() -> None:
    """An escaped NUL, an escaped header and each parameter's owner survive registration."""

    def bindings(name: str) -> list[bytes]:
        return outcome_of(name).answers[0].get_list(b"Contact")

    assert bindings("escnull") == [
        b"<sip:%00@host5.example.com>;expires=3600",
        b"<sip:%00%00@host5.example.com>;expires=3600",
    ]
    assert bindings("cparam01") == [b"<sip:+19725552222@gw1.example.net>;unknownparam;expires=3600"]
    assert bindings("cparam02") == [b"<sip:+19725552222@gw1.example.net;unknownparam>;expires=3600"]
    assert bindings("regescrt") == [
        b"<sip:user@example.com?Route=%3Csip:sip.example.com%3E>;expires=3600"
    ]


def test_a_request_without_its_headers_is_answered_all_the_same() -> None:
    """Without From, To and Call-ID the 400 copies the Via and the CSeq, and nothing crashes."""
    [answer] = outcome_of("insuf").answers
    assert answer.get(b"CSeq") == b"193942 INVITE"
    assert answer.get(b"From") is None
    assert answer.vias[0].branch == b"z9hG4bKkdj.insuf"


def test_what_was_before_the_break_is_served() -> None:
    """The two requests of dblreq are separate ones, whatever follows them."""
    first, second, _ = outcome_of("dblreq").answers
    assert (first.cseq.method, second.cseq.method) == (b"REGISTER", b"INVITE")
    assert outcome_of("dblreq").driver.closed == []
