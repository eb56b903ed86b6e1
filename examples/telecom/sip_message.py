"""SIP messages as bytes: parse one whole message, build one whole message.

What it is: sans-IO. `parse` takes exactly one message, as the framer cuts it, and gives a Request
or a Response; `build_request`, `build_response` and `refusal` give bytes.
Who uses it: the workers (sip_transaction), the client (call), and the framer, in the supervisor,
for the answers it gives to broken streams.

    bytes ──parse──► Request ──check──► properties (vias, to, cseq …) ──► build_response ──► bytes
      └── SipError ──────┴── SipError ──► refusal ──► bytes

Guarantees:
- `parse`, `check` and the properties raise SipError and nothing else, whatever the bytes are.
- `parse` judges the start line, the limits, the names of the headers, their line ends, and
  Content-Length; values are left alone until asked for, then parsed once.
- Header names are canonical (`Via`, never `v` or `VIA`), values unfolded and without blanks
  around; the order stays.
- What is built holds exactly the headers that were meant: a line end smuggled into a value is a
  ValueError.

Not promised: the exact bytes of a message survive (folding and spelling do not).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NoReturn

from .sip_names import SINGLE, SPELLINGS, canonical_name, known_name
from .sip_syntax import (
    BLANKS,
    TOKEN_BYTES,
    WORD_BYTES,
    CSeq,
    NameAddr,
    SipError,
    SipSyntaxError,
    SipTooLargeError,
    SipVersionError,
    Uri,
    Via,
    parse_cseq,
    parse_name_addr,
    parse_number,
    parse_party,
    parse_uri,
    parse_via,
    split_head,
    split_list,
    unfold,
)

HEAD_BYTES_MAX = 16 * 1024  # start line, headers and the empty line
HEADERS_MAX = 128
BODY_BYTES_MAX = 64 * 1024
URI_BYTES_MAX = 2 * 1024
LENGTH_DIGITS_MAX = 7  # of a Content-Length

Header = tuple[bytes, bytes]

REASONS = {
    100: b"Trying",
    180: b"Ringing",
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    406: b"Not Acceptable",
    413: b"Request Entity Too Large",
    414: b"Request-URI Too Long",
    415: b"Unsupported Media Type",
    416: b"Unsupported URI Scheme",
    420: b"Bad Extension",
    423: b"Interval Too Brief",
    481: b"Call/Transaction Does Not Exist",
    482: b"Loop Detected",
    487: b"Request Terminated",
    500: b"Server Internal Error",
    501: b"Not Implemented",
    503: b"Service Unavailable",
    505: b"Version Not Supported",
    513: b"Message Too Large",
}

_FOLD = re.compile(rb"\r\n[ \t]++")
_COPIED = (b"From", b"To", b"Call-ID", b"CSeq")  # into every response, with the Vias before them


class SipMessage:
    """What requests and responses share: headers in order, a body, and parsed views of both."""

    __slots__ = ("_cseq", "_from", "_last", "_repeated", "_to", "_vias", "body", "headers")

    def __init__(self, headers: list[Header], body: bytes) -> None:
        self.headers = headers
        self.body = body
        self._last = dict(headers)
        self._repeated = len(self._last) != len(headers)
        self._vias: list[Via] | None = None
        self._from: NameAddr | None = None
        self._to: NameAddr | None = None
        self._cseq: CSeq | None = None

    def get(self, name: bytes) -> bytes | None:
        """The value of a header (its last field, where there are several); None without one."""
        return self._last.get(name)

    def get_all(self, name: bytes) -> list[bytes]:
        """The values of all fields of a header, in order, not split at commas."""
        if name not in self._last:
            return []
        if not self._repeated:
            return [self._last[name]]
        return [value for header, value in self.headers if header == name]

    def replace_first(self, name: bytes, value: bytes) -> None:
        """Give the first field of a header that is there another value.

        What was parsed of it before stays as it was.
        """
        at = next(number for number, header in enumerate(self.headers) if header[0] == name)
        self.headers[at] = (name, value)
        self._last = dict(self.headers)

    def get_list(self, name: bytes) -> list[bytes]:
        """The elements of a header, over all its fields, split at commas."""
        return [element for value in self.get_all(name) for element in split_list(value)]

    @property
    def vias(self) -> list[Via]:
        """All Via elements, topmost first; at least one."""
        if self._vias is None:
            vias = [parse_via(element) for element in self.get_list(b"Via")]
            if not vias:
                _missing("Via")
            self._vias = vias
        return self._vias

    @property
    def from_(self) -> NameAddr:
        """The From header."""
        if self._from is None:
            self._from = parse_party(self._last.get(b"From") or _missing("From"))
        return self._from

    @property
    def to(self) -> NameAddr:
        """The To header."""
        if self._to is None:
            self._to = parse_party(self._last.get(b"To") or _missing("To"))
        return self._to

    @property
    def cseq(self) -> CSeq:
        """The CSeq header."""
        if self._cseq is None:
            self._cseq = parse_cseq(self._last.get(b"CSeq") or _missing("CSeq"))
        return self._cseq

    @property
    def call_id(self) -> bytes:
        """The Call-ID."""
        value = self._last.get(b"Call-ID") or _missing("Call-ID")
        if value.translate(None, WORD_BYTES) not in (b"", b"@"):
            raise SipSyntaxError("Bad Call-ID", value)
        return value

    def check(self) -> None:
        """Parse the headers that every message must have, so that later uses cannot raise.

        Raises SipSyntaxError: for the first that is missing or malformed.
        """
        _ = (self.vias, self.from_, self.to, self.call_id, self.cseq)


def _missing(name: str) -> NoReturn:
    raise SipSyntaxError(f"Missing {name}")


class Request(SipMessage):
    """A SIP request."""

    __slots__ = ("_target", "method", "uri")

    def __init__(self, method: bytes, uri: bytes, headers: list[Header], body: bytes) -> None:
        super().__init__(headers, body)
        self.method = method
        self.uri = uri
        self._target: Uri | None = None

    @property
    def target(self) -> Uri:
        """The Request-URI; a sip URI there may hold no headers."""
        if self._target is None:
            target = parse_uri(self.uri)
            if target.headers:
                raise SipSyntaxError("Headers In Request-URI", self.uri)
            self._target = target
        return self._target

    @property
    def max_forwards(self) -> int | None:
        """Max-Forwards; None without one (as RFC 2543 had it)."""
        value = self.get(b"Max-Forwards")
        return None if value is None else parse_number(value, 255, "Max-Forwards")

    @property
    def contacts(self) -> list[NameAddr]:
        """The Contact elements; `*` is not one, ask get_list."""
        return [parse_name_addr(element) for element in self.get_list(b"Contact")]

    def check(self) -> None:
        """As for every message; also the Request-URI, Max-Forwards, the method in CSeq, and the
        Contact of an INVITE (REGISTER has rules of its own for it).
        """
        super().check()
        _ = (self.target, self.max_forwards)
        if self.method == b"INVITE":
            _ = self.contacts
        if self.cseq.method != self.method:
            raise SipSyntaxError("CSeq Method Mismatch", self.cseq.method)


class Response(SipMessage):
    """A SIP response."""

    __slots__ = ("reason", "status")

    def __init__(self, status: int, reason: bytes, headers: list[Header], body: bytes) -> None:
        super().__init__(headers, body)
        self.status = status
        self.reason = reason


def parse(data: bytes) -> Request | Response:
    """Parse exactly one message.

    Raises SipError: where it breaks a rule; `close` is set where its end is in doubt.
    """
    end = data.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
    if end < 0:
        if len(data) >= HEAD_BYTES_MAX:
            raise SipTooLargeError("Message Too Large", close=True)
        raise SipSyntaxError("Headers Not Terminated", close=True)
    body = data[end + 4 :]
    if len(body) > BODY_BYTES_MAX:
        raise SipTooLargeError("Request Entity Too Large", status=413, close=True)
    lines = split_head(data[:end])
    start_line = lines[0]
    if start_line[:4].upper() == b"SIP/":
        status, reason = _parse_status_line(start_line)
        return Response(status, reason, _parse_headers(lines, len(body)), body)
    method, uri = _parse_request_line(start_line)
    return Request(method, uri, _parse_headers(lines, len(body)), body)


def _parse_request_line(line: bytes) -> tuple[bytes, bytes]:
    parts = line.split(b" ")
    if len(parts) != 3 or not parts[1] or parts[0].translate(None, TOKEN_BYTES) or not parts[0]:
        raise SipSyntaxError("Bad Request Line", line)
    method, uri, version = parts
    if version != b"SIP/2.0":
        _refuse_version(version)
    if len(uri) > URI_BYTES_MAX:
        raise SipTooLargeError("Request-URI Too Long", uri, status=414)
    return method, uri


def _parse_status_line(line: bytes) -> tuple[int, bytes]:
    version, _, rest = line.partition(b" ")
    if version != b"SIP/2.0":
        _refuse_version(version)
    code, space, reason = rest.partition(b" ")
    if not space or len(code) != 3 or not code.isdigit() or code < b"100" or code > b"699":
        raise SipSyntaxError("Bad Status Line", line)
    return int(code), reason


def _refuse_version(version: bytes) -> None:
    """Raise for a version that is not ours; "sip/2.0" is (tokens have no case)."""
    if version.upper() == b"SIP/2.0":
        return
    name, _, number = version.partition(b"/")
    major, _, minor = number.partition(b".")
    if name.upper() == b"SIP" and major.isdigit() and minor.isdigit():
        raise SipVersionError("Version Not Supported", version)
    raise SipSyntaxError("Bad Version", version)


def _parse_headers(lines: list[bytes], body_bytes: int) -> list[Header]:
    headers: list[Header] = []
    names, blanks = SPELLINGS, BLANKS
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        canonical = names.get(name)
        if canonical is None or not colon:
            if line.startswith((b" ", b"\t")):
                return _parse_headers(unfold(lines), body_bytes)
            if not colon:
                raise SipSyntaxError("Header Without Colon", line)
            canonical = canonical_name(name)
        headers.append((canonical, value.strip(blanks)))
    if len(headers) > HEADERS_MAX:
        raise SipTooLargeError("Message Too Large", b"headers=%d" % len(headers), close=True)
    last = dict(headers)
    if len(last) != len(headers):
        _refuse_repeated(headers)
    length = last.get(b"Content-Length")
    if length is None:
        raise SipSyntaxError("Missing Content-Length", close=True)
    if parse_length(length) != body_bytes:
        raise SipSyntaxError("Content-Length Mismatch", length, close=True)
    return headers


def _refuse_repeated(headers: list[Header]) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in SINGLE:
            if name in seen:
                raise SipSyntaxError(f"{name.decode('ascii')} Given Twice")
            seen.add(name)


def parse_length(value: bytes) -> int:
    """Parse a Content-Length: one to seven ASCII digits.

    Raises SipSyntaxError: for anything else, with `close` set.
    """
    if not value.isdigit() or len(value) > LENGTH_DIGITS_MAX:
        raise SipSyntaxError("Bad Content-Length", value, close=True)
    return int(value)


def build_request(method: bytes, uri: bytes, headers: Iterable[Header], body: bytes = b"") -> bytes:
    """The bytes of a request; Content-Length is added."""
    return _build(b"%b %b SIP/2.0" % (method, uri), headers, body)


def build_response(
    request: SipMessage,
    status: int,
    to_tag: bytes = b"",
    headers: Iterable[Header] = (),
    body: bytes = b"",
) -> bytes:
    """The bytes of a response to a request whose `check` passed.

    Every Via in order, From, To, Call-ID and CSeq are copied as they came; to_tag is put on a To
    that has no tag; Content-Length is added.
    """
    last = request._last
    to = last[b"To"]
    if to_tag and request.to.tag is None:
        to += b";tag=" + to_tag
    copied = [(b"Via", value) for value in request.get_all(b"Via")]
    copied += ((b"From", last[b"From"]), (b"To", to))
    copied += ((b"Call-ID", last[b"Call-ID"]), (b"CSeq", last[b"CSeq"]))
    copied += headers
    return _build(b"SIP/2.0 %d %b" % (status, REASONS[status]), copied, body)


def refusal(data: bytes, error: SipError) -> bytes:
    """The best answer there is to bytes that broke a rule: what can be read of it is copied.

    data may be a whole message, its head, or a part of one. Returns b"" where no answer may be
    given: to a response or to an ACK.
    """
    head = data[:HEAD_BYTES_MAX].partition(b"\r\n\r\n")[0]
    start_line, _, block = head.partition(b"\r\n")
    if start_line[:4].upper() == b"SIP/" or start_line[:4] == b"ACK ":
        return b""
    vias: list[Header] = []
    found: dict[bytes, bytes] = {}
    for line in _FOLD.sub(b" ", block).split(b"\r\n"):
        name, _, value = line.partition(b":")
        canonical = known_name(name)
        value = value.strip(BLANKS)
        if not value or b"\r" in value or b"\n" in value or b"\0" in value:
            continue
        if canonical == b"Via":
            vias.append((canonical, value))
        elif canonical in _COPIED:
            found.setdefault(canonical, value)
    if b"To" in found:
        found[b"To"] = _with_tag(found[b"To"], b"\n".join(found.values()))
    headers = vias + [(name, found[name]) for name in _COPIED if name in found]
    return _build(b"SIP/2.0 %d %b" % (error.status, error.reason.encode("ascii")), headers, b"")


def unavailable(data: bytes) -> bytes:
    """The 503 to a request that nobody will answer any more; b"" to what takes no answer."""
    return refusal(data, SipError("Service Unavailable", status=503))


def _with_tag(to: bytes, identity: bytes) -> bytes:
    """Add a tag to a To value that can be parsed and has none; the same for the same request."""
    try:
        if parse_party(to).tag is not None:
            return to
    except SipError:
        return to
    return to + b";tag=" + hashlib.blake2b(identity, digest_size=8).hexdigest().encode("ascii")


def _build(start_line: bytes, headers: Iterable[Header], body: bytes) -> bytes:
    lines = [start_line]
    lines += [b"%b: %b" % header for header in headers]
    lines.append(b"Content-Length: %d\r\n\r\n" % len(body))
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1:
        raise ValueError(f"line end within a start line or header, head={head[:200]!r}")
    return head + body
