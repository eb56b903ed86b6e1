"""``aembus upgrade`` and ``aembus scale``: new code in workers, more or fewer of them, live."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any, Final

from aembus.cli import buses
from aembus.cli.text import count
from aembus.cli.usage import Commands, add_command, add_json, bus_name
from aembus.errors import ControlError
from aembus.shm import layout

STEP_S_DEFAULT: Final = 10.0
STEP_S_MAX: Final = 25.0  # as the supervisor has it
STEPS_MAX: Final = 3  # of one roll, each with the time-out
ANSWER_S: Final = 5.0

_UPGRADE_EXAMPLES = """
aembus upgrade workers
aembus upgrade workers calls-1 calls-2 --bus switch
aembus upgrade workers --timeout 20"""

_SCALE_EXAMPLES = """
aembus scale workers=8
aembus scale calls=4 --bus switch"""


def add_upgrade(commands: Commands) -> None:
    """Add the command ``upgrade``."""
    parser = add_command(
        commands,
        "upgrade",
        "roll workers onto new code while the bus runs",
        "Replace workers' processes, one by one, by processes that have imported the code as it\n"
        "is now. Each new process gets the slot and the inbox of the old one between two jobs:\n"
        "nothing is lost, and keys and order stay. If a new process cannot come up, the old one\n"
        "goes on, and the command stops there.\n"
        "Timers that name a handler go with the process that started them, as at a crash; those\n"
        "that name a point stay.",
        _UPGRADE_EXAMPLES,
    )
    parser.add_argument("what", choices=["workers"], help="what to upgrade")
    parser.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="which ones (default: all)"
    )
    _add_common(parser, "for each step: the import, the job in hand, the entry point")
    parser.set_defaults(execute=upgrade)


def add_scale(commands: Commands) -> None:
    """Add the command ``scale``."""
    parser = add_command(
        commands,
        "scale",
        "have more or fewer workers while the bus runs",
        "Have COUNT workers of a kind. New ones are added behind the last; the last ones are\n"
        "taken away first, and what is queued for them goes to their groups. A worker that\n"
        "cannot come up is taken away again. Which worker gets a key changes with their number.",
        _SCALE_EXAMPLES,
    )
    parser.add_argument(
        "wanted",
        type=_wanted,
        metavar="KIND=COUNT",
        help="the name of a WorkerSpec (`workers`: the only one) and how many it shall have",
    )
    _add_common(parser, "for each worker: to come up, or to finish its job in hand")
    parser.set_defaults(execute=scale)


def _add_common(parser: argparse.ArgumentParser, timeout_of: str) -> None:
    parser.add_argument(
        "--bus", type=bus_name, metavar="NAME", help="which bus (default: the only one that runs)"
    )
    parser.add_argument(
        "--timeout",
        type=_step_s,
        default=STEP_S_DEFAULT,
        metavar="S",
        help=f"seconds {timeout_of} (default: {STEP_S_DEFAULT:g}, at most {STEP_S_MAX:g})",
    )
    add_json(parser)


def _wanted(text: str) -> tuple[str, int]:
    kind, equals, number = text.partition("=")
    known = kind and equals and number.isdecimal()
    if not known or not 1 <= int(number) < layout.SLOTS_MAX:
        raise argparse.ArgumentTypeError(
            f"want KIND=COUNT, for instance workers=4, COUNT from 1 to {layout.SLOTS_MAX - 1}, "
            f"got={text!r}"
        )
    return kind, int(number)


def _step_s(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= STEP_S_MAX:
        raise argparse.ArgumentTypeError(
            f"want a number of seconds above 0 and at most {STEP_S_MAX:g}, got={text!r}"
        )
    return seconds


def upgrade(arguments: argparse.Namespace) -> int:
    """Roll workers."""
    from aembus.control import ControlClient

    client = ControlClient(buses.the_one_running(arguments.bus))
    rolled: list[dict[str, Any]] = []
    try:
        known = client.request("workers")["workers"]
        names = arguments.names or known
        unknown = sorted(set(arguments.names) - set(known))
        if unknown:
            raise ControlError(f"no such worker, worker={unknown[0]!r}, workers={known}")
        if not known:
            raise ControlError("this bus has no workers to upgrade")
        for number, name in enumerate(names, 1):
            if not arguments.json:
                print(f"{name}: ", end="", flush=True)
            try:
                answer = client.request(
                    "roll",
                    name=name,
                    step_s=arguments.timeout,
                    timeout_s=STEPS_MAX * arguments.timeout + ANSWER_S,
                )
            except BaseException as error:
                if not arguments.json:
                    # Who interrupts this does not interrupt the supervisor.
                    interrupted = isinstance(error, KeyboardInterrupt)
                    what = "may be upgraded yet" if interrupted else "goes on as it was"
                    print(f"{what} ({number - 1} of {len(names)} upgraded)", flush=True)
                raise
            rolled.append(answer)
            if not arguments.json:
                print(
                    f"pid {answer['pid_before']} is now {answer['pid']}, "
                    f"stood for {1000 * answer['stood_s']:.0f} ms of {answer['took_s']:.1f} s",
                    flush=True,
                )
    finally:
        client.close()
        if arguments.json:
            json.dump(rolled, sys.stdout, indent=2)
            print()
    return 0


def scale(arguments: argparse.Namespace) -> int:
    """Have another number of workers."""
    from aembus.control import ControlClient

    kind, wanted = arguments.wanted
    client = ControlClient(buses.the_one_running(arguments.bus))
    try:
        workers = max(wanted, len(client.request("workers")["workers"]))
        answer = client.request(
            "scale",
            kind=kind,
            count=wanted,
            step_s=arguments.timeout,
            timeout_s=(workers + 1) * (arguments.timeout + ANSWER_S),
        )
    except KeyboardInterrupt:
        print("interrupted; it stops behind the worker that is at its turn", file=sys.stderr)
        raise
    finally:
        client.close()
    if arguments.json:
        print(json.dumps(answer, indent=2))
    else:
        print(
            f"{answer['kind']}: {count(answer['count'], 'worker')}, before: {answer['before']} "
            f"({', '.join(answer['workers'])})"
        )
    return 0
