"""faster-fifo: `put` and `get_many`, one queue for each consumer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import msgpack

from bench.driver import FOREVER_S, Consumer, Producer
from bench.drivers.standard import poll_queue
from bench.messages import ManyConsumer, MessageDriver, MessageProducer
from bench.work import END_NUMBER, TEXT, Shape, consumer_of, keys, unpack

BUFFER_BYTES: Final = 8 * 1024 * 1024


class FasterFifoDriver(MessageDriver):
    """Queues that encode and decode by msgpack themselves, instead of pickling what it gives."""

    name = "faster-fifo"
    package = "faster-fifo"
    module = "faster_fifo"

    def open(self, stack: ExitStack) -> None:
        """Make the queues."""
        import faster_fifo

        self.queues = [
            faster_fifo.Queue(BUFFER_BYTES, loads=unpack, dumps=msgpack.packb)
            for _ in range(self.shape.consumers)
        ]

    def producer(self, index: int) -> Producer:
        """Put into every consumer's queue."""
        return _Producer(self.queues, self.shape)

    def consumer(self, index: int) -> Consumer:
        """Get from one's own queue, as many as there are."""
        return _Consumer(partial(self.queues[index].get_many, timeout=FOREVER_S))

    def ends(self, side: int) -> tuple[Callable[[bytes], object], Callable[[], Any]]:
        """Put into the other side's queue, get from one's own; bytes, for the general loop."""
        for each in self.queues:
            each.loads = each.dumps = bytes
        mine, put = self.queues[side], self.queues[1 - side].put
        if self.trip.spin:
            return put, partial(poll_queue, mine.get_nowait)
        return put, partial(mine.get, timeout=FOREVER_S)


class _Producer(MessageProducer):
    """Puts the data, which the queue's `dumps` encodes; in a fan-out, what is encoded already."""

    def __init__(self, queues: list[Any], shape: Shape) -> None:
        super().__init__([each.put for each in queues], shape)
        self.encoded = self.route == "all"
        for each in queues:
            # A kept packer is the fastest, but could not be passed to this process.
            each.dumps = bytes if self.encoded else self.pack

    def _send_to_one(self) -> None:
        put, blob = self.puts[0], self.batch.blob
        for number in self.batch.numbers:
            put((number, TEXT, blob))

    def _send_by_key(self) -> None:
        puts, blob = self.puts, self.batch.blob
        consumers = len(puts)
        for number, key in zip(self.batch.numbers, keys(), strict=False):
            puts[consumer_of(key, consumers)]((number, TEXT, blob))

    def end(self) -> None:
        data = (END_NUMBER, TEXT, self.batch.blob)
        for put in self.puts:
            put(self.pack(data) if self.encoded else data)


class _Consumer(ManyConsumer):
    """Gets the data, which the queue's `loads` has decoded."""

    def run(self) -> None:
        get_many, handle = self.get_many, self.handle
        while True:
            for data in get_many():
                handle(*data)
