"""Cutting the byte stream of a connection into messages.  Pure: bytes in, messages out.

The TCP service, in whichever process hosts it, makes one framer per connection and feeds it what
arrived.  A framer of your own is a class with the two methods of `Framer`, named as
`"module:Class"`; the built-in ones are `"raw"`, `"line"` and `"length"`.

The contract, which the service relies on and your framer has to keep:

- what `feed` returns is in the order of the stream, and the cuts depend on the bytes alone, not
  on the pieces they arrived in (`raw` apart, whose messages are those pieces);
- messages that were complete before a fault are returned first, the `FramingError` is raised by
  the next `feed`: the service calls `feed(b"")` again after every result that was not empty;
- after a `FramingError` nothing else comes: the stream has lost its sense, the connection closes.

The built-in framers also guarantee: time grows with the number of bytes alone, even when they
arrive one by one; no message is larger than `message_bytes_max`; between two feeds no more is
kept than one unfinished message.  A fault is found as soon as the bytes prove it.

Not here: sockets, time limits, back-pressure (the TCP service), and what becomes of an unfinished
message at the end of the stream (it is dropped, since nobody knows whether it was whole).
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, cast

LENGTH_PREFIX_BYTES: Final = 4

_unpack_length: Final = struct.Struct(">I").unpack_from


class Message(NamedTuple):
    """One whole message.  `key` picks who gets it; None means the connection's own key."""

    data: bytes
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes that go straight back to the peer; no job is made of them."""

    data: bytes


class FramingError(Exception):
    """The stream cannot be trusted any more: `answer` is sent, then the connection closes."""

    def __init__(self, text: str, answer: bytes = b"") -> None:
        super().__init__(text)
        self.text = text
        self.answer = answer


class Framer(Protocol):
    """What the TCP service asks of a framer; see the module's contract."""

    def __init__(self, message_bytes_max: int) -> None:
        """Begin a stream none of whose messages may be larger than `message_bytes_max`."""

    def feed(self, data: bytes) -> Sequence[Message | Answer]:
        """Take the next bytes of the stream, return what they complete (often nothing).

        Raises:
            FramingError: the stream makes no sense from here on.
        """


class Resumable(Framer, Protocol):
    """A framer whose stream another one can go on with; the built-in ones are such.

    With a framer that is none, nobody can see that a message was begun (`message_s_max`), and a
    connection cannot pass to another version of the service.
    """

    def unfinished(self) -> bytes:
        """Return what, fed to a new framer, brings it to where this one is; it completes nothing.

        That is what came of a message that is not whole; b"" if none was begun.
        """


class RawFramer:
    """Whatever arrived is a message, cut into pieces of at most `message_bytes_max`."""

    __slots__ = ("_message_bytes_max",)

    def __init__(self, message_bytes_max: int) -> None:
        self._message_bytes_max = _checked_limit(message_bytes_max)

    def feed(self, data: bytes) -> Sequence[Message | Answer]:
        """Return `data` as it is, or in pieces."""
        if not data:
            return ()
        size_bytes_max = self._message_bytes_max
        if len(data) <= size_bytes_max:
            return (Message(data),)
        starts = range(0, len(data), size_bytes_max)
        return [Message(data[start : start + size_bytes_max]) for start in starts]

    def unfinished(self) -> bytes:
        """Return nothing: what came is never part of a message to come."""
        return b""


class LineFramer:
    r"""A line is a message; its end, ``\n`` or ``\r\n``, does not belong to it and has no size."""

    __slots__ = ("_fault_text", "_message_bytes_max", "_pending")

    def __init__(self, message_bytes_max: int) -> None:
        self._message_bytes_max = _checked_limit(message_bytes_max)
        self._pending = bytearray()
        self._fault_text: str | None = None

    def feed(self, data: bytes) -> Sequence[Message | Answer]:
        """Return the lines that `data` ends; raise FramingError at one that is too long."""
        if self._fault_text is not None:
            raise FramingError(self._fault_text)
        pending = self._pending
        if pending and b"\n" in data:
            data = bytes(pending) + data
            pending.clear()
        *lines, rest = data.split(b"\n")
        messages: list[Message] = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if len(line) > self._message_bytes_max:
                return self._fail(messages)
            messages.append(Message(line))
        pending += rest
        # One byte more may still be the "\r" of an end whose "\n" is on its way.
        excess_bytes = len(pending) - self._message_bytes_max
        if excess_bytes > 1 or (excess_bytes == 1 and not pending.endswith(b"\r")):
            return self._fail(messages)
        return messages

    def unfinished(self) -> bytes:
        """Return what came of the message that is not whole yet."""
        return bytes(self._pending)

    def _fail(self, messages: list[Message]) -> Sequence[Message]:
        self._pending.clear()
        self._fault_text = f"a line is longer than message_bytes_max={self._message_bytes_max}"
        if not messages:
            raise FramingError(self._fault_text)
        return messages


