"""One connection of the TCP service: its stream, its framer, and what it still has time for.

Bytes go through the framer, whose messages activate the point.  When their destination is full and
its parking line over the bound, this connection alone stops reading.  What is sent waits in the
stream; a peer that leaves more than `unsent_bytes_max` unread is closed.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from aembus.codec import encode, key_hash
from aembus.services.base import Host
from aembus.services.framing import Answer, Framer, FramingError, RawFramer

from .tcp_failure import Failure
from .tcp_handshakes import Handshakes
from .tcp_opening import Entrance, Opening
from .tcp_stream import Stream

log = logging.getLogger("aembus")  # what a peer can cause is told as INFO only: it may do so often

NS: Final = 1_000_000_000
SLICE_BYTES: Final = 4096  # cut at once: with messages of a few bytes it takes milliseconds
MESSAGES_A_TURN: Final = 64
LAST_ANSWERS_S: Final = 0.2  # for answers to what came right before the end
UNSENT_S: Final = 10.0  # for a peer to take more of what is unsent, when we close
LINGER_S: Final = 1.0  # for a peer to close as well, once everything is sent


class Origin(Entrance, Protocol):
    """Where a connection comes from: a listener, or a request to connect."""

    failure: Failure | None
    make_framer: Callable[[int], Framer]

    @property
    def source(self) -> int | None:
        """In whose name beginnings and ends are told; None: in the connection's own."""

    def leave(self, address: str) -> None:
        """One of its connections is no more."""


class Keeper(Protocol):
    """What a connection asks of the service."""

    host: Host
    handshakes: Handshakes

    def count(self, what: str) -> None:
        """Count something for the statistics."""

    def look_at(self, connection: Connection, at_ns: int) -> None:
        """Call `check_time` no later than at `at_ns`."""

    def flush_later(self, connection: Connection) -> None:
        """Flush its stream at the end of this turn."""

    def opened(self, connection: Connection) -> None:
        """It is ready: header and handshake, where wanted, are over."""

    def wait_for_events(self, connection: Connection) -> None:
        """Let it read once somebody is registered at its point."""

    def closed(self, connection: Connection) -> None:
        """Know it no longer."""


