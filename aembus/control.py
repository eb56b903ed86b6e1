"""The control socket, as a member or the command line sees it: frames, requests, the watcher.

A frame is a 4-byte big-endian length and a msgpack map.  A request carries ``id`` and ``op``; its
answer carries the same ``id`` and either ``result`` or ``error``.  What the supervisor says on its
own carries ``push`` instead: a new generation, or an order to drain or to stop.

The watcher is a small thread that reads the connection.  It sees the supervisor die, and it
acknowledges generations: by then no activation of this process runs under an older one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

import msgpack

from aembus import errors
from aembus.errors import (
    AembusError,
    BusBroken,
    BusClosed,
    BusNotFound,
    ControlError,
    PermissionRefused,
    VersionMismatch,
    text_of,
)
from aembus.masking import masked
from aembus.shm import names

log = logging.getLogger("aembus")

PROTOCOL_VERSION: Final = 1
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
REQUEST_TIMEOUT_S: Final = 30.0
_LENGTH: Final = struct.Struct(">I")
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED


def pack_frame(message: dict[str, Any]) -> bytes:
    """Return `message` as a frame.  Raises ControlError if it is too long for one."""
    body: bytes = msgpack.packb(message)
    if len(body) > FRAME_BYTES_MAX:
        raise ControlError(f"frame is too long, length={len(body)}, max={FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frames (pure)."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the frames that `data` completes.

        Raises ControlError at one that is too long, or is none; nothing behind it makes sense.
        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX:
                raise ControlError(f"frame is too long, length={length}, max={FRAME_BYTES_MAX}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            frames.append(_unpack(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
        return frames


def _unpack(body: bytearray) -> dict[str, Any]:
    try:
        frame = msgpack.unpackb(body, strict_map_key=False)
    except Exception as error:  # msgpack's own, and whatever odd keys of a map raise
        raise ControlError(f"frame is no msgpack, length={len(body)}: {error}") from error
    if not isinstance(frame, dict):
        raise ControlError(f"frame is no map, length={len(body)}, type={type(frame).__name__}")
    return frame


def error_to_frame(error: BaseException) -> dict[str, str]:
    """Return an error as it travels: its type's name and its text."""
    return {"type": type(error).__name__, "text": text_of(error)}


def error_from_frame(frame: dict[str, str]) -> AembusError:
    """Return the error that the other side meant; an unknown type becomes ControlError."""
    kind = getattr(errors, frame["type"], None)
    if isinstance(kind, type) and issubclass(kind, AembusError) and kind is not errors.CallFailed:
        return kind(frame["text"])
    return ControlError(f"{frame['type']}: {frame['text']}")


class _Answer:
    # With a bare lock and no Event: that has a lock of its own, which whoever waits may hold while
    # a signal handler waits in its place for the watcher, and the watcher for that lock.
    __slots__ = ("_missing", "frame")

    def __init__(self) -> None:
        self._missing = threading.Lock()
        self._missing.acquire()
        self.frame: dict[str, Any] = {}

    def arrive(self, frame: dict[str, Any]) -> None:
        self.frame = frame
        with contextlib.suppress(RuntimeError):  # it has arrived before
            self._missing.release()

    def wait(self, timeout_s: float) -> bool:
        return self._missing.acquire(timeout=min(max(timeout_s, 0.0), threading.TIMEOUT_MAX))


