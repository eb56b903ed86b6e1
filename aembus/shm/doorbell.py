"""The doorbell of an inbox: what its owner sleeps on, and how others post it.

The owner announces a sleep by storing `sleeping` = (number of the sleep, kind of bell), looks at
its lanes once more, and only then waits; a producer stores `tail`, fences, reads `sleeping`, and
posts when it is not 0.  Between its store and its load each side needs a full memory fence, else
both can miss the other.  A producer posts at most once for each sleep (it remembers the number),
and nobody but the owner ever writes `sleeping`, so a producer that is stopped or killed in the
middle delays its own job only.

Kinds: a POSIX semaphore (any process that just waits), or a named pipe (a process that waits in
an event loop).  A semaphore is a bell here, never a lock: it has no owner whose death could matter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from typing import Final, Protocol

import posix_ipc

from aembus.shm import layout, names

_fence_lock = threading.RLock()
_acquire, _release = _fence_lock.acquire, _fence_lock.release


def fence() -> None:
    """Order every store before this call before every load after it (as C's seq_cst fence).

    Taking and releasing a free lock is a locked read-modify-write in CPython, and keeps the GIL.
    On x86-64 that is a full fence.  (A ``with`` block does the same in three times the time.)
    """
    try:
        _acquire()  # inside of `try`: Ctrl-C may come right behind it
    finally:
        try:
            _release()
        except RuntimeError:  # Ctrl-C came first, while another thread had it
            pass


def is_fencing() -> bool:
    """Say whether the caller has interrupted its own thread in `fence`; others wait for that."""
    held: bool = _fence_lock._is_owned()  # type: ignore[attr-defined]  # as Condition asks it
    return held


def semaphore_name(bus: str, nonce: str, inbox_id: int) -> str:
    """Return the name of the semaphore that is the bell of inbox number `inbox_id`."""
    return names.shared_name(bus, nonce, f"bell{inbox_id}")


class Bell(Protocol):
    """What the owner of an inbox waits on."""

    @property
    def kind(self) -> int:
        """Which kind of bell, as `sleeping` tells it to producers."""

    def timed_wait(self, timeout_s: float) -> bool:
        """Wait until posted; False at the time-out or when a signal came first."""

    def post(self) -> None:
        """Wake the owner's own sleeper, from another thread of the same process."""

    def drain(self) -> int:
        """Take back what was posted and not waited for; return how many posts there were."""

    def close(self) -> None:
        """Let go of the bell in this process; its name stays."""


class SemaphoreBell:
    """A bell for a thread that does nothing but wait."""

    kind: Final = layout.BELL_SEMAPHORE

    def __init__(self, name: str) -> None:
        self._semaphore = posix_ipc.Semaphore(name)

    def timed_wait(self, timeout_s: float) -> bool:
        """See Bell."""
        try:
            self._semaphore.acquire(timeout_s)
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            return False
        return True

    def post(self) -> None:
        """See Bell."""
        self._semaphore.release()

    def drain(self) -> int:
        """See Bell."""
        posts = 0
        try:
            while self._semaphore.value:
                self._semaphore.acquire(0)
                posts += 1
        except posix_ipc.BusyError:
            pass
        return posts

    def close(self) -> None:
        """See Bell."""
        self._semaphore.close()


class PipeBell:
    """A bell with a descriptor, for an event loop to watch."""

    kind: Final = layout.BELL_DESCRIPTOR

    def __init__(self, bus: str, nonce: str, inbox_id: int) -> None:
        # Open for writing too: else the pipe reads as ended whenever no producer has it open.
        self._path = pipe_bell_path(bus, nonce, inbox_id)
        self.descriptor = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def open_reader(self) -> int:
        """Return another descriptor of the pipe, for reading alone; the caller closes it."""
        return os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def post(self) -> None:
        """See Bell."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.descriptor, b"!")

    def drain(self) -> int:
        """See Bell."""
        try:
            return len(os.read(self.descriptor, 65536))
        except BlockingIOError:
            return 0

    def timed_wait(self, timeout_s: float) -> bool:
        """See Bell; for the moments when no event loop runs yet."""
        readable, _, _ = select.select([self.descriptor], [], [], timeout_s)
        return bool(readable)

    def close(self) -> None:
        """See Bell."""
        os.close(self.descriptor)


def pipe_bell_path(bus: str, nonce: str, inbox_id: int) -> str:
    """Return the path of the named pipe that is the bell of inbox number `inbox_id`."""
    return str(names.pipe_path(bus, nonce, f"pipe{inbox_id}"))


class Ringer:
    """A producer's handle on somebody else's bell; opened at the first post."""

    def __init__(self, bus: str, nonce: str, inbox_id: int) -> None:
        self._bus, self._nonce, self._inbox_id = bus, nonce, inbox_id
        self._semaphore: posix_ipc.Semaphore | None = None
        self._pipes: dict[int, int] = {}  # one at most: entered by one step to all threads
        self._posted = layout.AWAKE  # the last sleep for which this producer posted

    def ring(self, sleeping: int) -> None:
        """Post for the sleep that `sleeping` announces; a bell that cannot be had is left alone."""
        if sleeping == self._posted:
            return
        kind = sleeping & layout.BELL_KIND_MASK
        try:
            if kind == layout.BELL_SEMAPHORE:
                self._post_semaphore()
            elif kind == layout.BELL_DESCRIPTOR:
                self._post_pipe()
        except (posix_ipc.ExistentialError, FileNotFoundError, BlockingIOError, BrokenPipeError):
            pass
        except OSError as error:
            if error.errno != errno.ENXIO:  # a pipe whose owner is dead, and has none open
                # No descriptor, or no memory, to open it now.  What was published stays so, and its
                # owner finds it when its sleep ends; so whoever publishes must not fail.
                return
        self._posted = sleeping

    def _post_semaphore(self) -> None:
        if self._semaphore is None:
            name = semaphore_name(self._bus, self._nonce, self._inbox_id)
            self._semaphore = posix_ipc.Semaphore(name)
        self._semaphore.release()

    def _post_pipe(self) -> None:
        pipe = self._pipes.get(self._inbox_id)
        if pipe is None:
            path = pipe_bell_path(self._bus, self._nonce, self._inbox_id)
            opened = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            pipe = self._pipes.setdefault(self._inbox_id, opened)
            if pipe != opened:  # another thread was here first
                os.close(opened)
        os.write(pipe, b"!")

    def close(self) -> None:
        """Let go of the bell in this process."""
        if self._semaphore is not None:
            self._semaphore.close()
            self._semaphore = None
        while self._pipes:
            os.close(self._pipes.popitem()[1])


def create_bell(bus: str, nonce: str, inbox_id: int, kind: int) -> None:
    """Create the shared name of a bell (the supervisor does, for every inbox)."""
    if kind == layout.BELL_SEMAPHORE:
        name = semaphore_name(bus, nonce, inbox_id)
        posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
    else:
        os.mkfifo(pipe_bell_path(bus, nonce, inbox_id), 0o600)


def unlink_bell(bus: str, nonce: str, inbox_id: int) -> None:
    """Remove a bell's name, whatever its kind.  Idempotent."""
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_semaphore(semaphore_name(bus, nonce, inbox_id))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(pipe_bell_path(bus, nonce, inbox_id))


def open_bell(bus: str, nonce: str, inbox_id: int, kind: int) -> SemaphoreBell | PipeBell:
    """Open the bell of one's own inbox."""
    if kind == layout.BELL_SEMAPHORE:
        return SemaphoreBell(semaphore_name(bus, nonce, inbox_id))
    return PipeBell(bus, nonce, inbox_id)
