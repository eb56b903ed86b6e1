"""The asking side of the TCP benches: many connections in one process, each asks, and waits.

Each connection sends a message with its length in front, waits for the echo, and notes how long
that took.  Run by `Load` as a process of its own: what it costs is not counted as the server's.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import subprocess
import sys
import time
from array import array
from dataclasses import dataclass
from typing import Final

ANSWER_S_MAX: Final = 20.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a load came to.

    times_us: how long each answer took, sorted; of at most so many as one run keeps.
    """

    requests: int
    seconds: float
    times_us: list[float]

    @property
    def rate_per_s(self) -> float:
        """How many were answered a second."""
        return self.requests / self.seconds


class Load:
    """A process that asks; a context manager.

    Args:
        address: whom.
        connections: how many at once.
        size: of a message, without its length.
    """

    def __init__(self, address: str, connections: int, size: int) -> None:
        command = [sys.executable, "-m", "bench.echo_load", address, str(connections), str(size)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, seconds: float) -> Asked:
        """Ask for so long, and return what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return Asked(**json.loads(self._say()))

    def _say(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load ended")
        return line


def connect(address: str) -> socket.socket:
    """Return a connection that does not wait to send."""
    host, _, port = address.rpartition(":")
    connected = socket.create_connection((host, int(port)), ANSWER_S_MAX)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def ask(sockets: list[socket.socket], message: bytes, seconds: float) -> Asked:
    """Ask on all connections for so long; then wait for the last answers."""
    by_number = {s.fileno(): s for s in sockets}
    missing = dict.fromkeys(by_number, len(message))
    begun = dict.fromkeys(by_number, 0)
    times_ns = array("q")
    poll = select.epoll()
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    start_ns = time.perf_counter_ns()
    end_ns = start_ns + int(seconds * 1e9)
    for number, connected in by_number.items():
        begun[number] = time.perf_counter_ns()
        connected.sendall(message)
    waiting = len(by_number)
    now_ns = start_ns
    while waiting:
        ready = poll.poll(ANSWER_S_MAX)
        if not ready:
            raise RuntimeError(f"no answer within {ANSWER_S_MAX} s")
        for number, _ in ready:
            connected = by_number[number]
            data = connected.recv(65536)
            if not data:
                raise RuntimeError("the server has closed a connection")
            missing[number] -= len(data)
            if missing[number]:
                continue
            now_ns = time.perf_counter_ns()
            times_ns.append(now_ns - begun[number])
            if now_ns < end_ns:
                missing[number] = len(message)
                begun[number] = now_ns
                connected.sendall(message)
            else:
                waiting -= 1
    poll.close()
    times_us = sorted(t / 1000 for t in times_ns)
    requests = len(times_us)
    step = max(1, requests // 10_000)
    return Asked(requests, (now_ns - start_ns) / 1e9, times_us[::step])


def main() -> int:
    """Connect, say so, and then ask for as many seconds as each line of standard input says."""
    parser = argparse.ArgumentParser(prog="python -m bench.echo_load", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("connections", type=int)
    parser.add_argument("size", type=int)
    options = parser.parse_args()
    message = options.size.to_bytes(4, "big") + b"x" * options.size
    sockets = [connect(options.address) for _ in range(options.connections)]
    print("ready", flush=True)
    for line in sys.stdin:
        asked = ask(sockets, message, float(line))
        found = {"requests": asked.requests, "seconds": asked.seconds, "times_us": asked.times_us}
        print(json.dumps(found), flush=True)
    for connected in sockets:
        connected.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
