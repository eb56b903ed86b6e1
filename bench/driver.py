"""What a transport must offer to take part.

A `Driver` is made in the bench's own process for one shape, opened there (servers, queues, names),
and then passed to every worker process, which asks it for its end.  Nothing in here measures.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar, Final

from bench.work import Batch, Shape

FOREVER_S: Final = 3600.0
_serial = count(1)


class Quit(Exception):
    """Raised by the handler to leave a consumer's loop."""


@dataclass(frozen=True, slots=True)
class Trip:
    """How the two sides of a round trip wait, and where they run.

    spin: poll instead of going to sleep.
    apart: each side stays on a processor of its own; else the scheduler places them.
    """

    spin: bool = False
    apart: bool = False


NO_TRIP: Final = Trip()


class End:
    """What a worker process holds of a transport."""

    def close(self) -> None:
        """Let go of it, where the end of the process would not do that as well."""


class Producer(End, ABC):
    """A producer's end, in its process.  `prepare` is not measured; `send` and `end` are."""

    batch: Batch

    def prepare(self, batch: Batch) -> None:
        """Take note of what the next `send` sends."""
        self.batch = batch

    @abstractmethod
    def send(self) -> None:
        """Encode and send every job of the batch, one after the other."""

    @abstractmethod
    def end(self) -> None:
        """Send one END_NUMBER to every consumer, behind the jobs."""

    def handled(self) -> tuple[int, int]:
        """Return count and sum of the jobs that were handled here: none, but in the limit."""
        return (0, 0)


class Consumer(End, ABC):
    """A consumer's end, in its process.

    takes_event: the transport calls handlers by itself, with an event before the data.
    """

    takes_event: ClassVar[bool] = False

    def start(self, handle: Callable[..., None]) -> None:
        """Get ready to receive: jobs may come as soon as this has returned."""
        self.handle = handle

    @abstractmethod
    def run(self) -> None:
        """Receive, decode, and call the handler with the data of each job, until it raises Quit."""

    def quit(self) -> None:
        """Make `run` return; called by the handler."""
        raise Quit


class Pinger(End, ABC):
    """The side of a round trip that begins and takes the time."""

    @abstractmethod
    def run(
        self, next_batch: Callable[[], Batch | None], report: Callable[[list[int]], None]
    ) -> None:
        """Send each job of a batch, wait for its answer, and report the times in nanoseconds.

        Each batch ends with an END_NUMBER, which is not answered.
        """


class Ponger(End, ABC):
    """The side of a round trip that answers."""

    @abstractmethod
    def run(self, next_round: Callable[[], bool]) -> None:
        """Answer every job; at each END_NUMBER ask whether there is another round."""


class Driver(ABC):
    """One transport, for one shape.  Must survive pickling once it is open.

    Args:
        shape: who sends to whom.
        scratch: a folder that the bench removes at its end.
        trip: how a round trip is made.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""  # what is to be installed, "" if it is there anyway
    module: ClassVar[str] = ""
    spins: ClassVar[frozenset[bool]] = frozenset({False, True})  # how its round trips can wait

    def __init__(self, shape: Shape, scratch: Path, trip: Trip = NO_TRIP) -> None:
        self.shape = shape
        self.scratch = str(scratch)
        self.trip = trip
        self.serial = next(_serial)

    @classmethod
    def missing(cls) -> str | None:
        """Return why this transport cannot take part here, or None if it can."""
        try:
            if cls.module:
                importlib.import_module(cls.module)
        except ImportError as error:
            return f"the package {cls.package} is not installed ({error})"
        return None

    @classmethod
    def version(cls) -> str:
        """Return what is measured, for the description of the machine."""
        return importlib.metadata.version(cls.package) if cls.package else "standard library"

    @property
    def environment(self) -> dict[str, str]:
        """What the processes of this transport find in their environment."""
        return {}

    @abstractmethod
    def open(self, stack: ExitStack) -> None:
        """In the bench's process: make what the ends need; `stack` removes it again."""

    @abstractmethod
    def producer(self, index: int) -> Producer:
        """In a producer's process: its end."""

    @abstractmethod
    def consumer(self, index: int) -> Consumer:
        """In a consumer's process: its end."""

    def expected(self, sent: list[Batch]) -> tuple[int, int]:
        """Return count and sum of the jobs that must have been handled after a round."""
        copies = self.shape.copies
        numbers = [batch.numbers for batch in sent]
        return copies * sum(map(len, numbers)), copies * sum(map(sum, numbers))

    def pinger(self) -> Pinger:
        """In the process of a round trip that begins."""
        raise NotImplementedError

    def ponger(self) -> Ponger:
        """In the process of a round trip that answers."""
        raise NotImplementedError
