"""posix_ipc.MessageQueue: the kernel's message queues, one for each consumer."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import posix_ipc

from bench.driver import Consumer, Producer
from bench.messages import MessageConsumer, MessageDriver, MessageProducer
from bench.work import SIZE_MAX

MESSAGE_BYTES_MAX: Final = SIZE_MAX + 24
# How many messages a queue may hold; the kernel grants an ordinary user 10.
DEPTHS: Final = (4096, 1024, 256, 64, 10)
LIMIT_BYTES: Final = 256 * 1024 * 1024


class PosixQueueDriver(MessageDriver):
    """Kernel message queues, as deep as this user may have them."""

    name = "posix_ipc"
    package = "posix-ipc"
    module = "posix_ipc"

    def open(self, stack: ExitStack) -> None:
        """Make the queues."""
        self.names = []
        for number in range(self.shape.consumers):
            queue = create(f"/aembus-bench.{os.getpid()}.{self.serial}.{number}")
            stack.callback(queue.close)
            stack.callback(queue.unlink)
            self.names.append(queue.name)

    def producer(self, index: int) -> Producer:
        """Send into every consumer's queue."""
        return MessageProducer(
            [posix_ipc.MessageQueue(name).send for name in self.names], self.shape
        )

    def consumer(self, index: int) -> Consumer:
        """Receive from one's own queue."""
        return MessageConsumer(partial(_receive, posix_ipc.MessageQueue(self.names[index]).receive))

    def ends(self, side: int) -> tuple[Callable[[bytes], object], Callable[[], Any]]:
        """Send into the other side's queue, receive from one's own."""
        mine, other = (posix_ipc.MessageQueue(self.names[n]) for n in (side, 1 - side))
        return other.send, partial(_poll if self.trip.spin else _receive, mine.receive)


def create(name: str) -> Any:
    """Return a new queue, as deep as this user may have it.  Raises OSError."""
    with contextlib.suppress(ValueError, OSError):  # only root may ask for more
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (LIMIT_BYTES, LIMIT_BYTES))
    for depth in DEPTHS:
        with contextlib.suppress(OSError, ValueError, posix_ipc.Error):
            return posix_ipc.MessageQueue(
                name, posix_ipc.O_CREX, 0o600, depth, max_message_size=MESSAGE_BYTES_MAX
            )
    raise OSError(f"no message queue can be made, not even with room for {DEPTHS[-1]} messages")


def _receive(receive: Callable[[], tuple[bytes, int]]) -> bytes:
    return receive()[0]


def _poll(receive: Callable[[int], tuple[bytes, int]]) -> bytes:
    busy = posix_ipc.BusyError
    while True:
        try:
            return receive(0)[0]
        except busy:
            pass
