"""NATS: core publish and subscribe, a subject for each consumer, one for all in a fan-out.

The server is the bench's own, on a port of 127.0.0.1 that it picks itself.  Nothing may be dropped
here, as NATS does to slow consumers: the limits of server and client are out of the way.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.driver import Consumer, Driver, Producer, Quit
from bench.servers import server, version_of
from bench.work import END_NUMBER, TEXT, Shape, consumer_of, keys, packer, unpack

PROGRAM: Final = "nats-server"
BATCH: Final = 100  # messages between two chances for the client to write
CONFIGURATION: Final = "max_pending: 1GB\nping_interval: '1h'\nwrite_deadline: '1h'\n"


class NatsDriver(Driver):
    """nats-py, on uvloop where that is installed; no round trip, since it lives in asyncio."""

    name = "nats"
    package = "nats-py"
    module = "nats"
    spins = frozenset()

    @classmethod
    def missing(cls) -> str | None:
        """Return whether server or client is missing."""
        if shutil.which(PROGRAM) is None:
            return f"{PROGRAM} is not installed (Debian: nats-server)"
        return super().missing()

    @classmethod
    def version(cls) -> str:
        """Return the versions of client and server."""
        return f"{super().version()}, server {version_of(PROGRAM).rpartition('v')[2]}"

    def open(self, stack: ExitStack) -> None:
        """Start the server, and wait until it has told its port."""
        folder = Path(self.scratch) / f"nats-{self.serial}"
        folder.mkdir()
        (folder / "configuration").write_text(CONFIGURATION)
        command = [PROGRAM, "-a", "127.0.0.1", "-p", "-1", "-c", str(folder / "configuration")]
        command += ["--ports_file_dir", str(folder)]
        is_up = partial(self._find_address, folder)
        stack.enter_context(server(command, folder / "log", is_up))

    def _find_address(self, folder: Path) -> bool:
        for path in folder.glob("*.ports"):
            try:
                (self.address,) = json.loads(path.read_text())["nats"]
            except ValueError:  # not written to its end yet
                continue
            return True
        return False

    def producer(self, index: int) -> Producer:
        """Publish to every consumer's subject, or to the one for all."""
        whats = ["all"] if self.shape.route == "all" else range(self.shape.consumers)
        return _Producer(self.address, [f"jobs.{what}" for what in whats], self.shape)

    def consumer(self, index: int) -> Consumer:
        """Subscribe."""
        what = "all" if self.shape.route == "all" else index
        return _Consumer(self.address, f"jobs.{what}")


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _connect(address: str) -> Any:
    import nats

    # Between rounds the loop stands still: no pings then.
    return await nats.connect(address, ping_interval=3600, allow_reconnect=False)


class _Producer(Producer):
    def __init__(self, address: str, subjects: list[str], shape: Shape) -> None:
        self.subjects = subjects
        self.by_key = shape.route == "key"
        self.pack = packer()
        self.loop = _new_loop()
        self.client = self.loop.run_until_complete(_connect(address))

    def send(self) -> None:
        self.loop.run_until_complete(self._send_by_key() if self.by_key else self._send_to_one())

    async def _send_to_one(self) -> None:
        pack, publish, blob = self.pack, self.client.publish, self.batch.blob
        (subject,) = self.subjects
        for number in self.batch.numbers:
            await publish(subject, pack((number, TEXT, blob)))
            if not number % BATCH:
                await asyncio.sleep(0)

    async def _send_by_key(self) -> None:
        pack, publish, blob = self.pack, self.client.publish, self.batch.blob
        subjects = self.subjects
        consumers = len(subjects)
        for number, key in zip(self.batch.numbers, keys(), strict=False):
            subject = subjects[consumer_of(key, consumers)]
            await publish(subject, pack((number, TEXT, blob)))
            if not number % BATCH:
                await asyncio.sleep(0)

    def end(self) -> None:
        self.loop.run_until_complete(self._end())

    async def _end(self) -> None:
        for subject in self.subjects:
            await self.client.publish(subject, self.pack((END_NUMBER, TEXT, self.batch.blob)))
        await self.client.flush(60)

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


class _Consumer(Consumer):
    def __init__(self, address: str, subject: str) -> None:
        self.subject = subject
        self.loop = _new_loop()
        self.client = self.loop.run_until_complete(_connect(address))
        self.over = asyncio.Event()

    def start(self, handle: Any) -> None:
        async def deliver(message: Any) -> None:
            try:
                handle(*unpack(message.data))
            except Quit:
                self.over.set()

        self.loop.run_until_complete(self._subscribe(deliver))

    async def _subscribe(self, deliver: Any) -> None:
        await self.client.subscribe(
            self.subject, cb=deliver, pending_msgs_limit=0, pending_bytes_limit=0
        )
        await self.client.flush()

    def run(self) -> None:
        self.loop.run_until_complete(self.over.wait())

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()
