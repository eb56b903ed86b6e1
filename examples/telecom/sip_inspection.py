"""The order of inspection of RFC 3261 section 8.2: may this request be acted upon?

What it is: one pure function over a request whose `check` passed, and the tables it walks.
Who uses it: sip_transaction, before any method's own rules.

Guarantees: refusals come in the RFC's order: 405 or 501, 416, 404, 420, 415, 406. The same
request always gets the same refusal, so nobody has to remember that it was refused.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from .sip_message import Header, Request
from .sip_syntax import SipError, Uri, parse_uri

ALLOWED_METHODS = (b"INVITE", b"ACK", b"BYE", b"CANCEL", b"OPTIONS", b"REGISTER")
# Known to the standards and not allowed here: 405. What is in neither table is a 501.
KNOWN_METHODS = frozenset(
    b"INFO MESSAGE NOTIFY PRACK PUBLISH REFER SUBSCRIBE UPDATE".split() + list(ALLOWED_METHODS)
)
SDP = b"application/sdp"
ALLOW: Header = (b"Allow", b", ".join(ALLOWED_METHODS))
ACCEPT: Header = (b"Accept", SDP)
ACCEPT_ENCODING: Header = (b"Accept-Encoding", b"identity")
CAPABILITIES = (ALLOW, ACCEPT, ACCEPT_ENCODING, (b"Accept-Language", b"en"), (b"Supported", b""))


class Refusal(NamedTuple):
    """A final status to answer with, and the headers that explain it."""

    status: int
    headers: tuple[Header, ...] = ()


def inspect(request: Request, users: frozenset[bytes] | None) -> Refusal | None:
    """Say why the request cannot be acted upon; None: it can.

    Args: users: the user parts that exist here; None: every one does.
    Raises SipError: where a header that is looked at here is malformed.
    """
    method = request.method
    if method not in ALLOWED_METHODS:
        return Refusal(405 if method in KNOWN_METHODS else 501, (ALLOW,))
    if not request.target.is_sip:
        return Refusal(416)
    if users is not None and not _is_known(request, users):
        return Refusal(404)
    if method != b"CANCEL":
        unsupported = request.get_list(b"Require") + request.get_list(b"Proxy-Require")
        if unsupported:
            return Refusal(420, ((b"Unsupported", b", ".join(unsupported)),))
        if request.body:
            refusal = _inspect_body(request)
            if refusal is not None:
                return refusal
    if method == b"INVITE" and not _accepts_sdp(request):
        return Refusal(406)
    return None


def is_sdp(request: Request) -> bool:
    """Whether the body, if there is one, is a session description."""
    content_type = request.get(b"Content-Type") or b""
    return content_type.partition(b";")[0].strip().lower() == SDP


def _is_known(request: Request, users: frozenset[bytes]) -> bool:
    """Whether the address meant exists: To for REGISTER, else the Request-URI.

    A URI without a user part means this server itself; within a dialog the Request-URI is our
    own Contact, which says nothing about users.
    """
    target: Uri = request.target
    if request.method == b"REGISTER":
        try:
            target = parse_uri(request.to.uri)
        except SipError:
            return False
    elif request.to.tag is not None or request.method == b"CANCEL":
        return True
    return not target.user or unquote_to_bytes(target.user) in users


def _inspect_body(request: Request) -> Refusal | None:
    encoding = request.get(b"Content-Encoding")
    if encoding is not None and encoding.lower() != b"identity":
        return Refusal(415, (ACCEPT, ACCEPT_ENCODING))
    if is_sdp(request):
        return None
    disposition = (request.get(b"Content-Disposition") or b"").lower()
    if b"handling=optional" in disposition.replace(b" ", b""):
        return None
    return Refusal(415, (ACCEPT, ACCEPT_ENCODING))


def _accepts_sdp(request: Request) -> bool:
    accepted = request.get_list(b"Accept")
    if not accepted and request.get(b"Accept") is None:
        return True
    ranges = {element.partition(b";")[0].strip().lower() for element in accepted}
    return not ranges.isdisjoint((SDP, b"application/*", b"*/*"))
