"""Who owns a bus: the lock that its supervisor holds, and the sweep of what a killed one left.

A state directory that was chosen has one, too: two buses would take each other's dead letters.

The kernel drops the lock at the holder's death, however it died, so nobody has to guess from a
PID or a time-out.  Whoever holds the lock may remove everything else under the bus's name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aembus.errors import BusAlreadyRunning, OpenError, PermissionRefused, SupervisorError
from aembus.shm import layout, names, registry
from aembus.shm.segment import no_space

log = logging.getLogger("aembus")

PROBE_S_MAX: Final = 0.1  # longer than `lock_holder` ever holds a lock


class BusLock:
    """The lock of one bus, held from construction to `release`.

    Raises: BusAlreadyRunning naming the holder, PermissionRefused, OutOfSharedMemory.
    """

    def __init__(self, bus: str) -> None:
        self._bus = bus
        self._path = names.lock_path(bus)
        self._descriptor = self._acquire()
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps({"pid": os.getpid()}).encode(), 0)
        except OSError as error:
            self.release()
            raise no_space(error, str(self._path), layout.PAGE) from error

    def _acquire(self) -> int:
        patience_until = time.monotonic() + PROBE_S_MAX
        while True:
            descriptor = _open_lock(self._bus, os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = lock_holder(self._bus)
                os.close(descriptor)
                if time.monotonic() < patience_until:  # somebody may only have asked who has it
                    time.sleep(PROBE_S_MAX / 10)
                    continue
                raise BusAlreadyRunning(
                    "a supervisor runs this bus already; stop it, or choose another name "
                    f"(--bus NAME), bus={self._bus!r}, pid={holder}"
                ) from error
            except OSError:
                os.close(descriptor)
                raise
            # The last holder removes the file before it lets go: then this is a file of no name.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            os.close(descriptor)

    def release(self) -> None:
        """Remove the lock file and let go."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _open_lock(bus: str, flags: int) -> int:
    # Anybody may put a file of this name into /dev/shm: one of another user's, that this one may
    # write to, or a link to a file that it should not.
    path = names.lock_path(bus)
    flags |= os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except PermissionError as error:
        raise PermissionRefused(_foreign(bus, path)) from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise PermissionRefused(
            f"the bus's lock is a link, which aembus does not make; remove it, {bus=}, lock={path}"
        ) from error
    if os.getuid() not in (0, os.fstat(descriptor).st_uid):
        os.close(descriptor)
        raise PermissionRefused(_foreign(bus, path))
    return descriptor


def _foreign(bus: str, path: Path) -> str:
    return f"the bus belongs to another user, bus={bus!r}, lock={path}"


def lock_holder(bus: str) -> int | None:
    """Return the PID of the supervisor that holds this bus's lock, None if nobody does.

    Raises PermissionRefused for another user's bus: nobody else may know.
    """
    try:
        descriptor = _open_lock(bus, 0)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError, KeyError):
            pid: int = json.loads(os.pread(descriptor, 200, 0))["pid"]
            return pid
        return 0  # held, by a supervisor that has not written its PID yet
    finally:
        os.close(descriptor)
    return None


def sweep(bus: str) -> list[Path]:
    """Remove what a killed supervisor left under the bus's name; return what was removed.

    The caller holds the bus's lock.  Members of the dead supervisor that still run are told by
    their registry, and keep their mappings until they end.
    """
    removed = []
    for path in names.leftovers(bus):
        if path.name.endswith(f".{registry.ROLE}"):
            with contextlib.suppress(OpenError, OSError):
                registry.break_registry(f"/{path.name}")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            removed.append(path)
    with contextlib.suppress(FileNotFoundError):
        names.control_path(bus).unlink()
        removed.append(names.control_path(bus))
    return removed


@contextlib.contextmanager
def state_owned(chosen: str | None) -> Iterator[None]:
    """Keep other buses from writing into a state directory, which is made if it is not there.

    Args:
        chosen: None: it is where nobody else's is.

    Raises: SupervisorError if one does already.
    """
    if chosen is None:
        yield
        return
    directory, descriptor = Path(chosen), -1
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SupervisorError(
            "another bus keeps its dead letters in this directory; give each bus one of its own "
            f"(state_directory), directory={str(directory)!r}"
        ) from error
    except OSError as error:  # the first letter will tell
        log.error("the state directory cannot be locked, directory=%s: %s", directory, error)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)
