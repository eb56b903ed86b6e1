from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from examples.telecom.sip_sdp import answer
from tests.telecom.support import SDP


def media(description: bytes) -> list[bytes]:
    """The m= lines of a description."""
    return [line for line in description.split(b"\r\n") if line.startswith(b"m=")]


def test_the_first_audio_stream_is_taken_and_the_rest_refused() -> None:
    """Each m= line of the offer has one in the answer, in order; port 0 refuses."""
    offer = SDP.replace(b"m=", b"m=video 1 RTP/AVP 31 32\r\nm=") + b"m=audio 7 RTP/SAVP 8\r\n"
    described = answer(offer, b"192.0.2.9")
    assert media(described) == [
        b"m=video 0 RTP/AVP 31 32",
        b"m=audio 9 RTP/AVP 0",
        b"m=audio 0 RTP/SAVP 8",
    ]
    assert described.count(b"a=inactive\r\n") == 1
    assert b"c=IN IP4 192.0.2.9\r\n" in described
    assert described.startswith(b"v=0\r\no=")


def test_a_stream_that_is_offered_with_port_0_stays_off() -> None:
    """Port 0 says that a stream is not wanted: the next audio stream is taken (RFC 3264 5.1, 6)."""
    offer = SDP.replace(b"m=", b"m=audio 0 RTP/AVP 8\r\nm=")
    assert media(answer(offer, b"h")) == [b"m=audio 0 RTP/AVP 8", b"m=audio 9 RTP/AVP 0"]


def test_the_time_is_that_of_the_offer() -> None:
    """The t= line cannot be negotiated (RFC 3264 section 6)."""
    offer = SDP.replace(b"t=0 0", b"t=2873397496 2873404696")
    assert b"\r\nt=2873397496 2873404696\r\nm=" in answer(offer, b"h")
    assert b"\r\nt=0 0\r\nm=" in answer(SDP.replace(b"t=0 0", b"t=now x"), b"h")


def test_without_an_offer_one_is_made() -> None:
    """An INVITE without a description gets an offer, of one inactive stream."""
    described = answer(b"", b"2001:db8::1")
    assert media(described) == [b"m=audio 9 RTP/AVP 0"]
    assert b"c=IN IP6 2001:db8::1\r\n" in described


@given(st.binary(max_size=80))
def test_nonsense_is_passed_over(junk: bytes) -> None:
    """Whatever an offer holds, the answer is made of whole lines and nothing is raised."""
    described = answer(SDP + junk + b"\r\nm=x\r\nm=a b c d\r\n", b"h")
    assert described.endswith(b"\r\n")
    assert described.count(b"\n") == described.count(b"\r\n")
    assert media(described)[-1] == b"m=a 0 c d"