class ControlClient:
    """One connection to a bus's supervisor.

    Args:
        bus: the bus's name.
        on_push: called in the watcher thread with each thing the supervisor says on its own.
        timeout_s: how long an answer may take, unless a request says otherwise.
        on_broken: called once in the watcher thread when the connection ends and `close` was
            not called before.

    Raises: BusNotFound, PermissionRefused, VersionMismatch.
    """

    def __init__(
        self,
        bus: str,
        on_push: Callable[[dict[str, Any]], None] | None = None,
        on_broken: Callable[[], None] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self._bus = bus
        self._timeout_s = timeout_s
        self._on_push = on_push
        self._on_broken = on_broken
        self._ids = itertools.count(1)
        self._answers: dict[int, _Answer] = {}
        self._send_lock = threading.RLock()  # a signal handler may ask something, too
        self._ended_with: type[BusClosed | BusBroken] | None = None  # once the connection has one
        self._socket = _connect(bus)
        try:
            self.greeting = self._greet()
        except BaseException:
            self._socket.close()
            raise
        self._watcher = threading.Thread(target=self._watch, name="aembus-watcher", daemon=True)
        self._watcher.start()

    def _greet(self) -> dict[str, Any]:
        # The supervisor opened a pidfd for us before it said hello; answering proves that the
        # process it opened is the one that talks.
        self._socket.settimeout(self._timeout_s)
        reader = FrameReader()
        frames: list[dict[str, Any]] = []
        try:
            while not frames:
                data = self._socket.recv(65536)
                if not data:
                    raise BusNotFound(f"the supervisor closed the connection, bus={self._bus!r}")
                frames = reader.feed(data)
            hello: dict[str, Any] = frames[0]
            if "error" in hello:
                raise error_from_frame(hello["error"])
            if hello.get("protocol") != PROTOCOL_VERSION:
                raise VersionMismatch(
                    "this aembus and the bus speak different control protocols; run the same "
                    f"release on both sides, want={PROTOCOL_VERSION}, got={hello.get('protocol')}"
                )
            self._socket.sendall(pack_frame({"hello": hello["hello"], "pid": os.getpid()}))
        except OSError as error:
            raise BusNotFound(
                "no answer from the supervisor; it is stopped, or has too much to do, "
                f"bus={self._bus!r}, pid={self._supervisor_pid()}, timeout_s={self._timeout_s:g}"
            ) from error
        self._socket.settimeout(None)
        return hello

    def _supervisor_pid(self) -> int:
        try:
            return peer_credentials(self._socket)[0]
        except OSError:  # closed meanwhile
            return 0

    def request(self, op: str, *, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        """Ask the supervisor, block until its answer, and return the answer's fields.

        Raises: BusBroken if it is gone, BusClosed if this connection was closed, ControlError at
        the time-out, else what it refused with.
        """
        if self._ended_with is not None:
            raise self._refusal()
        answer = self._ask(op, fields, self._timeout_s if timeout_s is None else timeout_s)
        if "error" in answer:
            if self._ended_with is BusClosed:  # what `leave` was asked before is refused for that
                raise self._refusal()
            raise error_from_frame(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def leave(self, keep: bool) -> None:
        """Have the supervisor take this member off the bus; other requests raise BusClosed now."""
        if self._ended_with is None:
            self._ended_with = BusClosed
        answer = self._ask("leave", {"keep": keep}, self._timeout_s)
        if "error" in answer:
            raise error_from_frame(answer["error"])

    def _ask(self, op: str, fields: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        request_id = next(self._ids)
        answer = self._answers[request_id] = _Answer()
        try:
            self._send({"id": request_id, "op": op, **fields})
            if not answer.wait(timeout_s):
                raise ControlError(
                    "no answer in time from the supervisor; it is stopped, or has too much to do, "
                    f"op={op!r}, pid={self._supervisor_pid()}, timeout_s={timeout_s}"
                )
        finally:
            del self._answers[request_id]
        return answer.frame

    def tell(self, op: str, **fields: Any) -> None:
        """Say something that wants no answer; nothing happens if the supervisor is gone."""
        with contextlib.suppress(BusBroken, BusClosed):
            self._send({"op": op, **fields})

    def _send(self, message: dict[str, Any]) -> None:
        frame = pack_frame(message)
        with masked, self._send_lock:
            try:
                self._socket.sendall(frame)
            except OSError as error:
                raise self._refusal() from error

    def _refusal(self) -> AembusError:
        if self._ended_with is BusClosed:
            return BusClosed(f"this connection to the bus was closed, bus={self._bus!r}")
        return BusBroken(f"the supervisor is gone, bus={self._bus!r}")

    def _watch(self) -> None:
        reader = FrameReader()
        with contextlib.suppress(OSError, ControlError):
            for data in iter(lambda: self._socket.recv(65536), b""):
                for frame in reader.feed(data):
                    try:
                        self._dispatch(frame)
                    except Exception:  # the supervisor's end must be seen all the same
                        log.exception("what the supervisor said failed, bus=%r", self._bus)
        broken = self._ended_with is None
        if broken:
            self._ended_with = BusBroken
        for answer in list(self._answers.values()):
            answer.arrive({"error": error_to_frame(self._refusal())})
        if broken and self._on_broken is not None:
            self._on_broken()

    def _dispatch(self, frame: dict[str, Any]) -> None:
        if "push" in frame:
            if self._on_push is not None:
                self._on_push(frame)
            return
        answer = self._answers.get(frame.get("id", 0))
        if answer is not None:
            answer.arrive(frame)

    def forget_parent(self) -> None:
        """Drop this copy of the descriptor in a forked child; the parent's connection stays."""
        self._ended_with = BusClosed
        self._socket.close()

    def close(self) -> None:
        """End the connection and the watcher.  Idempotent."""
        if self._ended_with is None:
            self._ended_with = BusClosed
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._watcher:
            self._watcher.join()
        self._socket.close()


def _connect(bus: str) -> socket.socket:
    names.check_bus_name(bus)
    path = names.control_path(bus)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        running = [name for name in names.buses() if name != bus]
        raise BusNotFound(
            "no supervisor runs this bus; start one (aembus run ... --bus NAME), "
            f"bus={bus!r}, others={running}"
        ) from error
    except PermissionError as error:
        connection.close()
        raise PermissionRefused(f"the bus belongs to another user, bus={bus!r}") from error
    except BaseException:
        connection.close()
        raise
    uid = peer_credentials(connection)[1]
    if os.getuid() not in (0, uid) and uid != 0:  # anybody may listen in /dev/shm
        connection.close()
        raise PermissionRefused(f"the bus belongs to another user, bus={bus!r}, uid={uid}")
    return connection


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Return the PID and the user id of the process at the other end, as the kernel knows them."""
    pid, uid, _ = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid
