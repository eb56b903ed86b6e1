"""The limit: what Python itself allows, with no transport between.

One process encodes jobs, another one decodes jobs that were encoded before and calls the handler,
side by side at the same time.  Whatever carries the bytes can at best cost nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from bench.driver import Consumer, Driver, Producer
from bench.work import TEXT, Batch, Shape, packer, unpack
from bench.worker import make_handlers

MESSAGES_MAX: Final = 1024  # so many are encoded beforehand, and decoded again and again

SHAPE: Final = Shape("limit", 2, 0, "one")


class LimitDriver(Driver):
    """Two processes that have nothing to do with each other."""

    name = "limit"
    spins = frozenset()

    def open(self, stack: ExitStack) -> None:
        """Nothing is needed."""

    def producer(self, index: int) -> Producer:
        """Be the encoder or the decoder."""
        return _Decoder() if index else _Encoder()

    def consumer(self, index: int) -> Consumer:
        """There is none."""
        raise NotImplementedError

    def expected(self, sent: list[Batch]) -> tuple[int, int]:
        """Return count and sum of what the decoder handles."""
        numbers = sent[1].numbers
        whole, rest = divmod(len(numbers), MESSAGES_MAX)
        return len(numbers), whole * sum(numbers[:MESSAGES_MAX]) + sum(numbers[:rest])


class _Encoder(Producer):
    def __init__(self) -> None:
        self.pack = packer()

    def send(self) -> None:
        pack, blob = self.pack, self.batch.blob
        for number in self.batch.numbers:
            pack((number, TEXT, blob))

    def end(self) -> None:
        pass


class _Decoder(Producer):
    def __init__(self) -> None:
        self.counted = (0, 0)
        self.handle, _ = make_handlers(1, self._count)

    def _count(self, count: int, total: int) -> None:
        self.counted = (count, total)

    def prepare(self, batch: Batch) -> None:
        pack, numbers = packer(), batch.numbers
        whole, rest = divmod(len(numbers), MESSAGES_MAX)
        messages = [pack((number, TEXT, batch.blob)) for number in numbers[:MESSAGES_MAX]]
        self.plan = [(whole, messages), (1, messages[:rest])]

    def send(self) -> None:
        handle = self.handle
        for times, messages in self.plan:
            for _ in range(times):
                for message in messages:
                    handle(*unpack(message))

    def end(self) -> None:
        self.handle(-1, "", b"")

    def handled(self) -> tuple[int, int]:
        return self.counted
