"""``aembus run``: a bus with workers, in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aembus.cli.text import count, duration, named_counts
from aembus.cli.usage import Commands, WrongUsage, add_command, bus_name, positive_s
from aembus.errors import OpenError, SupervisorError
from aembus.shm import layout, names

if TYPE_CHECKING:
    from aembus.supervisor import ServiceSpec
    from aembus.supervisor.summary import Summary

LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
STOP_TIMEOUT_S: Final = 2.0
SPIN_US_MAX: Final = 1_000_000
SPIN_VARIABLE: Final = "AEMBUS_SPIN_US"  # as aembus.runner reads it

_DESCRIPTION = """Run a bus: a supervisor in the foreground, and its workers.

Each worker imports MODULE (the current directory comes first), calls FUNCTION with its bus,
and then runs what that registered.  Workers that die are replaced.  Ctrl-C or SIGTERM ends it:
what is queued is delivered, then a summary is printed."""

_EXAMPLES = """
aembus run myapp:main
aembus run myapp.server:main --workers 4 --service timer --service tcp
aembus run myapp.server:main --service tcp --hosts tcp=2
aembus run myapp.server:main --bus switch -- --port 5080"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "run",
        "run a bus with workers, in the foreground",
        _DESCRIPTION,
        _EXAMPLES,
        usage="aembus run MODULE:FUNCTION [options] [-- ARGS ...]",
    )
    parser.add_argument(
        "entry_point",
        type=_entry_point,
        metavar="MODULE:FUNCTION",
        help="what each worker calls, with its bus",
    )
    parser.add_argument(
        "--bus",
        type=bus_name,
        metavar="NAME",
        help="the bus's name (default: the last part of MODULE)",
    )
    parser.add_argument(
        "--workers",
        type=_worker_count,
        default=1,
        metavar="N",
        help="how many workers (default: %(default)s)",
    )
    parser.add_argument(
        "--service",
        action="append",
        default=[],
        dest="services",
        metavar="S",
        help="a service to host: timer, tcp, an entry point's name, or module:Class; "
        "may be given several times",
    )
    parser.add_argument(
        "--hosts",
        action="append",
        default=[],
        type=_hosts,
        metavar="S=N",
        help="run the service S in N processes of its own, which are replaced like workers "
        "(default: in the supervisor's)",
    )
    parser.add_argument(
        "--lane-bytes",
        type=int,
        default=layout.LANE_BYTES_DEFAULT,
        metavar="N",
        help="the ring between two members, a power of two; a job takes at most half of it "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--slots",
        type=int,
        default=layout.SLOTS_DEFAULT,
        metavar="N",
        help="how many members at once, the supervisor included (default: %(default)s)",
    )
    parser.add_argument(
        "--spin",
        type=_spin_us,
        metavar="US",
        help="for how many microseconds a worker looks for the next job before it sleeps: "
        "quicker answers for processor time (default: 0)",
    )
    parser.add_argument(
        "--stop-timeout",
        type=positive_s,
        default=STOP_TIMEOUT_S,
        metavar="S",
        help="how long stopping may take before workers are aborted: half of it to deliver what is "
        "queued, half to finish the job in hand (default: %(default)s)",
    )
    parser.add_argument(
        "--handler-timeout",
        type=positive_s,
        metavar="S",
        help="end a worker whose handler runs longer: SIGABRT, which dumps its stack, then SIGKILL "
        "(default: a handler may run for ever)",
    )
    parser.add_argument(
        "--no-spare",
        action="store_false",
        dest="spare",
        help="do not keep a process that waits to replace the next worker that dies: a "
        "replacement takes some 100 ms then, where it takes 25 with one",
    )
    parser.add_argument(
        "--state-directory",
        type=Path,
        metavar="D",
        help="where dead letters are kept (default: $XDG_STATE_HOME/aembus/BUS)",
    )
    parser.add_argument(
        "--ready-message", metavar="TEXT", help="what to print when every worker has come up"
    )
    parser.add_argument(
        "--log-level",
        type=str.upper,
        choices=LOG_LEVELS,
        default="WARNING",
        metavar="L",
        help=f"one of {', '.join(LOG_LEVELS)} (default: %(default)s)",
    )
    parser.add_argument_group(
        "workers' arguments", "what follows -- becomes the workers' sys.argv[1:]"
    )
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> int:
    """Run the bus until it is stopped."""
    from aembus.supervisor import Supervisor, WorkerSpec

    _put_first(str(Path.cwd()))
    if arguments.spin is not None:
        os.environ[SPIN_VARIABLE] = str(arguments.spin)  # the workers inherit it
    kind = _valid_name(arguments.entry_point.partition(":")[0].rpartition(".")[2])
    bus = arguments.bus or kind
    try:
        worker = WorkerSpec(
            kind, arguments.entry_point, arguments.workers, arguments.worker_arguments
        )
        supervisor = Supervisor(
            bus,
            services=_services(arguments),
            workers=[worker],
            slots=arguments.slots,
            lane_bytes=arguments.lane_bytes,
            stop_timeout_s=arguments.stop_timeout,
            handler_timeout_s=arguments.handler_timeout,
            state_directory=arguments.state_directory,
            log_level=arguments.log_level,
            spare=arguments.spare,
        )
    except (SupervisorError, OpenError) as error:  # values that do not fit each other
        raise WrongUsage(str(error)) from error
    logging.basicConfig(
        level=arguments.log_level, format="%(asctime)s %(levelname)s [supervisor] %(message)s"
    )
    ready_message = arguments.ready_message or _ready_message(
        bus, arguments.workers, arguments.services
    )
    summary = supervisor.run(lambda: _say(ready_message))
    _print_summary(bus, arguments.state_directory, summary)
    return 0


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: no reason not to run
        print(line, flush=True)


