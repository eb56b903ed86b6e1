"""How soon jobs interrupt a main thread that computes: ``python -m bench.interrupt``.

Another process activates at a steady rate while the main thread makes a checksum over so many
steps; printed are the checksum, the jobs that came, and the time from activation to handler.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

import aembus
from bench.arguments import positive, positive_s

PRODUCER = """
import sys, time, aembus
jobs, pause_s = int(sys.argv[2]), 10 / float(sys.argv[3])
with aembus.connect(sys.argv[1]) as bus:
    point = bus.point("p")
    due = time.monotonic()
    for number in range(jobs):
        if number % 10 == 0:
            due += pause_s
            time.sleep(max(0.0, due - time.monotonic()))
        point.activate(number, time.monotonic_ns(), timeout=30.0)
"""


def checksum(steps: int) -> int:
    """Return what so many steps of a plain computation come to."""
    value = 0
    for step in range(steps):
        value = (31 * value + step) & 0xFFFFFFFF
    return value


def main() -> int:
    """Measure, print, and return 0 if nothing was lost or spoilt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=positive, default=100_000)
    parser.add_argument("--steps", type=positive, default=10_000_000)
    parser.add_argument("--rate", type=positive_s, default=30_000.0, help="jobs a second")
    options = parser.parse_args()
    expected = checksum(options.steps)
    late_ns: list[int] = []
    numbers: list[int] = []

    def handle(event: aembus.Event, number: int, activated_ns: int) -> None:
        late_ns.append(time.monotonic_ns() - activated_ns)
        numbers.append(number)

    with (
        tempfile.TemporaryDirectory() as directory,
        aembus.Supervisor("bench-interrupt", state_directory=directory),
        aembus.connect("bench-interrupt", delivery="interrupt") as bus,
    ):
        bus.register("p", handle)
        command = [sys.executable, "-c", PRODUCER, bus.name]
        with subprocess.Popen([*command, str(options.jobs), str(options.rate)]) as producer:
            sums = {checksum(options.steps)}
            while producer.poll() is None or (bus.poll() and len(numbers) < options.jobs):
                sums.add(checksum(options.steps))
    late_ns.sort()
    right = sums == {expected}
    whole = numbers == list(range(options.jobs))
    print(f"checksum over {options.steps} steps {'right' if right else 'WRONG'}")
    print(f"{len(numbers)} of {options.jobs} jobs, {'in order' if whole else 'LOST OR REORDERED'}")
    if late_ns:
        for share in (0.5, 0.9, 0.99, 0.999):
            print(f"p{100 * share:g}: {late_ns[int(len(late_ns) * share)] / 1e6:.3f} ms")
        print(f"max: {late_ns[-1] / 1e6:.3f} ms")
    return 0 if right and whole else 1


if __name__ == "__main__":
    sys.exit(main())
