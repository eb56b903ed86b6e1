"""Redis: a stream for each consumer, one for all in a fan-out; XADD in pipelines, XREAD with COUNT.

The server is the bench's own: on a Unix domain socket, without persistence.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.driver import Consumer, Producer
from bench.messages import ManyConsumer, MessageDriver, MessageProducer
from bench.servers import server, version_of
from bench.work import Shape

PROGRAM: Final = "redis-server"
PIPELINE: Final = 500  # commands that are sent together
COUNT: Final = 1000  # messages that are read together
KEEP: Final = 400_000  # messages in a stream: far more than a round sends


class RedisDriver(MessageDriver):
    """redis-py with the hiredis parser."""

    name = "redis"
    package = "redis"
    module = "redis"

    @classmethod
    def missing(cls) -> str | None:
        """Return whether server or client is missing."""
        if shutil.which(PROGRAM) is None:
            return f"{PROGRAM} is not installed (Debian: redis-server)"
        return super().missing()

    @classmethod
    def version(cls) -> str:
        """Return the versions of client and server."""
        server_version = version_of(PROGRAM).partition("v=")[2].partition(" ")[0]
        return f"{super().version()}, server {server_version}"

    def open(self, stack: ExitStack) -> None:
        """Start the server."""
        folder = Path(self.scratch)
        self.socket = str(folder / f"redis-{self.serial}")
        command = [PROGRAM, "--port", "0", "--unixsocket", self.socket, "--dir", self.scratch]
        command += ["--save", "", "--appendonly", "no"]
        stack.enter_context(server(command, folder / f"redis-{self.serial}.log", self._is_up))

    def _client(self) -> Any:
        import redis

        return redis.Redis(unix_socket_path=self.socket)

    def _is_up(self) -> bool:
        import redis

        with self._client() as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    def producer(self, index: int) -> Producer:
        """Add to every consumer's stream, or to the one that all read."""
        streams = ["all"] if self.shape.route == "all" else range(self.shape.consumers)
        return _Producer(self._client(), [f"jobs-{what}" for what in streams], self.shape)

    def consumer(self, index: int) -> Consumer:
        """Read one's own stream, or the one for all."""
        what = "all" if self.shape.route == "all" else index
        return ManyConsumer(_Reader(self._client(), f"jobs-{what}", COUNT).read)

    def ends(self, side: int) -> tuple[Callable[[bytes], object], Callable[[], Any]]:
        """Add to the other side's stream, read one's own."""
        client = self._client()
        add = partial(_add, client, f"jobs-{1 - side}")
        reader = _Reader(client, f"jobs-{side}", 1, block_ms=None if self.trip.spin else 0)
        return add, reader.read_one


def _add(client: Any, stream: str, message: bytes) -> None:
    client.xadd(stream, {b"j": message}, maxlen=KEEP, approximate=True)


class _Producer(MessageProducer):
    def __init__(self, client: Any, streams: list[str], shape: Shape) -> None:
        self.client = client
        self.pipeline = client.pipeline(transaction=False)
        self.pending = 0
        super().__init__([partial(self._put, stream) for stream in streams], shape)

    def _put(self, stream: str, message: bytes) -> None:
        self.pipeline.xadd(stream, {b"j": message}, maxlen=KEEP, approximate=True)
        self.pending += 1
        if self.pending == PIPELINE:
            self.pipeline.execute()
            self.pending = 0

    def end(self) -> None:
        super().end()
        self.pipeline.execute()
        self.pending = 0

    def close(self) -> None:
        self.client.close()


class _Reader:
    def __init__(self, client: Any, stream: str, count: int, block_ms: int | None = 0) -> None:
        self.client, self.stream, self.count, self.block_ms = client, stream, count, block_ms
        self.last: Any = "0"

    def read(self) -> Iterator[bytes]:
        entries: list[Any] = []
        while not entries:
            entries = _entries(
                self.client.xread({self.stream: self.last}, count=self.count, block=self.block_ms)
            )
        self.last = entries[-1][0]
        return (fields[b"j"] for _, fields in entries)

    def read_one(self) -> bytes:
        return next(self.read())


def _entries(answer: Any) -> list[Any]:
    # One stream was asked for: RESP2 answers [[name, entries]], RESP3 {name: [entries]}.
    if not answer:
        return []
    if isinstance(answer, dict):
        (streams,) = answer.values()
        return list(streams[0])
    return list(answer[0][1])
