"""What the telecom tests share: messages, a server driven by hand, and one on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aembus.services.framing import Answer, FramingError
from examples.telecom.sip_actions import (
    Action,
    CancelTimer,
    Close,
    Count,
    Send,
    StartTimer,
    Wake,
)
from examples.telecom.sip_framer import SipFramer
from examples.telecom.sip_message import Header, Response, build_request, parse
from examples.telecom.sip_transaction import Settings, SipServer

MESSAGE_BYTES_MAX = 80 * 1024
SECRET = b"the secret of the tests"
SDP = (
    b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n"
    b"m=audio 49170 RTP/AVP 0\r\n"
)


def request(
    method: bytes = b"OPTIONS",
    *,
    uri: bytes = b"sip:service@127.0.0.1:5060",
    branch: bytes = b"z9hG4bK-1",
    call_id: bytes = b"call-1@192.0.2.1",
    cseq: int = 1,
    to_tag: bytes = b"",
    more: Sequence[Header] = (),
    body: bytes = b"",
) -> bytes:
    """The bytes of a request as an ordinary client sends it."""
    to = b"<sip:service@127.0.0.1:5060>" + (b";tag=" + to_tag if to_tag else b"")
    headers: list[Header] = [
        (b"Via", b"SIP/2.0/TCP 192.0.2.1:5061;branch=" + branch),
        (b"From", b"caller <sip:caller@192.0.2.1>;tag=from-1"),
        (b"To", to),
        (b"Call-ID", call_id),
        (b"CSeq", b"%d %b" % (cseq, method)),
        (b"Contact", b"<sip:caller@192.0.2.1:5061>"),
        (b"Max-Forwards", b"70"),
        *more,
    ]
    if body:
        headers.append((b"Content-Type", b"application/sdp"))
    return build_request(method, uri, headers, body)


def invite(**fields: object) -> bytes:
    """An INVITE with an offer."""
    return request(b"INVITE", body=SDP, **fields)  # type: ignore[arg-type]


class Driver:
    """A SipServer with a clock that the test turns, and the actions sorted by kind."""

    def __init__(self, server: SipServer | None = None, *, ring_s: float = 0.0, **more: object):
        self.server = server or SipServer(
            Settings(SECRET, b"sip:192.0.2.9:5060", b"192.0.2.9", ring_s, **more)  # type: ignore[arg-type]
        )
        self.now = 1000.0
        self.sent: list[tuple[int, Response]] = []
        self.timers: dict[bytes, StartTimer] = {}
        self.cancelled: list[bytes] = []
        self.counted: dict[str, int] = {}
        self.closed: list[int] = []
        self.wake_at: float | None = None

    def receive(self, data: bytes, connection: int = 1) -> list[Response]:
        """Give the server a message, carry out what it asks; returns what it sent for it."""
        return self._carry_out(self.server.receive(data, connection, self.now))

    def fire(self, timer: StartTimer) -> list[Response]:
        """Let a ring timer end, whichever process started it."""
        self.timers.pop(timer.timer, None)
        return self._carry_out(
            self.server.answer(timer.timer, timer.connection, timer.response, self.now)
        )

    def advance(self, seconds: float) -> list[Response]:
        """Let time pass, with the wake-ups that were asked for."""
        until = self.now + seconds
        sent: list[Response] = []
        while self.wake_at is not None and self.wake_at <= until:
            self.now = max(self.now, self.wake_at)
            self.wake_at = None
            sent += self._carry_out(self.server.tick(self.now))
        self.now = until
        return sent

    def _carry_out(self, actions: Sequence[Action]) -> list[Response]:
        sent: list[Response] = []
        for action in actions:
            if isinstance(action, Send):
                for response in responses(action.data):
                    sent.append(response)
                    self.sent.append((action.connection, response))
            elif isinstance(action, StartTimer):
                self.timers[action.timer] = action
            elif isinstance(action, CancelTimer):
                self.timers.pop(action.timer, None)
                self.cancelled.append(action.timer)
            elif isinstance(action, Wake):
                self.wake_at = self.now + action.delay_s
            elif isinstance(action, Close):
                self.closed.append(action.connection)
            elif isinstance(action, Count):
                self.counted[action.name] = self.counted.get(action.name, 0) + 1
        return sent


def responses(data: bytes) -> list[Response]:
    """Cut and parse what a server sent; everything it sends must be responses, whole ones."""
    found: list[Response] = []
    whole = b""
    for piece in SipFramer(MESSAGE_BYTES_MAX).feed(data):
        assert not isinstance(piece, Answer)
        message = parse(piece.data)
        assert isinstance(message, Response)
        found.append(message)
        whole += piece.data
    assert whole == data
    return found


def statuses(found: Sequence[Response]) -> list[int]:
    """The statuses of some responses."""
    return [response.status for response in found]


class LocalServer:
    """The pure parts of the responder behind a real socket, in one process, without a bus."""

    def __init__(self, ring_s: float = 0.0) -> None:
        self.address = ("127.0.0.1", 0)
        self._ring_s = ring_s
        self._listener: asyncio.Server | None = None
        self._transports: dict[int, asyncio.Transport] = {}
        self._timers: dict[bytes, asyncio.TimerHandle] = {}
        self.counted: dict[str, int] = {}
        self._changed = asyncio.Event()

    async def __aenter__(self) -> LocalServer:
        self._loop = asyncio.get_running_loop()
        self._listener = await self._loop.create_server(lambda: _Line(self), "127.0.0.1", 0)
        self.address = self._listener.sockets[0].getsockname()[:2]
        contact = b"sip:%b:%d" % (self.address[0].encode(), self.address[1])
        self.server = SipServer(Settings(SECRET, contact, b"127.0.0.1", self._ring_s))
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for timer in self._timers.values():
            timer.cancel()
        for transport in list(self._transports.values()):
            transport.abort()
        await self._listener.wait_closed()

    async def has_counted(self, name: str, number: int) -> None:
        """Wait until a counter has come to a number."""
        while self.counted.get(name, 0) < number:
            self._changed.clear()
            await self._changed.wait()

    def drop_connections(self) -> None:
        """Cut all connections."""
        for transport in list(self._transports.values()):
            transport.abort()

    def carry_out(self, actions: Sequence[Action]) -> None:
        """Do what the server asked for."""
        self._changed.set()
        for action in actions:
            if isinstance(action, Send):
                if action.connection in self._transports:
                    self._transports[action.connection].write(action.data)
            elif isinstance(action, StartTimer):
                self._timers[action.timer] = self._loop.call_later(
                    action.delay_s, self._answer, action
                )
            elif isinstance(action, CancelTimer):
                self._timers.pop(action.timer).cancel()
            elif isinstance(action, Wake):
                if b"" in self._timers:
                    self._timers[b""].cancel()
                self._timers[b""] = self._loop.call_later(action.delay_s, self._tick)
            elif isinstance(action, Close):
                self._transports[action.connection].close()
            elif isinstance(action, Count):
                self.counted[action.name] = self.counted.get(action.name, 0) + 1

    def _answer(self, timer: StartTimer) -> None:
        del self._timers[timer.timer]
        self.carry_out(
            self.server.answer(timer.timer, timer.connection, timer.response, self._loop.time())
        )

    def _tick(self) -> None:
        self.carry_out(self.server.tick(self._loop.time()))


class _Line(asyncio.Protocol):
    """One connection of a LocalServer."""

    def __init__(self, local: LocalServer) -> None:
        self._local = local
        self._framer = SipFramer(MESSAGE_BYTES_MAX)
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._local._transports[id(self)] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._local._transports.pop(id(self), None)

    def data_received(self, data: bytes) -> None:
        try:
            while pieces := self._framer.feed(data):
                for piece in pieces:
                    if isinstance(piece, Answer):
                        self._transport.write(piece.data)
                    else:
                        now = self._loop.time()
                        self._local.carry_out(self._local.server.receive(piece.data, id(self), now))
                data = b""
        except FramingError as error:
            self._transport.write(error.answer)
            self._transport.close()


def tag_of(found: list[Response]) -> bytes:
    """The To-tag of the last of some responses."""
    tag = found[-1].to.tag
    assert tag is not None
    return tag