class Connection:
    """A connection: a StreamOwner.

    Args:
        keeper: the service.
        origin: where it comes from.
        number: its id, a source of the host's.
        connected: the socket.
        peer: the other end's address as text.
        counted_as: the address under which its origin counts it; None: it is not counted in.
        make_stream: makes its stream.
    """

    __slots__ = (
        "_begun_ns", "_closing", "_drained_ns", "_end_ns", "_ending", "_feed", "_held", "_host",
        "_intake_closed", "_is_raw", "_keeper", "_key", "_last_ns", "_point", "_room_wanted",
        "_unfinished", "counted_as", "failure", "id", "is_open", "origin", "peer", "stream",
    )  # fmt: skip

    def __init__(
        self,
        keeper: Keeper,
        origin: Origin,
        number: int,
        connected: socket.socket,
        peer: str,
        counted_as: str | None,
        make_stream: Callable[[socket.socket, Connection], Stream],
    ) -> None:
        self.id = number
        self.origin = origin
        self.peer = peer
        self.counted_as = counted_as
        self.failure: str | None = None
        self.is_open = False
        self._held = (
            b""  # what came and is not framed yet, since nobody is at the point, or it is much
        )
        self._keeper = keeper
        self._host = keeper.host
        self._key = b"%d" % number
        self._point = self._host.point(origin.options.point, number)
        framer = origin.make_framer(origin.options.message_bytes_max)
        self._feed = framer.feed
        self._unfinished = unfinished_of(framer)
        self._is_raw = isinstance(framer, RawFramer)
        self._last_ns = self._host.now_ns()  # when bytes came or went
        self._begun_ns = 0  # when the message that is not whole yet began
        self._ending = False  # nothing of what comes makes sense any more, or nothing will come
        self._end_ns = 0  # when to close, once it is ending
        self._closing = False
        self._drained_ns = 0  # when to close, whatever goes on; 0: never
        self._room_wanted = False
        self._intake_closed = False  # the bus is about to stop
        self.stream = make_stream(connected, self)

    # --- before anything is said ----------------------------------------------------------------

    def begin(self) -> None:
        """Take the proxy's header and the TLS handshake where they are wanted, then open."""
        options = self.origin.options
        if options.proxy_protocol or self.origin.tls is not None:
            self._begun_ns = self._last_ns
            self._look_at_due()
            self.stream.resume()
        try:
            Opening(self, self.origin, self._keeper.handshakes, self._host.now_ns()).begin()
        except ValueError as error:  # a server_hostname that can be nobody's
            self.refuse("handshake_errors", str(error))

    def refuse(self, counted_as: str, reason: str) -> None:
        """Close, before it was open."""
        log.info("connection %d from %s is refused: %s", self.id, self.peer, reason)
        self._keeper.count(counted_as)
        self.failure = reason
        self.close(linger=False)

    def open(self) -> None:
        """Tell the point that wants to know, and begin to read once somebody is at the point."""
        self.is_open = True
        self._begun_ns = 0
        self._keeper.opened(self)
        self._last_ns = self._host.now_ns()
        options = self.origin.options
        if options.on_open is not None:
            self._activate(options.on_open, encode((self.id, self.peer)), self.origin.source)
        if self._host.has_events(options.point):
            self.stream.resume()
        else:
            self.stream.pause()
            self._keeper.wait_for_events(self)
        if options.idle_s_max is not None:
            self._look_at_due()

    # --- from the peer --------------------------------------------------------------------------

    def hold(self, data: bytes) -> None:
        """Keep bytes until reading goes on."""
        self._held += data

    def on_bytes(self, data: bytes) -> None:
        """Cut what arrived into messages; of many small ones, some in each turn of the loop."""
        self._last_ns = self._host.now_ns()
        if len(data) <= SLICE_BYTES or self._is_raw:
            self._cut(data)
        else:
            taken, position = 0, 0
            while position < len(data) and not self._ending:
                congested = self._host.congested(self.id)
                if congested:
                    self._keeper.count("pauses")
                if congested or taken > MESSAGES_A_TURN:
                    self._held = data[position:]
                    self.stream.pause()
                    self.stream.call_soon(self._go_on_cutting)
                    return
                taken += self._cut(data[position : position + SLICE_BYTES])
                position += SLICE_BYTES
        if not self._ending and self._host.congested(self.id):
            self._keeper.count("pauses")
            self.stream.pause()

    def _go_on_cutting(self) -> None:
        if self._held and not (self.stream.is_idle or self._host.congested(self.id)):
            self.resume()

    def _cut(self, data: bytes) -> int:
        """Activate the point with each message that some bytes complete; return how many."""
        options = self.origin.options
        activate = self._point.activate
        taken = 0
        try:
            while frames := self._feed(data):
                taken += len(frames)
                for frame in frames:
                    if isinstance(frame, Answer):
                        self._answer(frame.data)
                        continue
                    key = self._key if frame.key is None else frame.key
                    if options.with_peer:
                        jobs = activate(self.id, frame.data, self.peer, key=key)
                    else:
                        jobs = activate(self.id, frame.data, key=key)
                    if not jobs:
                        self._keeper.count("unrouted")
                data = b""
        except FramingError as error:
            self._fail_framing(str(error), error.answer)
        except Exception as error:  # a framer of the user's: its fault ends this connection only
            log.exception("framer of connection %d failed", self.id)
            self._fail_framing(str(error), b"")
        else:
            if options.message_s_max is not None and (taken or not self._begun_ns):
                self._note_begun()
        return taken

    def _note_begun(self) -> None:
        # Asked only where the answer may have changed: it may be a copy of what is unfinished.
        if self._unfinished is not None and self._unfinished():
            self._begun_ns = self._last_ns
            self._look_at_due()
        else:
            self._begun_ns = 0

    def _activate(self, point: str, payload: bytes, source: int | None = None) -> None:
        if not self._host.activate(point, payload, key_hash(self._key), source or self.id):
            self._keeper.count("unrouted")

    def _fail_framing(self, reason: str, answer: bytes) -> None:
        log.info("connection %d is closed: %s", self.id, reason)
        self._keeper.count("framing_errors")
        self.stream.pause()
        if answer:
            self._answer(answer)
        # What it sent before was good, and is being answered: let those answers go out.
        self._end_in(LAST_ANSWERS_S)

    def on_end_of_bytes(self) -> None:
        """The peer has shut its writing side: tell, or close when it has had its answers."""
        while self._held and self.is_open and not self._ending:  # TLS tells of the end early
            held, self._held = self._held[:SLICE_BYTES], self._held[SLICE_BYTES:]
            self._cut(held)
        if self._ending:
            return
        if self.stream.is_closing or not self.is_open:
            self.failure = self.failure or "the peer has closed"
            self.close()
            return
        if self.origin.options.on_end is not None:
            self._begun_ns = 0
            self._activate(self.origin.options.on_end, encode((self.id,)))
            return
        left_ns = self._last_ns + int(LAST_ANSWERS_S * NS) - self._host.now_ns()
        self._end_in(max(left_ns, 0) / NS)

    # --- to the peer ----------------------------------------------------------------------------

    def _answer(self, data: bytes) -> None:
        if not self.stream.is_closing:
            self.stream.write(data)
            self.flush()

    def send(self, data: bytes) -> None:
        """Send, by the end of this turn; a peer that leaves too much unread is cut off."""
        stream = self.stream
        if stream.is_closing:
            self._keeper.count("unsent")
            return
        stream.write(data)
        if not stream.is_dirty:
            stream.is_dirty = True
            self._keeper.flush_later(self)
        elif stream.unsent_bytes > self.origin.options.unsent_bytes_max:
            self.flush()

    def flush(self) -> None:
        """Give the kernel what it takes; whoever has left too much unread is cut off."""
        stream = self.stream
        stream.flush()
        if stream.unsent_bytes > self.origin.options.unsent_bytes_max:
            log.info(
                "connection %d is closed: it does not read, unsent=%d, max=%d",
                self.id,
                stream.unsent_bytes,
                self.origin.options.unsent_bytes_max,
            )
            self._keeper.count("slow_readers")
            stream.abort()
        elif self.origin.options.idle_s_max is not None:
            self._last_ns = self._host.now_ns()

    def want_room(self) -> None:
        """Activate `on_room` once no more than half of `unsent_bytes_max` is unsent."""
        self._room_wanted = self.origin.options.on_room is not None
        self.flush()
        self.on_less_unsent()

    def on_less_unsent(self) -> None:
        """Tell who waits for room."""
        self._last_ns = self._host.now_ns()
        if self._closing:
            self._look_at_due()
            return
        options = self.origin.options
        if self._room_wanted and self.stream.unsent_bytes * 2 <= options.unsent_bytes_max:
            self._room_wanted = False
            assert options.on_room is not None
            self._activate(options.on_room, encode((self.id,)))

    def fail(self, failure: Failure | None, message: bytes) -> None:
        """Answer a message that nobody else will answer; without a `failure`, close."""
        try:
            if failure is not None:
                self._answer(failure(message))
                return
        except Exception:
            log.exception("the failure answer of connection %d cannot be made", self.id)
        self.close()

    # --- ending ---------------------------------------------------------------------------------

    def shut(self) -> None:
        """Shut our writing side after what was sent before; go on reading."""
        self.stream.shut_when_sent()
        if self.stream.ended:
            self.close()

    def close(self, linger: bool = True) -> None:
        """Close after what was sent before; see Stream.close_when_sent."""
        self._ending = self._closing = True
        self._last_ns = self._host.now_ns()
        self.stream.close_when_sent(linger)
        self._look_at_due()

    def end_by(self, due_ns: int) -> None:
        """Close at a time, unless it is closed by then."""
        self._drained_ns = due_ns
        self._look_at_due()

    def _end_in(self, seconds: float) -> None:
        self._ending = True
        self._end_ns = self._host.now_ns() + int(seconds * NS)
        if seconds > 0:
            self._look_at_due()
        else:
            self.close()

    def close_intake(self) -> None:
        """Take in nothing more, whatever was to let it go on."""
        self._intake_closed = True
        self.stream.pause()

    def resume(self) -> None:
        """Read again, after a pause that was ours: it is not held against the peer."""
        if not (self._ending or self._intake_closed or self.stream.is_reading):
            self._last_ns = self._host.now_ns()
            if self._begun_ns:
                self._begun_ns = self._last_ns
            self.stream.resume()
            if self._held:
                held, self._held = self._held, b""
                self.on_bytes(held)
            self._look_at_due()

    def on_lost(self, error: OSError | None) -> None:
        """Forget the connection and tell the point that wants to know."""
        if error is not None and self.failure is None:
            self.failure = str(error)
        self._keeper.closed(self)
        if self.counted_as is not None:
            self.origin.leave(self.counted_as)
        if self.is_open and self.origin.options.on_close is not None:
            self._activate(self.origin.options.on_close, encode((self.id,)), self.origin.source)

    # --- time -----------------------------------------------------------------------------------

    def _due_ns(self) -> tuple[int, str] | None:
        due = self._own_due_ns()
        if self._drained_ns and not self._closing and (due is None or self._drained_ns < due[0]):
            return self._drained_ns, "drained_late"
        return due

    def _own_due_ns(self) -> tuple[int, str] | None:
        options = self.origin.options
        if self._closing:
            left_s = UNSENT_S if self.stream.unsent_bytes else LINGER_S
            return self._last_ns + int(left_s * NS), ""
        if self._ending:
            return self._end_ns, ""
        if not self.is_open:
            return self._begun_ns + int(options.handshake_s_max * NS), "handshake_timeouts"
        if not self.stream.is_reading and not self.stream.ended:
            return None  # paused, by ourselves; resuming sets it anew
        if self._begun_ns and options.message_s_max is not None:
            return self._begun_ns + int(options.message_s_max * NS), "slow_messages"
        if options.idle_s_max is not None:
            return self._last_ns + int(options.idle_s_max * NS), "idle"
        return None

    def _look_at_due(self) -> None:
        due = self._due_ns()
        if due is not None:
            self._keeper.look_at(self, due[0])

    def check_time(self, now_ns: int) -> None:
        """Close if a time-out has passed, else say when to look next."""
        due = self._due_ns()
        if due is None or self.stream.closed:
            return
        due_ns, counted_as = due
        if now_ns < due_ns:
            self._keeper.look_at(self, due_ns)
        elif counted_as:
            self._keeper.count(counted_as)
            self.failure = "it took too long"
            self.close(linger=self.is_open)
        elif self._closing:
            self.stream.abort()  # the peer has not taken the end in time
        else:
            self.close()

    # --- passing on -----------------------------------------------------------------------------

    @property
    def can_cross(self) -> bool:
        """Whether another version of the service can go on with it."""
        if self.stream.closed or not self.is_open or self.stream.tls is not None:
            return False
        return self._ending or self._unfinished is not None

    def go_on(self) -> None:
        """Nobody else has: look at its times again."""
        self._look_at_due()

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain data."""
        return {
            "stream": self.stream.state(),
            "unfinished": b"" if self._ending or not self._unfinished else self._unfinished(),
            "held": self._held,
            "ending": self._ending,
            "closing": self._closing,
            "room_wanted": self._room_wanted,
            "times": [self._last_ns, self._begun_ns, self._end_ns, self._drained_ns],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another version's connection stood still."""
        self.is_open = True
        if state["unfinished"]:
            self._feed(state["unfinished"])
        self._held = state["held"]
        self._ending, self._closing = state["ending"], state["closing"]
        self._room_wanted = state["room_wanted"]
        self._last_ns, self._begun_ns, self._end_ns, self._drained_ns = state["times"]
        self.stream.restore(state["stream"])
        if not (self._ending or self._host.congested(self.id)):
            if self._host.has_events(self.origin.options.point):
                self.resume()
            else:
                self._keeper.wait_for_events(self)
        self._look_at_due()


def unfinished_of(framer: Framer) -> Callable[[], bytes] | None:
    """Return what tells which bytes bring a new framer to the same place; None if nothing does."""
    found: Callable[[], bytes] | None = getattr(framer, "unfinished", None)
    return found
