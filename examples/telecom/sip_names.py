"""Header names: short forms, spellings, and which may stand in a message only once.

What it is: tables and two lookups. Who uses it: sip_message.

Guarantees: a name has one canonical spelling, whatever the case or form it came in; no table
grows at run time, so that no peer can make it grow.
"""

from __future__ import annotations

from .sip_syntax import BLANKS, SipSyntaxError, is_token

_COMPACT = {
    b"a": b"Accept-Contact",
    b"b": b"Referred-By",
    b"c": b"Content-Type",
    b"d": b"Request-Disposition",
    b"e": b"Content-Encoding",
    b"f": b"From",
    b"i": b"Call-ID",
    b"j": b"Reject-Contact",
    b"k": b"Supported",
    b"l": b"Content-Length",
    b"m": b"Contact",
    b"o": b"Event",
    b"r": b"Refer-To",
    b"s": b"Subject",
    b"t": b"To",
    b"u": b"Allow-Events",
    b"v": b"Via",
    b"x": b"Session-Expires",
    b"y": b"Identity",
}
_FULL = (
    b"Accept Accept-Encoding Accept-Language Allow Authorization CSeq Content-Disposition Date "
    b"Expires Max-Forwards Min-Expires Organization Priority Proxy-Authorization Proxy-Require "
    b"Record-Route Require Retry-After Route Server Timestamp Unsupported User-Agent "
    b"WWW-Authenticate Warning"
).split() + list(_COMPACT.values())
_LOWER = {name.lower(): name for name in _FULL} | _COMPACT
# The spellings that are found without any work.
SPELLINGS = _LOWER | {name: name for name in _FULL} | {k.upper(): v for k, v in _COMPACT.items()}

SINGLE = frozenset(
    b"From To Call-ID CSeq Max-Forwards Content-Length Content-Type Expires Refer-To".split()
)


def known_name(name: bytes) -> bytes | None:
    """The canonical spelling of a name in the tables, blanks around it allowed; else None."""
    return _LOWER.get(name.strip(BLANKS).lower())


def canonical_name(name: bytes) -> bytes:
    """The canonical spelling of a header name, blanks behind it allowed.

    A name that is not known comes out in lower case with capitals after `-`.
    Raises SipSyntaxError: where it is not a token.
    """
    name = name.rstrip(BLANKS)
    known = known_name(name)
    if known is not None:
        return known
    if not is_token(name):
        raise SipSyntaxError("Bad Header Name", name)
    return b"-".join(part.capitalize() for part in name.split(b"-"))
