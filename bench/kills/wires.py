"""What is put to the test: each transport as one *wire* for each trial, the same for all.

A wire is made anew for each trial, as its documentation has it for several processes that share
it, with the room that it has by default or about a thousand jobs: what was sent before a kill is
then handled in a moment.  aembus alone keeps its bus: whatever a kill broke there would stay so.
"""

from __future__ import annotations

import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Final

import msgpack

from aembus.stress import message
from aembus.supervisor.dead_letters import DeadLetters
from bench.driver import Driver
from bench.drivers.aembus_bus import AembusCDriver, AembusPythonDriver
from bench.drivers.faster_fifo_queue import FasterFifoDriver
from bench.drivers.posix_queue import PosixQueueDriver, create
from bench.drivers.pyzmq_sockets import PyzmqDriver
from bench.drivers.standard import PipeDriver, QueueDriver, SimpleQueueDriver
from bench.kills.board import Role, Scenario

# The members are forked, which was multiprocessing's way on Linux until Python 3.14: a trial then
# starts in a millisecond.  The process that forks has one thread.
FORK: Final = multiprocessing.get_context("fork")
ROOM_JOBS: Final = 1000
POINT: Final = "kills."  # and the trial's number

Put = Callable[[tuple[Any, ...]], object]
Handle = Callable[[bytes, int, bytes], None]


class Wire(ABC):
    """A transport; `open` and `close` belong to one trial.

    Args:
        scenario: who uses it.
        scratch: a folder that the bench removes at its end.
    """

    driver: ClassVar[type[Driver]]  # what the bench knows of it: name, version, whether it is there

    def __init__(self, scenario: Scenario, scratch: Path) -> None:
        self.scenario = scenario
        self.scratch = scratch
        self.number = 0

    def start(self, stack: ExitStack) -> None:
        """Before the first trial: make what lives through all of them."""
        return

    @abstractmethod
    def open(self, stack: ExitStack) -> None:
        """Before the members are forked: make the trial's own; `stack` removes it again."""

    @abstractmethod
    def producer(self) -> Put:
        """In a producer: return what sends a job's data, and blocks while there is no room."""

    @abstractmethod
    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        """In a consumer: call `ready`, then `handle` with the data of each job, for ever."""

    def dead_letters(self) -> set[tuple[int, int, int]]:
        """Return the jobs that were put aside for a person: trial, producer and number of each."""
        return set()


class MessageWire(Wire):
    """A transport of bytes."""

    @abstractmethod
    def ends(self, role: Role) -> Callable[..., Any]:
        """Return the bound method that sends, or the one that receives."""

    def producer(self) -> Put:
        """Encode, and put the bytes."""
        pack, put = msgpack.Packer().pack, self.ends("producer")
        return lambda data: put(pack(data))

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        """Get, decode, handle."""
        unpack, get = msgpack.unpackb, self.ends("consumer")
        ready()
        while True:
            handle(*unpack(get()))


class QueueWire(MessageWire):
    """One multiprocessing.Queue for all; bounded, since a flood has no end."""

    driver = QueueDriver

    def open(self, stack: ExitStack) -> None:
        """Make it."""
        self.queue = FORK.Queue(ROOM_JOBS)
        stack.callback(self.queue.close)

    def ends(self, role: Role) -> Callable[..., Any]:
        """`put` and `get`."""
        return self.queue.put if role == "producer" else self.queue.get


class SimpleQueueWire(MessageWire):
    """One multiprocessing.SimpleQueue for all."""

    driver = SimpleQueueDriver

    def open(self, stack: ExitStack) -> None:
        """Make it."""
        self.queue = FORK.SimpleQueue()
        stack.callback(self.queue.close)

    def ends(self, role: Role) -> Callable[..., Any]:
        """`put` and `get`."""
        return self.queue.put if role == "producer" else self.queue.get


class PipeWire(MessageWire):
    """One multiprocessing.Pipe for all.

    Its documentation: two processes must not use the same end at the same time; so each end has a
    lock, used as the documentation of Lock shows it.
    """

    driver = PipeDriver

    def open(self, stack: ExitStack) -> None:
        """Make it, and the locks."""
        self.reader, self.writer = FORK.Pipe(duplex=False)
        stack.callback(self.reader.close)
        stack.callback(self.writer.close)
        self.reading, self.writing = FORK.Lock(), FORK.Lock()

    def ends(self, role: Role) -> Callable[..., Any]:
        """`send_bytes` and `recv_bytes`, each under its lock."""
        return self._send if role == "producer" else self._receive

    def _send(self, message: bytes) -> None:
        with self.writing:
            self.writer.send_bytes(message)

    def _receive(self) -> bytes:
        with self.reading:
            return self.reader.recv_bytes()


