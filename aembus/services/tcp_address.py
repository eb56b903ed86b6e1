"""Addresses as text, and the sockets that are bound to them.

Written by users: "host:port", "[host]:port", "unix:/path", "systemd:NAME".  The service makes
sockets of them in the process that hosts it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from typing import Any, Final

from aembus.errors import ServiceError

BACKLOG: Final = 1024
UNIX: Final = "unix:"
SYSTEMD: Final = "systemd:"
UNIX_MODE: Final = 0o600
FIRST_PASSED: Final = 3  # the first descriptor that systemd passes: sd_listen_fds(3)
PROBES: Final = {  # after 60 s of silence one each 15 s; the end when four were in vain
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 4,
}
_CREDENTIALS: Final = struct.Struct("3i")


def host_and_port(address: str) -> tuple[str, int]:
    """Return the two parts of "host:port".  Raises ServiceError if it is none."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise ServiceError(
            f"an address is written host:port, unix:/path or systemd:NAME, address={address!r}"
        )
    return host.strip("[]"), int(port)


def address_text(name: Any) -> str:
    """Return an address of the socket module as text."""
    if not isinstance(name, tuple):
        return UNIX + os.fsdecode(name)
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_text(connected: socket.socket, name: Any) -> str:
    """Return the address of a peer, of a unix socket's peer what the kernel knows of it."""
    if isinstance(name, tuple):
        return address_text(name)
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return f"{UNIX}pid={pid},uid={uid}"


def host_of(name: Any) -> str:
    """Return the part of an address by which connections are counted, "" if there is none."""
    return str(name[0]) if isinstance(name, tuple) else ""


def bind(address: str, reuse_port: bool, mode: int | None) -> socket.socket:
    """Return a socket that listens, and does not block.

    Args:
        address: see the module.
        reuse_port: share the port with other sockets that say so too (SO_REUSEPORT, socket(7)).
        mode: of a unix socket's file; None: only this user may connect.

    Raises: ServiceError if the address is none, or cannot be had.
    """
    if address.startswith(SYSTEMD):
        return passed_socket(address.removeprefix(SYSTEMD))
    try:
        if address.startswith(UNIX):
            return _bind_unix(address.removeprefix(UNIX), UNIX_MODE if mode is None else mode)
        return _bind_port(*host_and_port(address), reuse_port)
    except OSError as error:
        raise ServiceError(
            f"cannot listen; choose another address or stop what has it, address={address!r}, "
            f"error={error.strerror!r}"
        ) from error


def _bind_port(host: str, port: int, reuse_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as undo:
        bound = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        # Listening shows at once whether another process has the port.
        _listen(bound)
        undo.pop_all()
    return bound


def _bind_unix(path: str, mode: int) -> socket.socket:
    with contextlib.ExitStack() as undo:
        bound = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        # Made under another name and moved: no moment without a file, or with another mode.
        fresh = f"{path}.{os.getpid()}"
        bound.bind(fresh)
        undo.callback(os.unlink, fresh)
        os.chmod(fresh, mode)
        _listen(bound)
        _check_dead(path)
        os.rename(fresh, path)
        undo.pop_all()
    return bound


def _check_dead(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ServiceError(f"there is a file that is no socket, path={path!r}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return  # nobody, or what a dead server has left
    raise ServiceError(f"another server listens there; stop it first, path={path!r}")


def bound_file(bound: socket.socket) -> tuple[str, int]:
    """Return the file of a unix socket, and its inode if it is ours to remove, else 0."""
    name = os.fsdecode(bound.getsockname())
    # What `bind` makes is moved at once: a socket that is where it was made is somebody else's.
    if name.startswith("\0") or os.path.lexists(name):
        return name.replace("\0", "@"), 0
    path = name.rpartition(".")[0]
    try:
        return path, os.stat(path).st_ino
    except OSError:  # somebody has removed it
        return path, 0


def unlink_unix(bound: socket.socket, inode: int) -> None:
    """Remove the file of a unix socket that was ours, unless another server has replaced it."""
    path, found = bound_file(bound)
    if found == inode:
        with contextlib.suppress(OSError):
            os.unlink(path)


def set_tcp_options(made: socket.socket) -> None:
    """Have no small piece wait for the peer's acknowledgement, and find peers that are no more.

    Whose machine was cut off never ends its connection: the kernel probes who is silent, and ends
    it after two minutes.  What a listening socket accepts is as that is.  Source: tcp(7).
    """
    if made.family != socket.AF_UNIX:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in PROBES.items():
            made.setsockopt(socket.IPPROTO_TCP, option, value)


def _listen(bound: socket.socket) -> None:
    set_tcp_options(bound)
    bound.setblocking(False)
    bound.listen(BACKLOG)


def passed_socket(name: str) -> socket.socket:
    """Return a copy of a listening socket that systemd has passed to this process.

    Args:
        name: its FileDescriptorName=, or the number of its descriptor, 3 for the first.

    Raises: ServiceError if there is none.  Source: sd_listen_fds(3), systemd.socket(5).
    """
    environment = os.environ
    names: list[str] = []
    if environment.get("LISTEN_PID") == str(os.getpid()):
        count = int(environment.get("LISTEN_FDS", "0"))
        names = environment.get("LISTEN_FDNAMES", "").split(":")[:count]
        names += [""] * (count - len(names))
    numbers = [n for n, known in enumerate(names, FIRST_PASSED) if name in (known, str(n))]
    if not name or not numbers:
        raise ServiceError(
            "systemd has passed no such socket to this process, the one that hosts the service, "
            f"name={name!r}, passed={names}, LISTEN_PID={environment.get('LISTEN_PID')!r}, "
            f"pid={os.getpid()}"
        )
    os.set_inheritable(numbers[0], False)
    passed = socket.socket(fileno=os.dup(numbers[0]))
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.close()
        raise ServiceError(f"what systemd has passed does not listen, name={name!r}")
    set_tcp_options(passed)
    passed.setblocking(False)
    return passed
