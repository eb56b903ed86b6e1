"""What Python brings along: multiprocessing's Queue, SimpleQueue and Pipe."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from bench.driver import Consumer, Producer
from bench.messages import ManyConsumer, MessageConsumer, MessageDriver, MessageProducer

SPAWN: Final = multiprocessing.get_context("spawn")


class QueueDriver(MessageDriver):
    """multiprocessing.Queue, unbounded, one for each consumer.

    Its documentation has no way to pass bytes without pickle; bytes are what pickles fastest.
    """

    name = "Queue"

    def open(self, stack: ExitStack) -> None:
        """Make the queues."""
        self.queues = [SPAWN.Queue() for _ in range(self.shape.consumers)]
        for each in self.queues:
            stack.callback(each.close)

    def producer(self, index: int) -> Producer:
        """Put into every consumer's queue."""
        return MessageProducer([each.put for each in self.queues], self.shape)

    def consumer(self, index: int) -> Consumer:
        """Get from one's own queue."""
        return MessageConsumer(self.queues[index].get)

    def ends(self, side: int) -> tuple[Callable[[bytes], object], Callable[[], Any]]:
        """Put into the other side's queue, get from one's own."""
        mine = self.queues[side]
        get = partial(poll_queue, mine.get_nowait) if self.trip.spin else mine.get
        return self.queues[1 - side].put, get


def poll_queue(get_nowait: Callable[[], Any]) -> Any:
    """Get from a queue without ever sleeping."""
    while True:
        try:
            return get_nowait()
        except queue.Empty:
            pass


class SimpleQueueDriver(MessageDriver):
    """multiprocessing.SimpleQueue, one for each consumer."""

    name = "SimpleQueue"

    def open(self, stack: ExitStack) -> None:
        """Make the queues."""
        self.queues = [SPAWN.SimpleQueue() for _ in range(self.shape.consumers)]
        for each in self.queues:
            stack.callback(each.close)

    def producer(self, index: int) -> Producer:
        """Put into every consumer's queue."""
        return MessageProducer([each.put for each in self.queues], self.shape)

    def consumer(self, index: int) -> Consumer:
        """Get from one's own queue."""
        return MessageConsumer(self.queues[index].get)

    def ends(self, side: int) -> tuple[Callable[[bytes], object], Callable[[], Any]]:
        """Put into the other side's queue, get from one's own."""
        mine = self.queues[side]
        return self.queues[1 - side].put, partial(
            _poll_simple, mine
        ) if self.trip.spin else mine.get


def _poll_simple(mine: Any) -> Any:
    while mine.empty():
        pass
    return mine.get()


class PipeDriver(MessageDriver):
    """multiprocessing.Pipe: one for each producer and consumer, since two may not share an end.

    A consumer of several takes one message from each that has some, by multiprocessing's `wait`.
    """

    name = "Pipe"

    def open(self, stack: ExitStack) -> None:
        """Make the pipes; in a round trip, a pipe for each way."""
        self.readers: list[list[Connection]] = []
        self.writers: list[list[Connection]] = []
        for _ in range(self.shape.consumers):
            pairs = [SPAWN.Pipe(duplex=False) for _ in range(self.shape.producers)]
            self.readers.append([stack.enter_context(reader) for reader, _ in pairs])
            self.writers.append([stack.enter_context(writer) for _, writer in pairs])

    def producer(self, index: int) -> Producer:
        """Send into one's own pipe to each consumer."""
        return MessageProducer([pipes[index].send_bytes for pipes in self.writers], self.shape)

    def consumer(self, index: int) -> Consumer:
        """Receive from every producer's pipe."""
        mine = self.readers[index]
        if len(mine) == 1:
            return MessageConsumer(mine[0].recv_bytes)
        return ManyConsumer(partial(_receive_ready, mine))

    def ends(self, side: int) -> tuple[Callable[[bytes], object], Callable[[], Any]]:
        """Send into the other side's pipe, receive from one's own."""
        mine = self.readers[side][1 - side]
        receive = partial(_poll_pipe, mine) if self.trip.spin else mine.recv_bytes
        return self.writers[1 - side][side].send_bytes, receive


def _receive_ready(connections: list[Connection]) -> Iterator[bytes]:
    for connection in wait(connections):
        assert isinstance(connection, Connection)
        yield connection.recv_bytes()


def _poll_pipe(connection: Connection) -> bytes:
    while not connection.poll():
        pass
    return connection.recv_bytes()
