"""The control socket's server: who may speak, who is alive, and frames in and out.

For each connection the supervisor opens a pidfd from the peer's credentials, then lets the peer
answer once over that connection: so the pidfd is the speaker's and not that of a process which
got its PID later.  The end of a connection alone proves no death (a fork may hold it, a live
process may close it); the pidfd does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aembus.control import (
    PROTOCOL_VERSION,
    FrameReader,
    error_to_frame,
    pack_frame,
    peer_credentials,
)
from aembus.errors import AembusError, ControlError, PermissionRefused
from aembus.shm import names

log = logging.getLogger("aembus")

TURNED_AWAY_S: Final = 0.1  # between two looks whether there is room again

Operation = Callable[["Connection", dict[str, Any]], Awaitable[dict[str, Any]]]


class StreamToItsEnd(asyncio.StreamReader):
    """Gives all that has come before its end, also if that is a reset.

    A process that is killed with something unread resets its connections, and asyncio's reader
    forgets then what that process had said before.
    """

    def set_exception(self, exc: Exception) -> None:
        """See StreamReader."""
        self.feed_eof()


class Connection:
    """One peer: a member, a process that is about to be one, or the command line.

    pid: from its credentials.  pidfd: -1 when the process was gone before it could be opened.
    last_member: the member that it was, too: what its process said before it died may come later.
    """

    def __init__(self, server: ControlServer, connection: socket.socket) -> None:
        self._server = server
        self._socket = connection
        self.pid, self.uid = peer_credentials(connection)
        self.pidfd = -1
        self.member: Any = None
        self.last_member: Any = None
        self.alive = True
        self._transport: asyncio.Transport | None = None

    async def serve(self) -> None:
        """Speak with the peer until it hangs up."""
        if self.uid not in (os.getuid(), 0):
            refusal = PermissionRefused(f"the bus belongs to another user, uid={self.uid}")
            await self._refuse(refusal)
            return
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._socket.close()
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(self.pidfd, self._on_process_gone)
        reader = StreamToItsEnd()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, sock=self._socket)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._transport = transport
        try:
            await self._converse(reader, writer)
        except (ConnectionError, ControlError) as error:
            log.warning("control connection of pid %d ended: %s", self.pid, error)
        finally:
            self._transport = None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._server.on_hang_up(self)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        challenge = secrets.token_hex(8)
        self.push({"hello": challenge, "protocol": PROTOCOL_VERSION})
        frames = FrameReader()
        proven = False
        tasks: set[asyncio.Task[None]] = set()
        while data := await reader.read(65536):
            for frame in frames.feed(data):
                if proven:
                    task = asyncio.ensure_future(self._handle(frame))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                elif frame.get("hello") == challenge and frame.get("pid") == self.pid:
                    proven = True
                else:
                    raise ControlError(f"wrong greeting, pid={self.pid}, claims={frame}")
            if self.member is None:
                # Who asks and takes no answers is not read from.  A member may hold its watcher up
                # while it sends, and is always read from.
                await writer.drain()

    async def _handle(self, frame: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": frame.get("id", 0)}
        op = str(frame.get("op"))
        try:
            operation = self._server.operations.get(op)
            if operation is None:
                known = sorted(self._server.operations)
                raise ControlError(f"no such operation, op={op!r}, known={known}")
            answer["result"] = await operation(self, frame)
        except (AembusError, OSError) as error:
            answer["error"] = error_to_frame(error)
        except Exception as error:
            log.exception("control operation %r of pid %d failed", op, self.pid)
            answer["error"] = error_to_frame(error)
        if "id" in frame:
            try:
                self.push(answer)
            except Exception as error:  # it is too long, or no plain data
                log.error("the answer to %r of pid %d cannot be sent: %s", op, self.pid, error)
                refusal = ControlError(f"the answer cannot be sent, op={op!r}: {error}")
                self.push({"id": answer["id"], "error": error_to_frame(refusal)})

    def push(self, message: dict[str, Any]) -> None:
        """Send a frame; nothing happens if the peer has hung up."""
        if self._transport is not None:
            self._transport.write(pack_frame(message))

    async def _refuse(self, error: AembusError) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(pack_frame({"error": error_to_frame(error)}))
        self._socket.close()

    def _on_process_gone(self) -> None:
        self.release()
        self.alive = False
        self._server.on_process_gone(self)

    def check_alive(self) -> bool:
        """Say whether the process lives; if it does not, everybody has been told of it now."""
        if self.pidfd >= 0:
            ended = select.poll()
            ended.register(self.pidfd, select.POLLIN)
            if ended.poll(0):
                self._on_process_gone()
        return self.alive

    @property
    def is_watched(self) -> bool:
        """Whether the process lives and takes answers, and its death would be seen."""
        return self.alive and self.pidfd >= 0 and not self.hung_up

    @property
    def hung_up(self) -> bool:
        """Whether the connection has ended."""
        return self._transport is None

    def release(self) -> None:
        """Stop watching the process.  Idempotent."""
        if self.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1

    def hang_up(self) -> None:
        """End the connection from this side."""
        if self._transport is not None:
            self._transport.abort()


class ControlServer:
    """Listens on the bus's control socket.

    Args:
        bus: whose.
        operations: what peers may ask for, by name.
        on_hang_up: called when a peer's connection has ended; the process may live on.
        on_process_gone: called when a peer's process is proven dead.
    """

    def __init__(
        self,
        bus: str,
        operations: dict[str, Operation],
        on_hang_up: Callable[[Connection], None],
        on_process_gone: Callable[[Connection], None],
    ) -> None:
        self._path = names.control_path(bus)
        self.operations = operations
        self.on_hang_up = on_hang_up
        self.on_process_gone = on_process_gone
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._again: asyncio.TimerHandle | None = None
        self._spare = _spare_descriptor()  # given up to tell somebody that there is none
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except BaseException:
            os.close(self._spare)
            raise

    def start(self) -> None:
        """Begin to listen."""
        before = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
        finally:
            os.umask(before)
        self._socket.listen(512)
        self._listen()

    def _accept(self) -> None:
        try:
            while True:
                peer, _ = self._socket.accept()
                peer.setblocking(False)
                connection = Connection(self, peer)
                task = asyncio.ensure_future(connection.serve())
                self._connections[connection] = task
                task.add_done_callback(functools.partial(self._forget, connection))
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no descriptor, or no memory
            self._turn_away(error)

    def _turn_away(self, error: OSError) -> None:
        # Who waits would wait for his time-out, and the loop would be called again and again.
        refusal = ControlError(
            f"the supervisor cannot let in anybody now; raise its limits (ulimit -n): {error}"
        )
        log.error("%s", refusal)
        os.close(self._spare)
        try:
            peer, _ = self._socket.accept()
            with peer:
                peer.setblocking(False)
                peer.send(pack_frame({"error": error_to_frame(refusal)}))
        except OSError:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket.fileno())
            self._again = loop.call_later(TURNED_AWAY_S, self._listen)
        finally:
            self._spare = _spare_descriptor()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def _forget(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._connections.pop(connection, None)
        if connection.member is None:
            connection.release()

    def abandon(self) -> None:
        """Let go of the socket of a server that could not be started."""
        self._socket.close()
        os.close(self._spare)

    async def close(self) -> None:
        """Stop listening, hang up on everybody, and remove the socket's name."""
        if self._again is not None:
            self._again.cancel()
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self.abandon()
        self._path.unlink(missing_ok=True)
        tasks = list(self._connections.values())
        for connection in list(self._connections):
            connection.hang_up()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for connection in list(self._connections):
            connection.release()


def _spare_descriptor() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
