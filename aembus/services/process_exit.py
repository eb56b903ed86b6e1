"""Processes, as the exit service watches them: a pidfd, and how the process ended.

A pidfd stands for one process and no other, whatever becomes of its pid; it needs nothing of the
process that it stands for, which may be anybody's child.  It is readable once the process has
ended, and hung up once its parent has asked how (`pidfd_open(2)`).

How it ended can be seen in two places:

- until its parent has asked, in /proc/PID/stat, whose pid is not free before (`proc(5)`);
- then by the pidfd itself, from Linux 6.15 on (PIDFD_GET_INFO with PIDFD_INFO_EXIT, `ioctl_pidfd`).

On an older kernel, who looks after the parent has asked does not learn it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
from pathlib import Path
from typing import Final

from aembus.errors import PermissionRefused, ProcessNotFound, ServiceError

# struct pidfd_info, as it has been from the beginning: mask, ..., exit_code.
_INFO_BYTES: Final = 64
_INFO_EXIT_CODE: Final = 60
_INFO_EXIT: Final = 1 << 3  # PIDFD_INFO_EXIT
_GET_INFO: Final = 3 << 30 | _INFO_BYTES << 16 | 0xFF << 8 | 11  # PIDFD_GET_INFO


def open_process(pid: int) -> int:
    """Return a pidfd of a process of this user; it is the caller's to close.

    Raises:
        ProcessNotFound: no process has this pid (one that has ended and was not asked for has).
        PermissionRefused: it is another user's.
        ServiceError: there are too many descriptors.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OverflowError as error:  # more than pid_t holds
        raise ProcessNotFound(f"no process has this pid, {pid=}") from error
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # the latter: of a thread
            raise ProcessNotFound(f"no process has this pid, {pid=}") from error
        raise ServiceError(
            f"the process cannot be watched; raise the limit of open files (ulimit -n), {pid=}, "
            f"error={error.strerror!r}"
        ) from error
    try:
        check_process(descriptor, pid)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_process(descriptor: int, pid: int) -> None:
    """Raise as `open_process` does if the process is gone for good, or another user's."""
    try:
        signal.pidfd_send_signal(descriptor, 0)
    except ProcessLookupError as error:
        raise ProcessNotFound(f"no process has this pid, {pid=}") from error
    except PermissionError as error:
        raise PermissionRefused(
            "the process belongs to another user; only root may watch that, "
            f"{pid=}, user={os.geteuid()}"
        ) from error


def unasked_exit_code(descriptor: int, pid: int) -> int | None:
    """Return how a process has ended whose parent has not asked yet; None if it has."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        signal.pidfd_send_signal(descriptor, 0)  # else the pid may be another's by now
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return _exit_code(int(fields[-1])) if fields[0] == "Z" else None


def asked_exit_code(descriptor: int) -> int | None:
    """Return how a process has ended whose parent has asked; None on an older kernel."""
    info = bytearray(_INFO_BYTES)
    struct.pack_into("=Q", info, 0, _INFO_EXIT)
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, _GET_INFO, info)
        (mask,) = struct.unpack_from("=Q", info, 0)
        (status,) = struct.unpack_from("=i", info, _INFO_EXIT_CODE)
        if mask & _INFO_EXIT:
            return _exit_code(status)
    return None


def _exit_code(status: int) -> int | None:
    try:
        return os.waitstatus_to_exitcode(status)
    except ValueError:
        return None
