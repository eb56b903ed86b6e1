"""iceoryx2: a publish-subscribe service for each consumer, one for all in a fan-out; busy polling.

A publisher whose subscriber has no room waits; by its default iceoryx2 would overwrite instead.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.driver import Consumer, Producer
from bench.messages import MessageConsumer, MessageDriver, MessageProducer
from bench.work import SIZE_MAX

ROOM: Final = 4096  # messages that wait in a subscriber


class IceoryxDriver(MessageDriver):
    """Slices of bytes, so that one service carries every size.

    Its Python binding can wait for events, but not together with messages; polling is faster.
    """

    name = "iceoryx2"
    package = "iceoryx2"
    module = "iceoryx2"
    spins = frozenset({True})

    def open(self, stack: ExitStack) -> None:
        """Choose a prefix, to know what is ours afterwards; each end makes what it needs."""
        self.prefix = f"aembus-bench.{os.getpid()}.{self.serial}."
        stack.callback(_remove, self.prefix)

    def _service(self, what: object) -> Any:
        import iceoryx2

        iceoryx2.set_log_level(iceoryx2.LogLevel.Fatal)
        settings = iceoryx2.config.default()
        settings.global_cfg.root_path = iceoryx2.Path.new(self.scratch)
        settings.global_cfg.prefix = iceoryx2.FileName.new(self.prefix)
        node = (
            iceoryx2.NodeBuilder.new()
            .config(settings)
            .signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
            .create(iceoryx2.ServiceType.Ipc)
        )
        return (
            node.service_builder(iceoryx2.ServiceName.new(str(what)))
            .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
            .max_publishers(max(2, self.shape.producers))
            .max_subscribers(max(2, self.shape.consumers))
            .subscriber_max_buffer_size(ROOM)
            .enable_safe_overflow(False)
            .open_or_create()
        )

    def _publisher(self, what: object) -> Callable[[bytes], None]:
        import iceoryx2

        publisher = (
            self._service(what)
            .publisher_builder()
            .initial_max_slice_len(SIZE_MAX)
            .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        return partial(_send, publisher)

    def _subscriber(self, what: object) -> Callable[[], bytes]:
        builder = self._service(what).subscriber_builder()
        return partial(_receive, builder.buffer_size(ROOM).create().receive)

    def producer(self, index: int) -> Producer:
        """Publish to every consumer's service, or to the one that all subscribed to."""
        services = ["all"] if self.shape.route == "all" else range(self.shape.consumers)
        return MessageProducer([self._publisher(what) for what in services], self.shape)

    def consumer(self, index: int) -> Consumer:
        """Subscribe."""
        what = "all" if self.shape.route == "all" else index
        return MessageConsumer(self._subscriber(what))

    def ends(self, side: int) -> tuple[Callable[[bytes], object], Callable[[], Any]]:
        """Publish to the other side's service, subscribe to one's own."""
        return self._publisher(1 - side), self._subscriber(side)


def _send(publisher: Any, message: bytes) -> None:
    length = len(message)
    sample = publisher.loan_slice_uninit(length)
    ctypes.memmove(sample.payload_ptr, message, length)
    sample.assume_init().send()


def _receive(receive: Callable[[], Any]) -> bytes:
    while (sample := receive()) is None:
        pass
    return ctypes.string_at(sample.payload_ptr, sample.header.number_of_elements)


def _remove(prefix: str) -> None:
    # What the ends shared goes with them; iceoryx2's own bookkeeping stays, as it is designed to.
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        path.unlink(missing_ok=True)
