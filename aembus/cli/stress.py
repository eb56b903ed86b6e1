"""``aembus stress``: load on a bus of its own, and an account of every job."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from aembus.cli.text import count, duration, size, table
from aembus.cli.usage import Commands, WrongUsage, add_command, bus_name, positive_s
from aembus.shm import layout

if TYPE_CHECKING:
    from aembus.stress.options import Options
    from aembus.stress.report import Report

STDOUT: Final = "-"
EXIT_INTERRUPTED: Final = 130
LANES: Final = ("c", "python")

_DESCRIPTION = """Put load on a bus of its own, and account for every job.

Producers send jobs with sequence numbers and checksums to all workers, in bursts, as fast as there
is room.  What came is read from shared memory: from what the workers recorded there, which
survives them, and from the lanes' own cursors.

Exit code 1 if anything is lost, duplicated (beyond what is marked redelivered), reordered or
corrupted; if a worker or a producer took no part; or if fewer than 1000 jobs a second were
delivered (for large jobs: fewer than 10 MB/s; with --kill-every: a tenth of that)."""

_EXAMPLES = """
aembus stress
aembus stress --producers 56 --workers 8 --seconds 60
aembus stress --producers 16 --workers 1 --pin
aembus stress --kill-every 0.5 --seconds 60 --plot kills.png
aembus stress --size 1000 --json -"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "stress", "put load on a bus, and account for every job", _DESCRIPTION, _EXAMPLES
    )
    parser.add_argument(
        "--producers",
        type=_number_of_processes,
        default=6,
        metavar="P",
        help="processes that send (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_number_of_processes,
        default=2,
        metavar="W",
        help="processes that receive (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=positive_s,
        default=10.0,
        metavar="S",
        help="how long to send (default: %(default)g)",
    )
    parser.add_argument(
        "--size",
        type=_bytes,
        default=48,
        metavar="BYTES",
        help="of what each job carries beside its numbers (default: %(default)s)",
    )
    parser.add_argument(
        "--kill-every",
        type=positive_s,
        metavar="S",
        help="kill a random worker or producer about every S seconds, with SIGKILL",
    )
    parser.add_argument(
        "--lane", choices=LANES, help="which lane all processes use (default: the best there is)"
    )
    parser.add_argument("--pin", action="store_true", help="run all processes on one core")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of what is random (default: another one each time)"
    )
    parser.add_argument(
        "--bus", type=bus_name, metavar="NAME", help="the bus's name (default: stress-PID)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures to FILE, or - for standard output"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw latencies and rate (needs matplotlib: pip install aembus[plot])",
    )
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> int:
    """Run, print the figures, and return whether all is well."""
    from aembus.stress.progress import ProgressLine
    from aembus.stress.run import StressRun

    options = _options(arguments)
    _check_outputs(arguments)
    print(_heading(options), file=sys.stderr, flush=True)
    line = ProgressLine(sys.stderr)
    try:
        with _interruptible() as interrupted:
            report = StressRun(options, line.show, interrupted).run()
    finally:
        line.end()
    to_stdout = arguments.json == STDOUT
    try:
        _write_outputs(arguments, report)
    finally:
        with contextlib.suppress(BrokenPipeError):  # nobody reads it: the exit code stays
            print(summary(report), file=sys.stderr if to_stdout else sys.stdout, flush=True)
    if report.failures:
        return 1
    return EXIT_INTERRUPTED if report.interrupted else 0


def _options(arguments: argparse.Namespace) -> Options:
    from aembus.stress import room
    from aembus.stress.options import Options

    members = 1 + arguments.producers + arguments.workers
    if members > layout.SLOTS_MAX:
        raise WrongUsage(
            f"a bus has at most {layout.SLOTS_MAX} members, supervisor included, want={members}"
        )
    if arguments.size > (size_max := room.job_size_max()):
        raise WrongUsage(
            f"a job takes at most half a lane, so --size is at most {size_max}, "
            f"size={arguments.size}"
        )
    return Options(
        bus=arguments.bus or f"stress-{os.getpid()}",
        producers=arguments.producers,
        workers=arguments.workers,
        seconds=arguments.seconds,
        size=arguments.size,
        seed=random.randrange(1 << 32) if arguments.seed is None else arguments.seed,
        kill_every_s=arguments.kill_every,
        lane=arguments.lane,
        pin=arguments.pin,
    )


def _check_outputs(arguments: argparse.Namespace) -> None:
    # Now, not after a minute of load.
    files = [] if arguments.json in (None, STDOUT) else [Path(arguments.json)]
    if arguments.plot is not None:
        from aembus.stress import plot

        plot.check_available()
        files.append(arguments.plot)
    for file in files:
        place = file if file.exists() else file.absolute().parent
        if file.is_dir() or not os.access(place, os.W_OK):
            raise WrongUsage(f"this file cannot be written, file={str(file)!r}")


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let the first SIGINT or SIGTERM end the run in order, and a second one at once."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _write_outputs(arguments: argparse.Namespace, report: Report) -> None:
    if arguments.json is not None:
        text = json.dumps(report.to_json(), indent=2)
        if arguments.json == STDOUT:
            print(text)
        else:
            Path(arguments.json).write_text(f"{text}\n")
    if arguments.plot is not None:
        from aembus.stress import plot

        plot.draw(report, arguments.plot)


def _heading(options: Options) -> str:
    return (
        f"bus {options.bus!r}: {count(options.producers, 'producer')}, "
        f"{count(options.workers, 'worker')}, {size(options.size)} a job, "
        f"{duration(options.seconds)}, seed {options.seed}"
    )


def summary(report: Report) -> str:
    """Return a run's figures as a table, and the verdict."""
    figures = report.to_json()
    latency = figures["latency_us"]
    rows = [
        ("sent", f"{figures['sent']:,}"),
        ("delivered", f"{figures['delivered']:,}"),
        *((name, f"{figures[key]:,}") for key, name in _COUNTS),
        ("rate", f"{figures['rate_per_s']:,.0f} jobs/s over {duration(report.seconds)}"),
        *((name.replace("_", "."), f"{latency[name]:,.0f} µs") for name in latency),
        ("lane", report.lane),
    ]
    if recovery := report.recovery_ms():
        text = ", ".join(f"{name} {ms:,.0f} ms" for name, ms in recovery.items())
        rows.append(("worker killed → next job", text))
    lines = table(("", ""), rows).strip("\n")
    if report.failures:
        return f"{lines}\nFAILED: {'; '.join(report.failures)} (seed {report.seed})"
    if report.interrupted:
        return f"{lines}\ninterrupted; so far every job is accounted for"
    return f"{lines}\nevery job is accounted for"


_COUNTS: Final = (
    ("redelivered", "redelivered"),
    ("dead_lettered", "dead-lettered"),
    ("lost", "lost"),
    ("duplicated", "duplicated"),
    ("reordered", "reordered"),
    ("corrupted", "corrupted"),
    ("kills", "kills"),
    ("rescued_wakeups", "rescued wake-ups"),
)


def _number_of_processes(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number < layout.SLOTS_MAX:
        raise argparse.ArgumentTypeError(
            f"want a whole number from 1 to {layout.SLOTS_MAX - 1}, got={text!r}"
        )
    return number


def _bytes(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"want a number of bytes, 0 or more, got={text!r}")
    return int(text)
