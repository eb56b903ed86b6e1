"""The session description in the responder's 200: an answer that is valid and sends no media.

What it is: one pure function over bytes (RFC 3264 section 6, RFC 4566).
Who uses it: sip_transaction, for each INVITE it answers.

Guarantees: an answer has as many `m=` lines as the offer, in its order, and its `t=`; the first
audio stream that is not offered with port 0 is taken, inactive, with the offered formats; every
other is refused with port 0. Without an offer, one inactive audio stream is offered.

Not promised: checking the offer. Lines that make no sense are passed over.
"""

from __future__ import annotations

import re

_DISCARD_PORT = 9
_TIME = re.compile(rb"^t=([0-9]{1,20} [0-9]{1,20})\r?$", re.MULTILINE)
_OWN_OFFER = b"m=audio 9 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=inactive\r\n"


def answer(offer: bytes, host: bytes) -> bytes:
    """The description that answers offer; an offer of b"" gets one of our own."""
    family = b"IP6" if b":" in host else b"IP4"
    time = _TIME.search(offer)
    session = b"v=0\r\no=- 1 1 IN %b %b\r\ns=-\r\nc=IN %b %b\r\nt=%b\r\n" % (
        family,
        host,
        family,
        host,
        time[1] if time else b"0 0",
    )
    if not offer:
        return session + _OWN_OFFER
    lines: list[bytes] = []
    taken = False
    for line in offer.split(b"\n"):
        if not line.startswith(b"m="):
            continue
        parts = line[2:].split(None, 3)
        if len(parts) != 4:
            continue
        media, port, transport, formats = parts
        formats = formats.strip()
        if media == b"audio" and port != b"0" and not taken:
            taken = True
            lines.append(
                b"m=audio %d %b %b\r\na=inactive\r\n" % (_DISCARD_PORT, transport, formats)
            )
        else:
            lines.append(b"m=%b 0 %b %b\r\n" % (media, transport, formats))
    return session + b"".join(lines)
