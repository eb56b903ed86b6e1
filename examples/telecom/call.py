"""Place calls at a SIP responder and measure them: `python -m examples.telecom.call HOST:PORT`.

What it is: a command. It starts calls at a steady rate, whether the ones before are answered or
not, over one or more TCP connections, checks every response (call_client), and prints how many
went well, why the others did not, and the latencies.

    python -m examples.telecom.call 127.0.0.1:5060 --calls 1000 --rate 200 --hold 0.5

Exit code: 0 if every call that was asked for went well, 1 if not, 2 for wrong usage. Ctrl-C ends
the calls that stand and prints what there is; a second one gives up at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from .call_client import CallConnection, CallError, wait_or_stop

CLOSE_S_MAX = 1.0
PHASES = ("ringing", "setup", "bye")
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(slots=True)
class Report:
    """What came of the calls."""

    target: str
    asked: int
    ok: int = 0
    failed: int = 0
    repeated_200: int = 0
    duration_s: float = 0.0
    causes: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """The percentiles of the table (nearest rank); empty for no times."""
    ordered = sorted(times_ms)
    return {
        name: round(ordered[max(0, math.ceil(part * len(ordered)) - 1)], 3)
        for name, part in PERCENTILES.items()
        if ordered
    }


async def place_calls(
    host: str,
    port: int,
    *,
    calls: int,
    rate: float,
    connections: int = 1,
    hold_s: float = 0.0,
    timeout_s: float = 10.0,
    stop: asyncio.Event | None = None,
) -> Report:
    """Place so many calls, at so many a second, and report.

    Args: stop: when set, no new call is started and the calls that stand end at once.
    Raises OSError: where the server cannot be reached.
    """
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    in_uri = f"[{host}]" if ":" in host else host
    report = Report(f"{in_uri}:{port}", calls)
    uri = f"sip:service@{in_uri}:{port};transport=tcp".encode()
    lines: list[CallConnection] = []
    try:
        for _ in range(connections):
            _, line = await loop.create_connection(
                lambda: CallConnection(uri, timeout_s), host, port
            )
            lines.append(line)
        times_ms: dict[str, list[float]] = {phase: [] for phase in PHASES}
        causes: Counter[str] = Counter()

        async def one(number: int) -> None:
            try:
                call = await lines[number % len(lines)].place(number, hold_s, stop)
            except CallError as error:
                causes[str(error)] += 1
                return
            report.ok += 1
            report.repeated_200 += call.repeated
            for phase, time_ms in call.times_ms.items():
                times_ms[phase].append(time_ms)

        started = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in range(calls):
                delay_s = started + number / rate - loop.time()
                if delay_s > 0:
                    await wait_or_stop(stop, delay_s)
                elif number % 16 == 0:
                    await asyncio.sleep(0)  # behind the rate: let the answers in, too
                if stop.is_set():
                    break
                group.create_task(one(number))
        report.duration_s = round(loop.time() - started, 3)
        report.failed = sum(causes.values())
        report.causes = dict(causes.most_common())
        report.latency_ms = {
            phase: percentiles(times) for phase, times in times_ms.items() if times
        }
    finally:
        for line in lines:
            line.close()
        if lines:
            await asyncio.wait([line.closed for line in lines], timeout=CLOSE_S_MAX)
    return report


def as_text(report: Report) -> str:
    """The report for a person."""
    rate = report.ok / report.duration_s if report.duration_s else 0.0
    sums = f"{report.ok} of {report.asked} calls to {report.target} ok, {report.failed} failed"
    lines = [f"{sums}, {report.duration_s:.1f} s, {rate:.0f} calls/s"]
    lines += [f"  {number} x {cause}" for cause, number in report.causes.items()]
    skipped = report.asked - report.ok - report.failed
    if skipped:
        lines.append(f"  {skipped} not placed")
    if report.repeated_200:
        lines.append(f"  {report.repeated_200} x 200 received again")
    if report.latency_ms:
        lines.append(f"{'ms':<8}" + "".join(f"{name:>10}" for name in PERCENTILES))
        for phase, row in report.latency_ms.items():
            lines.append(f"{phase:<8}" + "".join(f"{row[name]:>10.2f}" for name in PERCENTILES))
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.telecom.call",
        description="Place calls (INVITE, ACK, BYE) over SIP/TCP and measure them.",
        epilog="example: python -m examples.telecom.call 127.0.0.1:5060 --calls 1000 --rate 200",
    )
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("--calls", type=int, default=1, metavar="N", help="in all (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=100.0, metavar="R", help="calls a second (%(default)s)"
    )
    parser.add_argument(
        "--connections", type=int, default=1, metavar="C", help="TCP connections (%(default)s)"
    )
    parser.add_argument(
        "--hold", type=float, default=0.0, metavar="S", help="seconds between ACK and BYE (0)"
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="for a response (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    host, colon, port = options.target.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        parser.error(f"HOST:PORT is needed, got={options.target!r}")
    if min(options.calls, options.connections) < 1 or min(options.rate, options.timeout) <= 0:
        parser.error("calls, connections, rate and timeout must be positive")
    if options.hold < 0:
        parser.error(f"hold must not be negative, hold={options.hold}")
    options.host, options.port = host.strip("[]"), int(port)
    return options


async def run(options: argparse.Namespace) -> Report:
    """Place the calls, with Ctrl-C and SIGTERM as the way to stop early."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    return await place_calls(
        options.host,
        options.port,
        calls=options.calls,
        rate=options.rate,
        connections=options.connections,
        hold_s=options.hold,
        timeout_s=options.timeout,
        stop=stop,
    )


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    options = parse_arguments(arguments)
    try:
        report = asyncio.run(run(options))
    except asyncio.CancelledError:
        print("given up", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot connect to {options.target}: {error}", file=sys.stderr)
        return 1
    return finish(report, options.json)


def finish(report: Report, as_json: bool) -> int:
    """Print the report; returns the exit code."""
    print(json.dumps(asdict(report), indent=2) if as_json else as_text(report))
    return 0 if report.ok == report.asked else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
