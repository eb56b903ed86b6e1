"""pyzmq: PUSH and PULL over ipc, XPUB and SUB for the fan-out, PAIR for the round trip.

Messages are copied, which for less than 64 KiB pyzmq does even if told not to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.driver import Consumer, Producer
from bench.messages import MessageConsumer, MessageDriver, MessageProducer


class PyzmqDriver(MessageDriver):
    """ZeroMQ sockets on Unix domain sockets in the scratch folder."""

    name = "pyzmq"
    package = "pyzmq"
    module = "zmq"

    @classmethod
    def version(cls) -> str:
        """Return the versions of pyzmq and of libzmq."""
        import zmq

        return f"{zmq.__version__}, libzmq {zmq.zmq_version()}"

    @property
    def _high_water_mark(self) -> int:
        # Whichever was faster: ZeroMQ's default where producers compete for a consumer, else
        # none, so that a producer never waits.
        return 1000 if self.shape.producers > 1 and self.shape.route in ("one", "key") else 0

    def _socket(self, kind: int) -> Any:
        import zmq

        socket = zmq.Context.instance().socket(kind)
        socket.set_hwm(self._high_water_mark)
        socket.linger = 0
        return socket

    def open(self, stack: ExitStack) -> None:
        """Name the sockets; each listening process makes its own."""

    def _address(self, what: object) -> str:
        return f"ipc://{self.scratch}/zmq-{self.serial}-{what}"

    def producer(self, index: int) -> Producer:
        """Connect to every consumer; in a fan-out, wait for their subscriptions."""
        import zmq

        consumers = self.shape.consumers
        if self.shape.route == "all":
            publisher = self._socket(zmq.XPUB)
            publisher.xpub_verbose = True  # say each subscription, not only the first
            publisher.bind(self._address("fan-out"))
            for _ in range(consumers):
                publisher.recv()
            return _Sender([publisher], self.shape)
        if self.shape.route == "turn":  # a PUSH socket deals its messages out by itself
            dealer = self._socket(zmq.PUSH)
            for consumer in range(consumers):
                dealer.connect(self._address(consumer))
            return _Sender([dealer], self.shape, ends=consumers)
        sockets = [self._socket(zmq.PUSH) for _ in range(consumers)]
        for consumer, socket in enumerate(sockets):
            socket.connect(self._address(consumer))
        return _Sender(sockets, self.shape)

    def consumer(self, index: int) -> Consumer:
        """Listen for producers, or subscribe to the one there is."""
        import zmq

        if self.shape.route == "all":
            socket = self._socket(zmq.SUB)
            socket.subscribe(b"")
            socket.connect(self._address("fan-out"))
        else:
            socket = self._socket(zmq.PULL)
            socket.bind(self._address(index))
        return _Receiver(socket)

    def ends(self, side: int) -> tuple[Callable[[bytes], object], Callable[[], Any]]:
        """Send and receive by one PAIR socket."""
        import zmq

        socket = self._socket(zmq.PAIR)
        if side:
            socket.connect(self._address("pair"))
        else:
            socket.bind(self._address("pair"))
        return socket.send, partial(_poll, socket) if self.trip.spin else socket.recv


class _Sender(MessageProducer):
    def __init__(self, sockets: list[Any], shape: Any, ends: int = 1) -> None:
        super().__init__([socket.send for socket in sockets], shape)
        self.sockets = sockets
        self.ends = ends

    def end(self) -> None:
        for _ in range(self.ends):
            super().end()

    def close(self) -> None:
        for socket in self.sockets:
            socket.close()


class _Receiver(MessageConsumer):
    def __init__(self, socket: Any) -> None:
        super().__init__(socket.recv)
        self.socket = socket

    def close(self) -> None:
        self.socket.close()


def _poll(socket: Any) -> Any:
    import zmq

    receive, flag, again = socket.recv, zmq.NOBLOCK, zmq.Again
    while True:
        try:
            return receive(flag)
        except again:
            pass
