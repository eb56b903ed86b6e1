"""The bindings that REGISTER makes (RFC 3261 section 10.3), in memory.

What it is: pure tables; `now` is an argument, in seconds of any monotonic clock.
Who uses it: sip_transaction, in each worker on its own.

Guarantees:
- All or nothing: a REGISTER that is refused changes no binding.
- Bounded: contacts per address, their bytes and addresses are limited; what has expired is
  forgotten when its address is next looked at, or when room is needed.

Not promised: bindings do not outlive their worker, and workers do not share them. Calls do
(see sip_transaction); a registrar that must would keep its bindings elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .sip_message import Header, Request
from .sip_syntax import NameAddr, SipError, SipSyntaxError, Uri, parse_number, parse_uri

EXPIRES_DEFAULT_S = 3600
EXPIRES_MIN_S = 60
EXPIRES_MAX_S = 86400
CONTACTS_MAX = 16  # of one address of record
CONTACTS_BYTES_MAX = 8 * 1024  # of these, as a 200 lists them: it has to fit into a head
_DELTA_MAX = 2**32 - 1


class Answer(NamedTuple):
    """What a REGISTER gets: a status and the headers that go with it."""

    status: int
    headers: tuple[Header, ...]


@dataclass(slots=True)
class Binding:
    """One contact of an address of record."""

    contact: NameAddr
    expires_at: float
    call_id: bytes
    cseq: int


class _Wish(NamedTuple):
    """What a REGISTER asks for one contact; 0 seconds remove it."""

    identity: bytes
    contact: NameAddr
    expires_s: int


class Registrar:
    """Bindings by address of record."""

    def __init__(self, addresses_max: int = 10_000) -> None:
        self._addresses_max = addresses_max
        self._bindings: dict[bytes, dict[bytes, Binding]] = {}

    def __len__(self) -> int:
        return len(self._bindings)

    def register(self, request: Request, now: float) -> Answer:
        """Carry out a REGISTER whose `check` passed.

        Returns: 200 with every binding that there is now; 400 for a rule broken, 423 with
        Min-Expires, 500 for a CSeq that is not higher, 503 where a limit is reached. Other than
        at 200 nothing has changed.
        """
        try:
            address = _address(request.to.uri)
            wishes = _wishes(request)
        except SipError:
            return Answer(400, ())
        bindings = {
            identity: binding
            for identity, binding in self._bindings.get(address, {}).items()
            if binding.expires_at > now
        }
        before = dict(bindings)
        number, call_id = request.cseq.number, request.call_id
        if wishes is None:  # "*": all of them
            wishes = [_Wish(identity, held.contact, 0) for identity, held in bindings.items()]
        for identity, contact, expires_s in wishes:
            if 0 < expires_s < EXPIRES_MIN_S:
                return Answer(423, ((b"Min-Expires", b"%d" % EXPIRES_MIN_S),))
            held = before.get(identity)
            if held is not None and held.call_id == call_id and number <= held.cseq:
                return Answer(500, ())
            if expires_s:
                expires_at = now + min(expires_s, EXPIRES_MAX_S)
                bindings[identity] = Binding(contact, expires_at, call_id, number)
            else:
                bindings.pop(identity, None)
        contacts = tuple((b"Contact", _written(held, now)) for held in bindings.values())
        contacts_bytes = sum(len(value) for _, value in contacts)
        if len(bindings) > CONTACTS_MAX or contacts_bytes > CONTACTS_BYTES_MAX:
            return Answer(503, ((b"Retry-After", b"60"),))
        if not self._has_room(address, now):
            return Answer(503, ((b"Retry-After", b"60"),))
        if bindings:
            self._bindings[address] = bindings
        else:
            self._bindings.pop(address, None)
        return Answer(200, contacts)

    def _has_room(self, address: bytes, now: float) -> bool:
        if address in self._bindings or len(self._bindings) < self._addresses_max:
            return True
        self._bindings = {
            held_address: bindings
            for held_address, bindings in self._bindings.items()
            if any(binding.expires_at > now for binding in bindings.values())
        }
        return len(self._bindings) < self._addresses_max


def _wishes(request: Request) -> list[_Wish] | None:
    """What the Contact headers ask for; None stands for `*`."""
    elements = request.get_list(b"Contact")
    default_s = _delta(request.get(b"Expires"), EXPIRES_DEFAULT_S)
    if b"*" in elements:
        if len(elements) > 1 or request.get(b"Expires") is None or default_s:
            raise SipSyntaxError("Bad Wildcard Contact")
        return None
    wishes: list[_Wish] = []
    for contact in request.contacts:
        expires_s = default_s
        if b"expires" in contact.params:
            expires_s = _delta(contact.params[b"expires"] or b"", EXPIRES_DEFAULT_S)
        wishes.append(_Wish(_identity(parse_uri(contact.uri)), contact, expires_s))
    return wishes


def _delta(value: bytes | None, default_s: int) -> int:
    """A number of seconds; a malformed one counts as the default, as section 10.2.1.1 has it."""
    if value is None:
        return default_s
    try:
        return parse_number(value, _DELTA_MAX, "Expires")
    except SipSyntaxError:
        return default_s


def _address(uri: bytes) -> bytes:
    """The address of record: the To URI without its parameters."""
    parsed = parse_uri(uri)
    if not parsed.is_sip:
        raise SipSyntaxError("To Is Not A SIP URI", uri)
    return parsed.user + b"@" + _host_port(parsed)


def _identity(uri: Uri) -> bytes:
    """What makes two contacts the same: user part as written, host without case, all the rest."""
    if not uri.is_sip:
        return uri.scheme + b":" + uri.opaque
    return b"\0".join((uri.scheme, uri.user, _host_port(uri), uri.params, uri.headers))


def _host_port(uri: Uri) -> bytes:
    return uri.host.lower() + (b"" if uri.port is None else b":%d" % uri.port)


def _written(binding: Binding, now: float) -> bytes:
    """A binding as a Contact value: the URI as it came, its parameters, the seconds left."""
    display, uri, params = binding.contact
    value = (display + b" " if display else b"") + b"<" + uri + b">"
    for name, text in params.items():
        if name != b"expires":
            value += b";" + name + (b"" if text is None else b"=" + text)
    return value + b";expires=%d" % max(1, round(binding.expires_at - now))
