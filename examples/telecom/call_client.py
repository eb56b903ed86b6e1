"""The client's side of a call: INVITE, ACK, a while, BYE, and a strict look at every response.

What it is: an asyncio protocol (`CallConnection`) that carries any number of calls at once over
one TCP connection, and `place`, the life of one call on it.
Who uses it: call.py, and whoever wants to measure a responder to less than a millisecond.

Guarantees:
- A response that does not fit its request (Via, From, To, Call-ID, CSeq, tags, Contact, body)
  fails its call with a cause; a stream that cannot be cut fails all calls on it.
- Times are taken where the bytes arrive, not where the call's task gets its turn.
- A 200 to INVITE that comes again is acknowledged again.

Not promised: what a telephone does. No media, no authentication, no route set.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from aembus.services.framing import Answer, FramingError

from .sip_framer import SipFramer
from .sip_message import (
    BODY_BYTES_MAX,
    HEAD_BYTES_MAX,
    Header,
    Request,
    Response,
    build_request,
    parse,
)
from .sip_syntax import SipError, parse_name_addr


class CallError(Exception):
    """A call failed; the text is its cause, the same for the same kind of failure."""


@dataclass(slots=True, eq=False)
class Call:
    """One call and what is known of it."""

    call_id: bytes
    from_tag: bytes
    responses: asyncio.Queue[tuple[float, Response | CallError]]
    to_tag: bytes | None = None
    target: bytes = b""  # where ACK and BYE go: the Contact of the 200
    ack: bytes = b""
    request: Request | None = None  # the one whose response is waited for
    repeated: int = 0  # 200s that came again
    times_ms: dict[str, float] = field(default_factory=dict)


class CallConnection(asyncio.Protocol):
    """One connection to the server, with the calls on it by Call-ID."""

    def __init__(self, uri: bytes, timeout_s: float = 10.0) -> None:
        self.uri = uri
        self.timeout_s = timeout_s
        self.host = b""
        self.port = 0
        self._calls: dict[bytes, Call] = {}
        self._framer = SipFramer(HEAD_BYTES_MAX + BODY_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of our own address: it goes into Via and Contact."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        host, self.port = transport.get_extra_info("sockname")[:2]
        self.host = (f"[{host}]" if ":" in host else host).encode("ascii")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the calls that wait for something."""
        self._transport = None
        self._fail_all(CallError("connection lost"))
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Give each response to its call."""
        now = self._loop.time()
        try:
            while pieces := self._framer.feed(data):
                for piece in pieces:
                    if not isinstance(piece, Answer):
                        self._take(piece.data, now)
                data = b""
        except FramingError as error:
            self._fail_all(CallError(f"broken stream: {error}"))
            self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def send(self, data: bytes) -> None:
        """Send a request.

        Raises CallError: where the connection is gone.
        """
        if self._transport is None:
            raise CallError("connection lost")
        self._transport.write(data)

    def _fail_all(self, error: CallError) -> None:
        for call in self._calls.values():
            call.responses.put_nowait((0.0, error))

    def _take(self, data: bytes, now: float) -> None:
        try:
            message = parse(data)
            message.check()
        except SipError as error:
            self._fail_all(CallError(f"not SIP: {error.reason}"))
            return
        call = self._calls.get(message.call_id)
        if call is None or not isinstance(message, Response):
            return  # of a call that was given up, or a request: this client serves none
        if call.ack and message.cseq.method == b"INVITE":
            call.repeated += 1
            self.send(call.ack)
            return
        call.responses.put_nowait((now, message))

    async def place(self, number: int, hold_s: float, stop: asyncio.Event) -> Call:
        """Place one call; returns when it has ended well.

        Args: number: tells calls apart in a trace. hold_s: the time between ACK and BYE, cut
        short by stop.
        Raises CallError: with what went wrong.
        """
        call_id = b"%d-%b@%b" % (number, secrets.token_hex(8).encode(), self.host)
        call = Call(call_id, secrets.token_hex(4).encode(), asyncio.Queue())
        self._calls[call_id] = call
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._set_up(call)
            if hold_s:
                await wait_or_stop(stop, hold_s)
            async with asyncio.timeout(self.timeout_s):
                await self._end(call)
        except TimeoutError:
            method = call.request.method.decode() if call.request else "?"
            raise CallError(f"no final response to {method} within {self.timeout_s} s") from None
        except SipError as error:
            raise CallError(f"not SIP: {error.reason}") from None
        finally:
            del self._calls[call_id]
        return call

    async def _set_up(self, call: Call) -> None:
        sdp = (
            b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
            b"m=audio 6000 RTP/AVP 0\r\n"
        )
        contact = b"<sip:caller@%b:%d;transport=tcp>" % (self.host, self.port)
        more = [(b"Contact", contact), (b"Content-Type", b"application/sdp")]
        branch = _branch()
        started = self._request(call, b"INVITE", self.uri, 1, branch, more, sdp)
        while True:
            now, response = await self._response(call)
            if response.status >= 200:
                break
            if response.status > 100:
                call.times_ms.setdefault("ringing", (now - started) * 1000)
        if response.status >= 300:
            self._request(call, b"ACK", self.uri, 1, branch)
            raise CallError(f"INVITE was answered {response.status}")
        call.times_ms["setup"] = (now - started) * 1000
        contacts = response.get_list(b"Contact")
        if len(contacts) != 1:
            raise CallError("200 to INVITE without its one Contact")
        call.target = parse_name_addr(contacts[0]).uri
        if (
            response.get(b"Content-Type") != b"application/sdp"
            or b"\nm=audio " not in response.body
        ):
            raise CallError("200 to INVITE without an answer to the offer")
        self._request(call, b"ACK", call.target, 1, _branch())

    async def _end(self, call: Call) -> None:
        started = self._request(call, b"BYE", call.target, 2, _branch())
        now, response = await self._response(call)
        if response.status != 200:
            raise CallError(f"BYE was answered {response.status}")
        call.times_ms["bye"] = (now - started) * 1000

    def _request(
        self,
        call: Call,
        method: bytes,
        uri: bytes,
        number: int,
        branch: bytes,
        more: list[Header] | None = None,
        body: bytes = b"",
    ) -> float:
        """Build and send a request; returns the time it was sent."""
        via = b"SIP/2.0/TCP %b:%d;branch=%b" % (self.host, self.port, branch)
        to = b"<" + self.uri + b">"
        if call.to_tag is not None:
            to += b";tag=" + call.to_tag
        from_ = b"<sip:caller@%b>;tag=%b" % (self.host, call.from_tag)
        headers: list[Header] = [
            (b"Via", via),
            (b"Max-Forwards", b"70"),
            (b"From", from_),
            (b"To", to),
            (b"Call-ID", call.call_id),
            (b"CSeq", b"%d %b" % (number, method)),
            *(more or ()),
        ]
        data = build_request(method, uri, headers, body)
        if method == b"ACK":
            call.ack = data
        else:
            call.request = Request(method, uri, headers, body)
        started = self._loop.time()
        self.send(data)
        return started

    async def _response(self, call: Call) -> tuple[float, Response]:
        """Wait for the next response to the call's request, and look at it strictly."""
        now, response = await call.responses.get()
        if isinstance(response, CallError):
            raise response
        assert call.request is not None
        problem = misfit(response, call.request, call.to_tag)
        if problem:
            raise CallError(f"{response.status} to {call.request.method.decode()}: {problem}")
        if response.status > 100:
            call.to_tag = response.to.tag
        return now, response


def misfit(response: Response, request: Request, to_tag: bytes | None) -> str:
    """What is wrong with a response to this request; "" if nothing is.

    Args: to_tag: the tag that earlier responses of the dialog had; None: there was none.
    """
    vias = response.vias
    ours = request.vias[0]
    if len(vias) != 1 or (vias[0].branch, vias[0].sent_by) != (ours.branch, ours.sent_by):
        return "another Via"
    for name in (b"From", b"Call-ID", b"CSeq"):
        if response.get(name) != request.get(name):
            return f"another {name.decode()}"
    if response.to.uri != request.to.uri:
        return "another To"
    if response.status > 100:
        if response.to.tag is None:
            return "no To-tag"
        if to_tag is not None and response.to.tag != to_tag:
            return "another To-tag"
    if not response.reason:
        return "no reason phrase"
    return ""


def _branch() -> bytes:
    return b"z9hG4bK" + secrets.token_hex(8).encode()


async def wait_or_stop(stop: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until stop is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