class LengthFramer:
    """Four bytes, big-endian and unsigned, say how many bytes of message follow them."""

    __slots__ = ("_fault_text", "_message_bytes_max", "_pending", "_wanted_bytes")

    def __init__(self, message_bytes_max: int) -> None:
        self._message_bytes_max = _checked_limit(message_bytes_max)
        self._pending = bytearray()
        self._wanted_bytes = LENGTH_PREFIX_BYTES  # with fewer pending, nothing new is known
        self._fault_text: str | None = None

    def feed(self, data: bytes) -> Sequence[Message | Answer]:
        """Return the messages that `data` completes; raise FramingError at a length too large."""
        if self._fault_text is not None:
            raise FramingError(self._fault_text)
        if not data:
            return ()
        pending = self._pending
        if pending:
            pending += data
            if len(pending) < self._wanted_bytes:
                return ()
            data = bytes(pending)
            pending.clear()
        messages: list[Message] = []
        start = 0
        wanted_bytes = LENGTH_PREFIX_BYTES
        while len(data) - start >= LENGTH_PREFIX_BYTES:
            body = start + LENGTH_PREFIX_BYTES
            (size_bytes,) = _unpack_length(data, start)
            if size_bytes > self._message_bytes_max:
                return self._fail(size_bytes, messages)
            if len(data) - body < size_bytes:
                wanted_bytes = LENGTH_PREFIX_BYTES + size_bytes
                break
            start = body + size_bytes
            messages.append(Message(data[body:start]))
        if start < len(data):
            pending += data[start:]
        self._wanted_bytes = wanted_bytes
        return messages

    def unfinished(self) -> bytes:
        """Return what came of the message that is not whole yet."""
        return bytes(self._pending)

    def _fail(self, size_bytes: int, messages: list[Message]) -> Sequence[Message]:
        self._fault_text = (
            f"a message is longer than message_bytes_max={self._message_bytes_max}, "
            f"size_bytes={size_bytes}"
        )
        if not messages:
            raise FramingError(self._fault_text)
        return messages


FRAMERS: Final[dict[str, Callable[[int], Framer]]] = {
    "raw": RawFramer,
    "line": LineFramer,
    "length": LengthFramer,
}


def load_framer(spec: str) -> Callable[[int], Framer]:
    """Find the framer class that `spec` names; importing a module of yours happens here.

    Args:
        spec: `"raw"`, `"line"`, `"length"`, or `"module:Class"`.

    Returns:
        What makes a framer when called with `message_bytes_max`, once for each connection.

    Raises:
        ValueError: there is no such framer, or the module cannot be imported; the import's own
            error is its `__cause__` and part of its text.
    """
    known = FRAMERS.get(spec)
    if known is not None:
        return known
    known_text = ", ".join([*FRAMERS, "module:Class"])
    module_name, colon, class_name = spec.partition(":")
    if not (module_name and colon and class_name):
        raise ValueError(f"no such framer; known are {known_text}; framer={spec!r}")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ValueError(
            f"the framer's module cannot be imported ({type(error).__name__}: {error}); "
            f"known are {known_text}; framer={spec!r}"
        ) from error
    found: Any = getattr(module, class_name, None)
    if found is None:
        problem = f"module {module_name!r} has no {class_name!r}"
    elif not isinstance(found, type):
        problem = f"{class_name!r} is not a class"
    elif not callable(getattr(found, "feed", None)):
        problem = f"class {class_name!r} has no feed method"
    else:
        return cast("Callable[[int], Framer]", found)
    raise ValueError(f"{problem}; known are {known_text}; framer={spec!r}")


def _checked_limit(message_bytes_max: int) -> int:
    if message_bytes_max < 1:
        raise ValueError(f"a message needs room, message_bytes_max={message_bytes_max}")
    return message_bytes_max
