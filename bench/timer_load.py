"""One process with many timers, of a bus or of asyncio: `python -m bench.timer_load '{...}'`.

Started by `bench.timers`; it prints one line of JSON.  Both kinds do the same: fill up to a number
of running timers, then bursts of starts and of cancels in random order; or a number of expiries a
second.  CPU is the process's own, and that of the host of the timer service beside it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from bench.cpu_clock import cpu_ns

DELAYS_S: Final = (60.0, 3600.0)
LEAD_S: Final = 2.0  # from the last start to the first expiry


def pss_bytes(pid: int) -> int:
    """Return a process's proportional share of memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no Pss, pid={pid}")


class Timers(Protocol):
    """What is measured: something that starts timers."""

    hosts: list[int]  # pids of the processes that work for it

    def start(self, delay_s: float, handler: Callable[..., None], number: int) -> Any:
        """Start a timer; what is returned has `cancel`."""

    def settle(self) -> None:
        """Return when everything that was started or cancelled before has come to its place."""

    def run_until(self, done: Callable[[], bool]) -> None:
        """Let timers fire until `done()`."""


class AsyncioTimers:
    """`loop.call_later`."""

    def __init__(self) -> None:
        self.hosts = [os.getpid()]
        self._loop = asyncio.new_event_loop()

    def start(self, delay_s: float, handler: Callable[..., None], number: int) -> Any:
        """See Timers."""
        return self._loop.call_later(delay_s, handler, None, number)

    def settle(self) -> None:
        """See Timers: one round of the loop."""
        self._loop.run_until_complete(asyncio.sleep(0))

    def run_until(self, done: Callable[[], bool]) -> None:
        """See Timers."""

        while not done():
            self._loop.run_until_complete(asyncio.sleep(0.01))


class BusTimers:
    """The timer service of a bus.

    Args:
        bus: the bus's name.
        host: pid of the process that hosts the service.
    """

    def __init__(self, bus: str, host: int) -> None:
        import aembus

        self.hosts = [os.getpid(), host]
        self._bus = aembus.connect(bus)
        self._timer = self._bus.service("timer")
        self.start = self._timer.after

    def settle(self) -> None:
        """See Timers: what was sent before a timer has come before its expiry."""
        fired: list[int] = []
        self._timer.after(0.0, lambda event: fired.append(1))
        while not fired:
            self._bus.poll(1.0)

    def run_until(self, done: Callable[[], bool]) -> None:
        """See Timers."""
        while not done():
            self._bus.poll(0.01)

    def close(self) -> None:
        """Leave the bus."""
        self._bus.close()


def nothing(event: object, number: int) -> None:
    """Handle an expiry that nobody waits for."""


def measure_costs(timers: Timers, count: int, burst: int, bursts: int) -> dict[str, Any]:
    """Fill up to `count` timers, then start and cancel `burst` at a time."""
    chance = random.Random(count)
    for number in range(1000):
        timers.start(3600, nothing, number)
    timers.settle()
    gc.collect()
    before = [pss_bytes(pid) for pid in timers.hosts]
    running = [timers.start(chance.uniform(*DELAYS_S), nothing, n) for n in range(count)]
    timers.settle()
    memory = [pss_bytes(pid) - was for pid, was in zip(timers.hosts, before, strict=True)]
    memory[0] -= 8 * count  # the list of them is not a timer's
    starts, cancels = [], []
    for _ in range(bursts):
        delays = [chance.uniform(*DELAYS_S) for _ in range(burst)]
        used = [cpu_ns(pid) for pid in timers.hosts]
        began = time.monotonic()
        started = [timers.start(delay, nothing, n) for n, delay in enumerate(delays)]
        timers.settle()
        starts.append(_used_us(timers, used, burst, began))
        # In place: a new list of all of them would be the collector's to look through just then.
        places = chance.sample(range(count), burst)
        doomed = [running[at] for at in places]
        for at, timer in zip(places, started, strict=True):
            running[at] = timer
        chance.shuffle(doomed)
        used = [cpu_ns(pid) for pid in timers.hosts]
        began = time.monotonic()
        for timer in doomed:
            timer.cancel()
        timers.settle()
        cancels.append(_used_us(timers, used, burst, began))
    return {"memory_bytes": memory, "start_us": starts, "cancel_us": cancels}


def _used_us(timers: Timers, used: list[int], burst: int, began: float) -> list[float]:
    """Return the CPU of each process, and the time passed, for one of a burst."""
    wall_us = (time.monotonic() - began) / burst * 1e6
    cpus = [(cpu_ns(p) - u) / burst / 1000 for p, u in zip(timers.hosts, used, strict=True)]
    return [*cpus, wall_us]


def measure_expiries(timers: Timers, rate: int, seconds: float) -> dict[str, Any]:
    """Have `rate` timers a second fire for some seconds; say how late they were."""
    total = int(rate * seconds)
    slips_us: list[int] = []
    monotonic = time.monotonic
    # The due times are known when the last one is started: that takes a second or several.
    first = monotonic() + LEAD_S + total * 8e-6

    def handler(event: object, number: int) -> None:
        slips_us.append(int((monotonic() - first - number / rate) * 1e6))

    for number in range(total):
        timers.start(first + number / rate - monotonic(), handler, number)
    started_in_time = monotonic() < first
    used = [cpu_ns(pid) for pid in timers.hosts]
    until = first + seconds + 30
    timers.run_until(lambda: len(slips_us) >= total or monotonic() > until)
    slips_us.sort()
    return {
        "started_in_time": started_in_time,
        "lost": total - len(slips_us),
        "early": sum(slip < 0 for slip in slips_us),
        "slip_us": {
            name: slips_us[min(int(len(slips_us) * share), len(slips_us) - 1)] if slips_us else 0
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
        "cpu_us": [(cpu_ns(p) - u) / total / 1000 for p, u in zip(timers.hosts, used, strict=True)],
    }


def main() -> None:
    """Do what the only argument asks for."""
    order = json.loads(sys.argv[1])
    timers: Any = BusTimers(order["bus"], order["host"]) if "bus" in order else AsyncioTimers()
    if order["what"] == "costs":
        result = measure_costs(timers, order["count"], order["burst"], order["bursts"])
    else:
        result = measure_expiries(timers, order["rate"], order["seconds"])
    print(json.dumps(result), flush=True)
    os._exit(0)  # not for two million timers to be taken apart


if __name__ == "__main__":
    main()
