"""One connected socket in an event loop, with a write buffer of our own.

The TCP service reads and writes its sockets itself, with `add_reader` and `add_writer`, and not
through asyncio's transports: what a transport has buffered cannot be got out of it, and it has to
be, when the connection passes to another version of the service.

Guarantees:

- bytes go out in the order of `write`; what was not taken by the kernel is in `unsent` and nowhere
  else;
- `close_when_sent` shuts the writing side once everything is out and then waits for the peer's
  end, for a bounded time: closing at once, with bytes unread, would have the kernel send a reset,
  which may take the last answer away from the peer;
- the owner's `on_lost` is called once, never from inside a call of the owner's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from .tcp_address import host_of
from .tcp_tls import TlsFilter

READ_BYTES: Final = 65536


class StreamOwner(Protocol):
    """Whom a stream tells."""

    def on_bytes(self, data: bytes) -> None:
        """Bytes came."""

    def on_end_of_bytes(self) -> None:
        """The peer has shut its writing side: no more bytes will come."""

    def on_less_unsent(self) -> None:
        """Some of what was unsent went out, after it had been refused by the kernel."""

    def on_lost(self, error: OSError | None) -> None:
        """The socket is closed; the stream is of no use any more."""


class Stream:
    """A connected socket.

    Args:
        loop: whose readers and writers tell of the socket.
        connected: non-blocking.
        owner: is told.
    """

    __slots__ = (
        "_closing", "_detached", "_error", "_lingering", "_loop", "_owner", "_reading", "_shutting",
        "_unsent", "_waiting", "closed", "deliver", "ended", "is_closing", "is_dirty", "socket",
        "tls", "unsent_bytes",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connected: socket.socket, owner: StreamOwner
    ) -> None:
        self._loop = loop
        self.socket = connected
        self._owner = owner
        self.deliver = owner.on_bytes  # who takes the bytes: not always the framer's side
        self.tls: TlsFilter | None = None
        self._unsent: list[bytes] = []
        self.unsent_bytes = 0
        self.is_dirty = False  # somebody has promised to flush
        self.closed = False
        self.ended = False  # the peer has shut its writing side
        self._reading = False
        self._waiting = False  # for the kernel to take more
        self._shutting = False
        self._closing = False
        self.is_closing = False  # one of these, or closed: nothing can be written any more
        self._lingering = False
        self._detached = False
        self._error: OSError | None = None

    # --- reading --------------------------------------------------------------------------------

    @property
    def is_reading(self) -> bool:
        """Whether the owner is told of bytes."""
        return self._reading

    def peer_host(self) -> str:
        """Return the host that is at the other end of the socket itself, "" if there is none."""
        try:
            return host_of(self.socket.getpeername())
        except OSError:
            return ""

    @property
    def is_idle(self) -> bool:
        """Whether it is closed, or stands still."""
        return self.closed or self._detached

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call something in the next turn of the loop."""
        self._loop.call_soon(callback)

    def resume(self) -> None:
        """Read, and tell the owner."""
        if not (self._reading or self.ended or self._closing or self.closed):
            self._reading = True
            self._loop.add_reader(self.socket.fileno(), self._on_readable)

    def pause(self) -> None:
        """Leave what comes to the kernel, whose buffers make the peer wait."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.socket.fileno())

    def _on_readable(self) -> None:
        try:
            data = self.socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if data:
            self.deliver(data)
        else:
            self.end_of_bytes()

    def look_for_reset(self) -> None:
        """Find out whether the peer has reset the connection, and nobody has told."""
        if self._reading and not self._detached:
            number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                self._lose(OSError(number, os.strerror(number)))

    def end_of_bytes(self) -> None:
        """Nothing more will come: read no more, and tell."""
        self.ended = True
        self.pause()
        self._owner.on_end_of_bytes()

    # --- writing --------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Have bytes sent by the next `flush`, or as soon as the kernel takes them.

        Raises: TypeError for what is none: here, and not in a turn that is everybody's.
        """
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        if self.tls is not None:
            data = self.tls.encrypt(data)
        self._unsent.append(data)
        self.unsent_bytes += len(data)

    def write_as_is(self, data: bytes) -> None:
        """Like `write`, of what TLS itself has to say."""
        self._unsent.append(data)
        self.unsent_bytes += len(data)

    def flush(self) -> None:
        """Give the kernel what it takes now of what is unsent."""
        self.is_dirty = False
        if not (self._waiting or self.closed):
            self._send()

    def _send(self) -> None:
        unsent = self._unsent
        if unsent:
            data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
            try:
                sent = self.socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            self.unsent_bytes -= sent
            if self.unsent_bytes:
                self._unsent = [data[sent:]]
                self._wait(True)
                return
            unsent.clear()
        if self._waiting:
            self._wait(False)
        if self.is_closing:
            self._all_sent()

    def _wait(self, waiting: bool) -> None:
        if waiting != self._waiting:
            self._waiting = waiting
            if waiting:
                self._loop.add_writer(self.socket.fileno(), self._on_writable)
            else:
                self._loop.remove_writer(self.socket.fileno())

    def _on_writable(self) -> None:
        self._send()
        if not self.closed:
            self._owner.on_less_unsent()

    def _all_sent(self) -> None:
        if self._closing and (self.ended or not self._lingering):
            self._lose(None)
            return
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        if self._closing:
            self._loop.add_reader(self.socket.fileno(), self._on_left_over)

    def _on_left_over(self) -> None:
        try:
            if self.socket.recv(READ_BYTES):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._lose(None)

    # --- ending ---------------------------------------------------------------------------------

    def shut_when_sent(self) -> None:
        """Shut the writing side once what was written is out; go on reading."""
        if not self.is_closing:
            self._end_tls()
            self._shutting = self.is_closing = True
            self.flush()

    def _end_tls(self) -> None:
        if self.tls is not None and self.tls.is_ready and (end := self.tls.end()):
            self.write_as_is(end)

    def close_when_sent(self, linger: bool = True) -> None:
        """Read no more, send what was written, and close.

        Args:
            linger: wait for the peer's end, until `abort` is called.
        """
        if self.closed or (self._closing and (linger or not self._lingering)):
            return
        self.pause()
        if not self.is_closing:
            self._end_tls()
        self._closing = self.is_closing = True
        self._lingering = linger
        if not self._waiting:
            self._send()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        self._lose(None)

    def _lose(self, error: OSError | None) -> None:
        if not self.closed:
            self._close(error)
            self._loop.call_soon(self._owner.on_lost, error)

    def _close(self, error: OSError | None) -> None:
        self.closed = self.is_closing = True
        self._error = error
        self._reading = self._waiting = False
        self._loop.remove_reader(self.socket.fileno())
        self._loop.remove_writer(self.socket.fileno())
        self.socket.close()
        self._unsent.clear()
        self.unsent_bytes = 0

    # --- passing on -----------------------------------------------------------------------------

    def detach(self) -> None:
        """Stand still: neither read nor write, until `reattach`."""
        if self.closed:
            return
        self._detached = True
        self._loop.remove_reader(self.socket.fileno())
        self._loop.remove_writer(self.socket.fileno())

    def reattach(self) -> None:
        """Go on as before `detach`."""
        self._detached = False
        if self._reading:
            self._loop.add_reader(self.socket.fileno(), self._on_readable)
        if self._waiting:
            self._loop.add_writer(self.socket.fileno(), self._on_writable)
        elif self._closing:
            self._all_sent()

    def release(self) -> None:
        """Close this copy of a detached socket, which says nothing to the peer."""
        self.closed = self.is_closing = True
        self.socket.close()

    def state(self) -> list[Any]:
        """Return what `restore` needs beside the socket."""
        return [b"".join(self._unsent), self.ended, self._shutting, self._closing, self._lingering]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on where another stream of the same socket stood still."""
        unsent, self.ended, self._shutting, self._closing, self._lingering = state
        self.is_closing = self._closing or self._shutting
        if unsent:
            self._unsent, self.unsent_bytes = [unsent], len(unsent)
        self._send()
