"""What the transports share that carry bytes: the loops around a send and a receive."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter_ns
from typing import Any

from bench.driver import Consumer, Driver, Pinger, Ponger, Producer
from bench.work import END_NUMBER, TEXT, Batch, Shape, consumer_of, keys, packer, unpack


class MessageDriver(Driver):
    """A transport that carries bytes both ways."""

    @abstractmethod
    def ends(self, side: int) -> tuple[Callable[[bytes], object], Callable[[], Any]]:
        """In a process of a round trip: its send, and its receive, which spins or sleeps."""

    def pinger(self) -> Pinger:
        """Begin, over this side's send and receive."""
        return MessagePinger(*self.ends(0))

    def ponger(self) -> Ponger:
        """Answer, over the other side's."""
        return MessagePonger(*self.ends(1))


class MessageProducer(Producer):
    """Encodes a job and puts the bytes.

    Args:
        puts: one for each consumer, or a single one where the transport itself spreads them.
        shape: says which of the puts a job takes.
    """

    def __init__(self, puts: Sequence[Callable[[Any], object]], shape: Shape) -> None:
        self.puts = list(puts)
        self.route = shape.route if len(self.puts) > 1 else "one"
        self.pack = packer()

    def send(self) -> None:
        """Encode and put each job of the batch."""
        {"one": self._send_to_one, "all": self._send_to_all, "key": self._send_by_key}[self.route]()

    def _send_to_one(self) -> None:
        pack, put, blob = self.pack, self.puts[0], self.batch.blob
        for number in self.batch.numbers:
            put(pack((number, TEXT, blob)))

    def _send_to_all(self) -> None:
        pack, puts, blob = self.pack, self.puts, self.batch.blob
        for number in self.batch.numbers:
            message = pack((number, TEXT, blob))
            for put in puts:
                put(message)

    def _send_by_key(self) -> None:
        pack, puts, blob = self.pack, self.puts, self.batch.blob
        consumers = len(puts)
        for number, key in zip(self.batch.numbers, keys(), strict=False):
            puts[consumer_of(key, consumers)](pack((number, TEXT, blob)))

    def end(self) -> None:
        """Put an END_NUMBER for each consumer."""
        message = self.pack((END_NUMBER, TEXT, self.batch.blob))
        for put in self.puts:
            put(message)


class MessageConsumer(Consumer):
    """Gets bytes, one message at a time, and decodes them."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self.get = get

    def run(self) -> None:
        """Receive until the handler raises Quit."""
        get, handle = self.get, self.handle
        while True:
            handle(*unpack(get()))


class ManyConsumer(Consumer):
    """Gets bytes, as many messages as there are at a time, and decodes them."""

    def __init__(self, get_many: Callable[[], Iterable[Any]]) -> None:
        self.get_many = get_many

    def run(self) -> None:
        """Receive until the handler raises Quit."""
        get_many, handle = self.get_many, self.handle
        while True:
            for message in get_many():
                handle(*unpack(message))


class MessagePinger(Pinger):
    """The beginner's side, for transports of bytes."""

    def __init__(self, send: Callable[[bytes], object], receive: Callable[[], Any]) -> None:
        self.send, self.receive = send, receive
        self.pack = packer()
        self.received = 0

    def _handle(self, number: int, text: str, blob: bytes) -> None:
        self.received = number

    def run(
        self, next_batch: Callable[[], Batch | None], report: Callable[[list[int]], None]
    ) -> None:
        """Exchange batch after batch."""
        send, receive, pack, handle = self.send, self.receive, self.pack, self._handle
        while (batch := next_batch()) is not None:
            times: list[int] = []
            for number in batch.numbers:
                began = perf_counter_ns()
                send(pack((number, TEXT, batch.blob)))
                handle(*unpack(receive()))
                times.append(perf_counter_ns() - began)
                if self.received != number:
                    raise RuntimeError(f"a wrong answer, sent={number}, got={self.received}")
            send(pack((END_NUMBER, TEXT, batch.blob)))
            report(times)


class MessagePonger(Ponger):
    """The answering side, for transports of bytes."""

    def __init__(self, send: Callable[[bytes], object], receive: Callable[[], Any]) -> None:
        self.send, self.receive = send, receive

    def run(self, next_round: Callable[[], bool]) -> None:
        """Answer each job by the job itself, encoded anew."""
        send, receive, pack = self.send, self.receive, packer()
        more = next_round()

        def handle(number: int, text: str, blob: bytes) -> None:
            nonlocal more
            if number < 0:
                more = next_round()
            else:
                send(pack((number, text, blob)))

        while more:
            handle(*unpack(receive()))
