"""``aembus service``: list, load, unload, upgrade and roll back the services of a running bus."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from aembus.cli import buses
from aembus.cli.look import SERVICE_COLUMNS, services_table
from aembus.cli.text import count, duration, named_counts, terminal_columns
from aembus.cli.usage import Commands, add_command, add_json, bus_name

if TYPE_CHECKING:
    from aembus.service_box import LoadedService, ServiceBox, ServiceChange

    Command = Callable[[ServiceBox, argparse.Namespace], int]

_EXAMPLES: Final = """
aembus service list
aembus service load myapp.cdr:CdrWriter
aembus service unload cdr --version 1
aembus service upgrade cdr
aembus service upgrade timer --hand-over
aembus service upgrade cdr myapp.cdr2:CdrWriter --hand-over
aembus service rollback cdr --hand-over"""

_DESCRIPTION: Final = """Look after the services of a running bus.

Several versions of one service may be loaded at once, each with its own calls; who asks for the
service gets the newest, and keeps that one until he lets go of it.  What cannot be done changes
nothing, and says why (exit code 1)."""

_SUMMARIES: Final = {
    "list": "list the loaded versions, and who uses them",
    "load": "load a version beside those that are loaded",
    "unload": "let nobody new have a version; it goes with its last user",
    "upgrade": "load a version in the place of the newest one",
    "rollback": "go back to the version that was replaced",
}
_DESCRIPTIONS: Final = {
    "list": "List every loaded version of every service, and who uses it.",
    "load": """Load a version of a service beside those that are loaded.

SERVICE is timer, tcp, the name of an entry point of "aembus.services", or MODULE:CLASS, which is
found on the supervisor's path.""",
    "unload": "Let nobody new have a version of a service; it goes when its last user lets go.",
    "upgrade": """Load a version of a service in the place of the newest one.

The new code is that of SERVICE, or of where the old one came from, as it is there now.  Who uses
the old one keeps it, and it goes with its last user; with --hand-over its state, its calls and its
users are the new one's at once.""",
    "rollback": "Upgrade to the version that the newest one has replaced, with the code as it was.",
}


def add(commands: Commands) -> None:
    """Add the command and what is below it."""
    parser = add_command(
        commands, "service", "load, upgrade and unload services", _DESCRIPTION, _EXAMPLES
    )
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    executes: dict[str, Command] = {
        "list": _list,
        "load": _load,
        "unload": _unload,
        "upgrade": _upgrade,
        "rollback": _rollback,
    }
    for name, execute in executes.items():
        examples = "\n".join(e for e in _EXAMPLES.splitlines() if f"service {name}" in e)
        one = add_command(below, name, _SUMMARIES[name], _DESCRIPTIONS[name], examples)
        _add_options(one, name)
        one.set_defaults(execute=_run, command=execute)


def _add_options(parser: argparse.ArgumentParser, name: str) -> None:
    if name in ("unload", "upgrade", "rollback"):
        parser.add_argument("name", metavar="NAME", help="the service's name")
    if name == "load":
        parser.add_argument("spec", metavar="SERVICE", help="what to load")
    if name == "upgrade":
        parser.add_argument(
            "spec", metavar="SERVICE", nargs="?",
            help="where the new code is (default: where the old one is)",
        )  # fmt: skip
    if name == "unload":
        parser.add_argument("--version", metavar="V", help="which version, if several run")
    if name in ("upgrade", "rollback"):
        parser.add_argument(
            "--hand-over", action="store_true",
            help="pass on state, calls and users in one step",
        )  # fmt: skip
    parser.add_argument(
        "--bus", type=bus_name, metavar="NAME", help="which bus (default: the only one that runs)"
    )
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    from aembus.service_box import ServiceBox

    with ServiceBox(buses.the_one_running(arguments.bus)) as box:
        command: Command = arguments.command
        return command(box, arguments)


def _list(box: ServiceBox, arguments: argparse.Namespace) -> int:
    services = box.list()
    if arguments.json:
        _print_json([dataclasses.asdict(service) for service in services])
    elif not services:
        print("no service is loaded; load one: aembus service load timer")
    else:
        now = time.time()
        shown: dict[str, Callable[[LoadedService], object]] = {
            **SERVICE_COLUMNS,
            "calls": lambda service: service.calls,
            "loaded for": lambda service: duration(max(now - service.loaded_at, 0)),
            "code": lambda service: service.code,
        }
        print(services_table(services, shown, terminal_columns()))
    return 0


def _load(box: ServiceBox, arguments: argparse.Namespace) -> int:
    loaded = box.load(arguments.spec)
    if arguments.json:
        _print_json(dataclasses.asdict(loaded))
    else:
        print(f"loaded: {loaded.name} {loaded.version}")
    return 0


def _unload(box: ServiceBox, arguments: argparse.Namespace) -> int:
    unloaded = box.unload(arguments.name, arguments.version)
    if arguments.json:
        _print_json(dataclasses.asdict(unloaded))
    else:
        print(f"unloading: {unloaded.name} {unloaded.version}{_until(unloaded)}")
    return 0


def _upgrade(box: ServiceBox, arguments: argparse.Namespace) -> int:
    change = box.upgrade(arguments.name, arguments.spec, hand_over=arguments.hand_over)
    return _say_change(change, "upgraded", arguments)


def _rollback(box: ServiceBox, arguments: argparse.Namespace) -> int:
    change = box.rollback(arguments.name, hand_over=arguments.hand_over)
    return _say_change(change, "rolled back", arguments)


def _say_change(change: ServiceChange, verb: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        _print_json(dataclasses.asdict(change))
        return 0
    print(f"{verb}: {change.new.name} {change.old.version} -> {change.new.version}")
    if change.handed_over:
        kept = count(change.calls_kept, "call")
        print(f"handed over in {change.pause_s * 1000:.1f} ms; {kept} waited meanwhile")
        if change.at_switch:
            print(f"at the switch: {named_counts(change.at_switch)}")
    else:
        print(f"{change.old.name} {change.old.version} drains{_until(change.old)}")
    return 0


def _until(service: LoadedService) -> str:
    if not service.users:
        return ""
    return f"; it goes when its users let go: {', '.join(sorted(set(service.users)))}"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
