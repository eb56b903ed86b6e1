"""The transports that are compared, by the names that `--peers` takes."""

from __future__ import annotations

from typing import Final

from bench.driver import Driver
from bench.drivers.aembus_bus import (
    AembusCDriver,
    AembusPythonDriver,
)
from bench.drivers.aembus_ways import (
    AsyncioDriver,
    CallAsyncDriver,
    CallDriver,
    UvloopDriver,
)
from bench.drivers.faster_fifo_queue import FasterFifoDriver
from bench.drivers.iceoryx import IceoryxDriver
from bench.drivers.nats_subject import NatsDriver
from bench.drivers.posix_queue import PosixQueueDriver
from bench.drivers.pyzmq_sockets import PyzmqDriver
from bench.drivers.redis_stream import RedisDriver
from bench.drivers.standard import PipeDriver, QueueDriver, SimpleQueueDriver

LANES: Final[dict[str, type[Driver]]] = {"c": AembusCDriver, "python": AembusPythonDriver}
PEERS: Final[dict[str, type[Driver]]] = {
    driver.name.lower(): driver
    for driver in (
        PyzmqDriver,
        FasterFifoDriver,
        PosixQueueDriver,
        PipeDriver,
        SimpleQueueDriver,
        QueueDriver,
        IceoryxDriver,
        RedisDriver,
        NatsDriver,
    )
}
# Other ways to use aembus, measured beside it if they are named.
WAYS: Final[dict[str, type[Driver]]] = {
    driver.name: driver for driver in (AsyncioDriver, UvloopDriver, CallDriver, CallAsyncDriver)
}