class FasterFifoWire(MessageWire):
    """One faster_fifo.Queue for all, of its default size."""

    driver = FasterFifoDriver

    def open(self, stack: ExitStack) -> None:
        """Make it."""
        import faster_fifo

        self.queue = faster_fifo.Queue(loads=bytes, dumps=bytes)
        # Its memory would be given to the next trial's while members of this one still use it.
        stack.callback(_let_go, self.queue)

    def ends(self, role: Role) -> Callable[..., Any]:
        """`put` and `get_many`."""
        end: Callable[..., Any] = self.queue.put if role == "producer" else self.queue.get_many
        return end

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        """Get as many as there are, decode, handle."""
        unpack, get_many = msgpack.unpackb, self.ends("consumer")
        ready()
        while True:
            for encoded in get_many(timeout=3600.0):
                handle(*unpack(encoded))


def _let_go(queue: object) -> None:
    pass


class PyzmqWire(MessageWire):
    """PUSH and PULL over ipc, with ZeroMQ's default high-water mark; the one of its kind binds."""

    driver = PyzmqDriver

    def open(self, stack: ExitStack) -> None:
        """Name it."""
        path = self.scratch / f"zmq-{self.scenario.name}-{self.number}"
        stack.callback(path.unlink, missing_ok=True)
        self.address = f"ipc://{path}"

    def ends(self, role: Role) -> Callable[..., Any]:
        """`send` and `recv`."""
        import zmq

        alone = self.scenario.producers if role == "producer" else self.scenario.consumers
        socket = zmq.Context.instance().socket(zmq.PUSH if role == "producer" else zmq.PULL)
        (socket.bind if alone == 1 else socket.connect)(self.address)
        end: Callable[..., Any] = socket.send if role == "producer" else socket.recv
        return end


class PosixQueueWire(MessageWire):
    """One message queue of the kernel for all."""

    driver = PosixQueueDriver

    def open(self, stack: ExitStack) -> None:
        """Make it; its name is gone at once, the members inherit it."""
        self.queue = create(f"/aembus-bench.{os.getpid()}.{self.number}")
        stack.callback(self.queue.close)
        self.queue.unlink()

    def ends(self, role: Role) -> Callable[..., Any]:
        """`send` and `receive`."""
        end: Callable[..., Any] = self.queue.send if role == "producer" else self._receive
        return end

    def _receive(self) -> bytes:
        message: bytes = self.queue.receive()[0]
        return message


class AembusWire(Wire):
    """A point of one bus; every member joins it, and is killed in the end, in every trial."""

    def start(self, stack: ExitStack) -> None:
        """Start the bus's supervisor."""
        import aembus

        self.bus = f"bench-kills-{os.getpid()}"
        # Members are killed all the time, and it would warn of each.
        self.state = self.scratch / self.bus
        stack.enter_context(
            aembus.Supervisor(self.bus, state_directory=self.state, log_level="ERROR")
        )

    def open(self, stack: ExitStack) -> None:
        """Name the point."""
        self.point = f"{POINT}{self.number}"

    def producer(self) -> Put:
        """Join, and keep the point."""
        import aembus

        activate = aembus.connect(self.bus).point(self.point).activate
        full = aembus.InboxFull

        def put(data: tuple[Any, ...]) -> None:
            while True:
                try:
                    activate(*data)
                except full:  # for a whole second
                    continue
                return

        return put

    def consume(self, handle: Handle, ready: Callable[[], None]) -> None:
        """Join, register in the group that all consumers are in, and run."""
        import aembus

        bus = aembus.connect(self.bus)
        bus.register(self.point, lambda event, *data: handle(*data), group="kills", name="job")
        ready()
        bus.run()

    def dead_letters(self) -> set[tuple[int, int, int]]:
        """Read what the bus has kept."""
        found = set()
        for letter in DeadLetters(self.state).read():
            if str(letter["point"]).startswith(POINT):
                head = message.read(*msgpack.unpackb(letter["payload"]))
                if head is not None:
                    trial = int(letter["point"].removeprefix(POINT))
                    found.add((trial, head.producer, head.sequence))
        return found


class AembusCWire(AembusWire):
    """aembus with its lanes in C."""

    driver = AembusCDriver


class AembusPythonWire(AembusWire):
    """aembus with its lanes in plain Python."""

    driver = AembusPythonDriver


WIRES: Final[dict[str, type[Wire]]] = {
    wire.driver.name.lower(): wire
    for wire in (
        AembusCWire,
        AembusPythonWire,
        QueueWire,
        SimpleQueueWire,
        FasterFifoWire,
        PipeWire,
        PosixQueueWire,
        PyzmqWire,
    )
}
OURS: Final = (AembusCDriver.name, AembusPythonDriver.name)
