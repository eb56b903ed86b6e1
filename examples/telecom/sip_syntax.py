"""The grammar of single SIP header values and URIs (RFC 3261 section 25), in bytes.

What it is: pure functions, from the bytes of one (already unfolded) value to a small tuple, and
the error family of the whole SIP code.
Who uses it: sip_message, sip_framer and sip_registrar. No process, no socket, no clock.

Guarantees:
- A function returns a value that obeys the grammar or raises SipError; it raises nothing else,
  whatever bytes it is given.
- Each takes time linear in the length of its input: the patterns use possessive quantifiers, so
  that no value, however made, causes backtracking.
- Parameter names come out in lower case; values come out as written.

Not promised: the whole of the RFC's host name grammar (an underscore is let through, since
container names have them), or anything about the insides of schemes other than sip and sips.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

BLANKS = b" \t"
TOKEN_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.!%*_+`'~"
WORD_BYTES = TOKEN_BYTES + b'()<>:\\"/[]?{}'
CSEQ_MAX = 2**32 - 1
PORT_MAX = 65535

_TOKEN = rb"A-Za-z0-9\-.!%*_+`'~"  # as the inside of a character class, like the next
_UNRESERVED = rb"A-Za-z0-9\-_.!~*'()"
_QUOTED = rb'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]++|\\[\x00-\x09\x0b\x0c\x0e-\x7f])*+"'
_HOST = rb"(?:[A-Za-z0-9][A-Za-z0-9_.\-]*+|\[[0-9A-Fa-f:.]++\])"
_ESCAPED = rb"%[0-9A-Fa-f]{2}"

_LIST_ELEMENT = re.compile(
    rb'(?:[^",<]++|"(?:[^"\\]++|\\.)*+"|<[^<>]*+>)*+',
    re.DOTALL,
)
_PARAMETER = re.compile(
    rb"[ \t]*+;[ \t]*+([" + _TOKEN + rb"]++)[ \t]*+"
    rb"(?:=[ \t]*+([" + _TOKEN + rb"\[\]:]++|" + _QUOTED + rb"))?+"
)
_NAME_ADDR = re.compile(rb"(" + _QUOTED + rb"[ \t]*+|[" + _TOKEN + rb" \t]*+)<([^<>\"\s]++)>")
_ADDR_SPEC = re.compile(rb"[^<>\"\s,;?]++")
_VIA = re.compile(
    rb"[Ss][Ii][Pp][ \t]*+/[ \t]*+2\.0[ \t]*+/[ \t]*+([" + _TOKEN + rb"]++)[ \t]++"
    rb"(" + _HOST + rb")(?:[ \t]*+:[ \t]*+([0-9]{1,5}))?+"
)
_CSEQ = re.compile(rb"([0-9]++)[ \t]++([" + _TOKEN + rb"]++)")
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*+):")
_SIP_URI_REST = re.compile(
    rb"(?:((?:[" + _UNRESERVED + rb"&=+$,;?/]++|" + _ESCAPED + rb")++)"
    rb"(?::((?:[" + _UNRESERVED + rb"&=+$,]++|" + _ESCAPED + rb")*+))?+@)?"
    rb"(" + _HOST + rb")(?::([0-9]{1,5}))?+"
    rb"((?:;(?:[" + _UNRESERVED + rb"\[\]/:&+$=]++|" + _ESCAPED + rb")++)*+)"
    rb"(?:\?((?:[" + _UNRESERVED + rb"\[\]/?:+$=&]++|" + _ESCAPED + rb")++))?+"
)
_OPAQUE_URI = re.compile(rb"(?:[" + _UNRESERVED + rb";/?:@&=+$,\[\]]++|" + _ESCAPED + rb")++")


class SipError(Exception):
    """A peer sent something that is not SIP as we accept it.

    status is the SIP status that an answer should carry, reason its reason phrase (safe to send:
    it never holds the peer's bytes), close says that the stream cannot be trusted any more.
    """

    status = 400

    def __init__(
        self, reason: str, value: bytes = b"", *, status: int = 0, close: bool = False
    ) -> None:
        super().__init__(f"{reason}, value={value[:80]!r}" if value else reason)
        self.reason = reason
        self.status = status or self.status
        self.close = close


class SipSyntaxError(SipError):
    """The message breaks the grammar, or a rule about which headers it must have: 400."""


class SipVersionError(SipError):
    """The message is of another SIP version: 505."""

    status = 505


class SipTooLargeError(SipError):
    """The message exceeds a limit: 413 for the body, 414 for the URI, 513 for the rest."""

    status = 513


class NameAddr(NamedTuple):
    """A From, To or Contact value: display name as written, URI, and the header's parameters."""

    display: bytes
    uri: bytes
    params: dict[bytes, bytes | None]

    @property
    def tag(self) -> bytes | None:
        """The tag parameter; None where there is none."""
        return self.params.get(b"tag")


class Via(NamedTuple):
    """One Via element."""

    transport: bytes
    host: bytes
    port: int | None
    params: dict[bytes, bytes | None]

    @property
    def branch(self) -> bytes | None:
        """The branch parameter; None where there is none."""
        return self.params.get(b"branch")

    @property
    def sent_by(self) -> bytes:
        """host:port in one spelling, for comparison (the port of the transport left open)."""
        return self.host.lower() + (b"" if self.port is None else b":%d" % self.port)


class CSeq(NamedTuple):
    """A CSeq value."""

    number: int
    method: bytes


class Uri(NamedTuple):
    """A URI; for schemes other than sip and sips only `scheme` and `opaque` say anything."""

    scheme: bytes
    opaque: bytes
    user: bytes = b""
    host: bytes = b""
    port: int | None = None
    params: bytes = b""
    headers: bytes = b""

    @property
    def is_sip(self) -> bool:
        """Whether the scheme is sip or sips."""
        return self.scheme in (b"sip", b"sips")


def is_token(value: bytes) -> bool:
    """Whether value is a token: at least one of the token bytes, and no other."""
    return bool(value) and not value.translate(None, TOKEN_BYTES)


def split_head(head: bytes) -> list[bytes]:
    """Cut a head (all before the empty line) at its CRLFs; the first line is the start line.

    Raises SipSyntaxError: with `close` set, for a CR or LF that is not part of a CRLF.
    """
    lines = head.split(b"\r\n")
    ends = len(lines) - 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends:
        raise SipSyntaxError("Bare CR Or LF In Headers", close=True)
    return lines


def unfold(lines: list[bytes]) -> list[bytes]:
    """Join the continuation lines of a head to the lines before them, each by one space.

    Raises SipSyntaxError: with `close` set, where the start line is continued, or a header
    before its colon.
    """
    unfolded: list[list[bytes]] = []
    for number, line in enumerate(lines):
        if not line.startswith((b" ", b"\t")):
            unfolded.append([line])
        elif number > 1 and b":" in unfolded[-1][0]:
            unfolded[-1].append(line.strip(BLANKS))
        else:
            raise SipSyntaxError("Bad Folding", line, close=True)
    return [b" ".join(parts) for parts in unfolded]


def split_list(value: bytes) -> list[bytes]:
    """Split a value at its commas, except those within quotes or <>.

    Returns: the elements without blanks around; an empty value has none.
    Raises SipSyntaxError: for an empty element, or quotes or <> that do not balance.
    """
    if b"," not in value:
        value = value.strip(BLANKS)
        return [value] if value else []
    if b'"' not in value and b"<" not in value:
        elements = value.split(b",")
    else:
        elements = _split_quoted(value)
    elements = [element.strip(BLANKS) for element in elements]
    if not all(elements):
        raise SipSyntaxError("Empty List Element", value)
    return elements


def _split_quoted(value: bytes) -> list[bytes]:
    elements: list[bytes] = []
    position = 0
    while True:
        match = _LIST_ELEMENT.match(value, position)
        assert match is not None  # the pattern matches the empty string
        elements.append(match[0])
        position = match.end()
        if position == len(value):
            return elements
        if value[position : position + 1] != b",":
            raise SipSyntaxError("Unbalanced Quotes", value)
        position += 1


def parse_params(value: bytes, position: int = 0) -> dict[bytes, bytes | None]:
    """Parse `;name=value;name` from position to the end of value.

    Raises SipSyntaxError: for an empty parameter, a name given twice, or anything else there.
    """
    params: dict[bytes, bytes | None] = {}
    end = len(value)
    while position < end:
        match = _PARAMETER.match(value, position)
        if match is None:
            if not value[position:].strip(BLANKS):
                break
            raise SipSyntaxError("Bad Parameter", value)
        name = match[1].lower()
        if name in params:
            raise SipSyntaxError("Parameter Given Twice", value)
        params[name] = match[2]
        position = match.end()
    return params


def parse_name_addr(value: bytes) -> NameAddr:
    """Parse a From, To or Contact element: `"name" <uri>;params` or `uri;params`.

    In the second form everything behind the first `;` belongs to the header, and the URI may
    hold neither comma nor question mark (RFC 3261 section 20).
    Raises SipSyntaxError: for anything else.
    """
    named = b"<" in value
    match = (_NAME_ADDR if named else _ADDR_SPEC).match(value)
    if match is None:
        raise SipSyntaxError("Bad Address", value)
    display, uri = (match[1].strip(BLANKS), match[2]) if named else (b"", match[0])
    params = parse_params(value, match.end())
    parse_uri(uri)
    return NameAddr(display, uri, params)


def parse_party(value: bytes) -> NameAddr:
    """Parse a From or To value: an address whose tag, if there is one, is a token.

    Raises SipSyntaxError: for anything else.
    """
    party = parse_name_addr(value)
    if b"tag" in party.params:
        _token_param(party.params, b"tag")
    return party


def _token_param(params: dict[bytes, bytes | None], name: bytes) -> None:
    value = params[name]
    if value is None or value.translate(None, TOKEN_BYTES):
        raise SipSyntaxError("Bad Parameter", name)


def parse_via(value: bytes) -> Via:
    """Parse one Via element.

    Raises SipSyntaxError: also for a SIP version other than 2.0.
    """
    match = _VIA.match(value)
    if match is None:
        raise SipSyntaxError("Bad Via", value)
    transport, host, port = match.groups()
    params = parse_params(value, match.end())
    if b"branch" in params:
        _token_param(params, b"branch")
    return Via(transport, host, _port(port), params)


def parse_cseq(value: bytes) -> CSeq:
    """Parse a CSeq value; the number must fit 32 bits."""
    match = _CSEQ.fullmatch(value)
    if match is None:
        raise SipSyntaxError("Bad CSeq", value)
    return CSeq(parse_number(match[1], CSEQ_MAX, "CSeq"), match[2])


def parse_number(value: bytes, number_max: int, what: str) -> int:
    """Parse an unsigned decimal number of ASCII digits, at most number_max.

    The length is looked at before the value: a number of a thousand digits costs nothing.
    """
    digits = value.lstrip(b"0") or value[-1:]
    if not value.isdigit() or len(digits) > 10 or int(digits) > number_max:
        raise SipSyntaxError(f"Bad {what}", value)
    return int(digits)


@lru_cache(maxsize=512)  # the same few parties call again and again
def parse_uri(value: bytes) -> Uri:
    """Parse a URI as it stands between <> or in a start line: no blanks, no quotes, no <>.

    Raises SipSyntaxError: where the grammar of its scheme (sip, sips; else the general one) or a
    port above 65535 is against it.
    """
    match = _SCHEME.match(value)
    if match is None:
        raise SipSyntaxError("Bad URI", value)
    scheme = match[1].lower()
    position = match.end()
    if scheme != b"sip" and scheme != b"sips":
        if _OPAQUE_URI.fullmatch(value, position) is None:
            raise SipSyntaxError("Bad URI", value)
        return Uri(scheme, value[position:])
    match = _SIP_URI_REST.fullmatch(value, position)
    if match is None:
        raise SipSyntaxError("Bad URI", value)
    user, _password, host, port, params, headers = match.groups()
    return Uri(
        scheme, value[position:], user or b"", host, _port(port), params or b"", headers or b""
    )


def _port(digits: bytes | None) -> int | None:
    if digits is None:
        return None
    port = int(digits)
    if port > PORT_MAX:
        raise SipSyntaxError("Bad Port", digits)
    return port