def _ready_message(bus: str, workers: int, services: list[str]) -> str:
    return (
        f"bus {bus!r} runs, {count(workers, 'worker')}, services: {', '.join(services) or 'none'}; "
        f"look at it: aembus stats --bus {bus}; stop it: Ctrl-C"
    )


def _print_summary(bus: str, state_directory: Path | None, summary: Summary) -> None:
    print(
        f"bus {bus!r} ran for {duration(summary.uptime_s)}: "
        f"{count(summary.delivered, 'job')} delivered, {summary.failed} failed, "
        f"{summary.dead_lettered} dead-lettered, {count(summary.restarts, 'restart')}"
    )
    if summary.counters:
        print(named_counts(summary.counters))
    if summary.dead_lettered:
        from aembus.supervisor.letter_file import default_directory

        print(f"dead letters are kept in {state_directory or default_directory(bus)}")
        option = f" --state-directory {state_directory}" if state_directory else ""
        print(f"look at them: aembus dead list --bus {bus}{option}")


def _put_first(directory: str) -> None:
    # What lies in the current directory can be run without being installed, as servers do it.
    sys.path[:] = [directory, *(path for path in sys.path if path not in ("", directory))]


def _hosts(text: str) -> tuple[str, int]:
    service, equals, number = text.rpartition("=")
    if not (service and equals and number.isdecimal()):
        raise argparse.ArgumentTypeError(f"want SERVICE=COUNT, for instance tcp=2, got={text!r}")
    return service, int(number)


def _services(arguments: argparse.Namespace) -> list[str | ServiceSpec]:
    from aembus.supervisor import ServiceSpec

    hosts: dict[str, int] = dict(arguments.hosts)
    unknown = sorted(set(hosts) - set(arguments.services))
    if unknown:
        raise WrongUsage(
            f"--hosts is for a service that --service names, service={unknown[0]!r}, "
            f"services={arguments.services}"
        )
    return [ServiceSpec(name, hosts.get(name, 0)) for name in arguments.services]


def _valid_name(text: str) -> str:
    # A module's name may be longer than a bus's, and have letters that a bus's may not.
    return re.sub(r"[^A-Za-z0-9_-]", "-", text)[: names.BUS_NAME_MAX]


def _entry_point(text: str) -> str:
    module, colon, function = text.partition(":")
    parts = [*module.split("."), function]
    if not colon or not all(part.isidentifier() for part in parts):
        raise argparse.ArgumentTypeError(
            "an entry point is written MODULE:FUNCTION, for instance myapp.server:main, "
            f"got={text!r}"
        )
    return text


def _worker_count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number < layout.SLOTS_MAX:
        raise argparse.ArgumentTypeError(
            f"want a whole number from 1 to {layout.SLOTS_MAX - 1}, got={text!r}"
        )
    return number


def _spin_us(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= SPIN_US_MAX:
        raise argparse.ArgumentTypeError(
            f"want a whole number of microseconds from 0 to {SPIN_US_MAX}, got={text!r}"
        )
    return number
