"""The stream framer for SIP over TCP: cuts one connection's bytes into whole messages.

What it is: pure, one object per connection, loaded by the tcp service as
`examples.telecom.sip_framer:SipFramer`.
Who runs it: the supervisor, for every byte of every connection; so it looks at the start line,
Content-Length and Call-ID and leaves all else to the workers.

Guarantees:
- The same stream gives the same messages, however it is cut into pieces.
- Linear: each byte is searched once, also when fed one at a time; what is kept is less than one
  message and the last piece.
- Content-Length is found as the parser finds it (sip_syntax.unfold), so that no header can
  hide a message from one of them. Missing, negative, not numeric or conflicting: the stream ends.
- A message before the break is never lost. Where a feed completes messages and then meets the
  break, it returns them, and the next feed, also `feed(b"")`, raises. Once it raised, it raises
  at every feed.
- The answer in a FramingError copies what could be read of the request; it is empty where none
  may be sent (to a response, to an ACK).
- CRLFCRLF between messages gives Answer(CRLF); a lone CRLF there is skipped (RFC 5626 section
  3.5.1; the two CRLFs of a ping may come in two pieces).

Not promised: that a message is valid SIP beyond its frame. The parser answers for that, and the
connection lives on.
"""

from __future__ import annotations

from collections.abc import Sequence

from aembus.services.framing import Answer, FramingError, Message

from .sip_message import BODY_BYTES_MAX, HEAD_BYTES_MAX, parse_length, refusal
from .sip_syntax import (
    BLANKS,
    TOKEN_BYTES,
    SipError,
    SipSyntaxError,
    SipTooLargeError,
    split_head,
    unfold,
)

_CR, _LF = 13, 10
_END = b"\r\n\r\n"
_PONG = Answer(b"\r\n")
_FIRST_BYTES = frozenset(TOKEN_BYTES)
_LOOKED_AT = frozenset(b"cCiIlL \t")  # as Content-Length, Call-ID, their short forms, folds begin


class SipFramer:
    """Cuts a stream of SIP messages.

    Args: message_bytes_max: the longest message that the caller can carry; the limits of SIP
    (16 KiB of headers, 64 KiB of body) hold besides.
    """

    __slots__ = (
        "_buffer",
        "_error",
        "_head_bytes_max",
        "_key",
        "_line_seen",
        "_message_bytes",
        "_message_bytes_max",
        "_ping_half",
        "_searched",
    )

    def __init__(self, message_bytes_max: int) -> None:
        self._message_bytes_max = message_bytes_max
        self._head_bytes_max = min(HEAD_BYTES_MAX, message_bytes_max)
        self._buffer = bytearray()  # the message that is not whole yet
        self._error: FramingError | None = None
        self._ping_half = False  # one CRLF came and nothing since
        # About the message at the front:
        self._searched = 0  # how many of its bytes were searched for its end of headers
        self._line_seen = False  # its start line was complete and looked at
        self._message_bytes = 0  # its whole size, 0 while its headers are not complete
        self._key: bytes | None = None

    def feed(self, data: bytes) -> Sequence[Message | Answer]:
        """Take the next bytes of the stream, give what they complete.

        Raises FramingError: see the module's text; messages completed by the same bytes were
        returned by the feed before.
        """
        if self._error is not None:
            raise self._error
        if not data:
            return ()
        buffer = self._buffer
        work: bytes | bytearray = data
        if buffer:
            buffer += data
            work = buffer
        out: list[Message | Answer] = []
        try:
            position = self._cut(work, out)
        except FramingError as error:
            self._error = error
            self._buffer = bytearray()
            if not out:
                raise
            return out
        if work is buffer:
            del buffer[:position]
        elif position < len(data):
            buffer += data[position:]
        return out

    def unfinished(self) -> bytes:
        """What another SipFramer has to be fed to be where this one is.

        A lone CRLF is none of it: who sends one behind a message owes nothing, so no time-out may
        run. A ping that a hand-over comes into the middle of gets no answer.
        """
        return bytes(self._buffer)

    def _cut(self, work: bytes | bytearray, out: list[Message | Answer]) -> int:
        """Put the whole messages at the front of work into out; returns where the rest begins."""
        position, size = 0, len(work)
        while position < size:
            if not self._message_bytes:
                if work[position] == _CR:
                    if size - position == 1:
                        break
                    if work[position + 1] != _LF:
                        raise _broken(work, position, SipSyntaxError("Bare CR"))
                    position += 2
                    if self._ping_half:
                        out.append(_PONG)
                    self._ping_half = not self._ping_half
                    continue
                self._ping_half = False
                if not self._read_head(work, position):
                    break
            end = position + self._message_bytes
            if end > size:
                break
            out.append(Message(bytes(work[position:end]), self._key))
            position = end
            self._message_bytes = self._searched = 0
            self._line_seen = False
        return position

    def _read_head(self, work: bytes | bytearray, position: int) -> bool:
        """Find the message's size and key; returns False while its headers are not complete."""
        limit = position + self._head_bytes_max
        end = work.find(_END, position + self._searched, limit)
        try:
            if not self._line_seen:
                self._line_seen = _look_at_start(work, position, self._searched)
            if end < 0:
                if len(work) >= limit:
                    raise SipTooLargeError("Message Too Large")
                self._searched = max(0, len(work) - position - 3)
                return False
            body_bytes, self._key = _look_at_headers(bytes(work[position:end]))
            message_bytes = end + len(_END) - position + body_bytes
            if body_bytes > BODY_BYTES_MAX or message_bytes > self._message_bytes_max:
                raise SipTooLargeError("Request Entity Too Large", status=413)
        except SipError as error:
            raise _broken(work, position, error) from None
        self._message_bytes = message_bytes
        return True


def _look_at_start(work: bytes | bytearray, position: int, searched: int) -> bool:
    """Refuse at once what cannot be SIP (another protocol, line ends without CR).

    Returns False while the start line is not complete.
    """
    if work[position] not in _FIRST_BYTES:
        raise SipSyntaxError("Bad Start Line")
    end = work.find(b"\n", position + searched)
    if end < 0:
        return False
    line = bytes(work[position:end])
    if not line.endswith(b"\r") or b"SIP/" not in line.upper():
        raise SipSyntaxError("Bad Start Line", line)
    return True


def _look_at_headers(head: bytes) -> tuple[int, bytes | None]:
    """The size of the body and the Call-ID (None where it is missing or empty)."""
    lines = split_head(head)
    body_bytes = -1
    call_id: bytes | None = None
    candidates = [line for line in lines[1:] if line[0] in _LOOKED_AT]
    if any(line[0] in BLANKS for line in candidates):
        candidates = unfold(lines)[1:]
    for line in candidates:
        name, _, value = line.partition(b":")
        name = name.rstrip(BLANKS).lower()
        if name in (b"content-length", b"l"):
            length = parse_length(value.strip(BLANKS))
            if body_bytes not in (-1, length):
                raise SipSyntaxError("Conflicting Content-Length", value)
            body_bytes = length
        elif name in (b"call-id", b"i") and call_id is None:
            call_id = value.strip(BLANKS) or None
    if body_bytes < 0:
        raise SipSyntaxError("Missing Content-Length")
    return body_bytes, call_id


def _broken(work: bytes | bytearray, position: int, error: SipError) -> FramingError:
    """The FramingError for the message at position, with the answer that can be given."""
    head = bytes(work[position : position + HEAD_BYTES_MAX])
    return FramingError(str(error), refusal(head, error))
