"""``aembus dead``: list, show, replay and drop the jobs that could not be delivered."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from aembus.cli import buses
from aembus.cli.text import count, duration, printable, size, table, to_json
from aembus.cli.usage import Commands, WrongUsage, add_command, add_json, bus_name
from aembus.errors import AembusError

if TYPE_CHECKING:
    from aembus.supervisor.dead_letter_box import DeadLetterBox

    Command = Callable[[DeadLetterBox, list[dict[str, Any]], argparse.Namespace], int]

REASON_LENGTH_MAX: Final = 48
PROGRESS_S: Final = 0.2

_EXAMPLES = """
aembus dead list
aembus dead list --point call.setup --reason "in hand"
aembus dead show 4c1f
aembus dead replay --point call.setup --dry-run
aembus dead replay --all
aembus dead drop --reason "its event was closed" """

_DESCRIPTION = """Look after dead letters: jobs that could not be delivered, or failed or killed
their worker too often.  They are in a file, also when the bus does not run.

list and show look at them; replay sends them back to where they came from, on the running bus, and
removes each once it is queued there; drop removes them for good."""

_SUMMARIES: Final = {
    "list": "list dead letters, oldest first",
    "show": "show dead letters whole: data, traceback, where they came from",
    "replay": "send dead letters back to their groups on the running bus",
    "drop": "remove dead letters for good",
}


def add(commands: Commands) -> None:
    """Add the command and what is below it."""
    parser = add_command(
        commands, "dead", "list, show, replay and drop dead letters", _DESCRIPTION, _EXAMPLES
    )
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    executes: dict[str, Command] = {"list": _list, "show": _show, "replay": _replay, "drop": _drop}
    for name, execute in executes.items():
        examples = "\n".join(e for e in _EXAMPLES.splitlines() if f"dead {name}" in e)
        summary = _SUMMARIES[name]
        one = add_command(below, name, summary, f"{summary[0].upper()}{summary[1:]}.", examples)
        _add_options(one, name)
        one.set_defaults(execute=_run, command=execute, command_name=name)


def _add_options(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "ids", nargs="*", default=[], metavar="ID", help="a letter's id, or its beginning"
    )
    parser.add_argument("--point", metavar="P", help="those of jobs for this activation point")
    parser.add_argument("--reason", metavar="TEXT", help="those whose reason contains this text")
    if name != "list":
        parser.add_argument("--all", action="store_true", help="every one")
    if name in ("replay", "drop"):
        parser.add_argument("--dry-run", action="store_true", help="only say which it would be")
    parser.add_argument(
        "--bus", type=bus_name, metavar="NAME", help="which bus (default: the only one that runs)"
    )
    parser.add_argument(
        "--state-directory", metavar="D",
        help="where the letters of a bus that does not run are "
        "(default: $XDG_STATE_HOME/aembus/BUS)",
    )  # fmt: skip
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    from aembus.supervisor.dead_letter_box import DeadLetterBox

    needs_choice = arguments.command_name != "list" and not arguments.all
    if needs_choice and not (arguments.ids or arguments.point or arguments.reason):
        raise WrongUsage("choose letters: ID ..., --point, --reason, or --all")
    arguments.bus = buses.the_one_running(arguments.bus, "say whose letters: --bus NAME")
    with DeadLetterBox(arguments.bus, arguments.state_directory) as box:
        letters = box.list(point=arguments.point, reason=arguments.reason)
        command: Command = arguments.command
        return command(box, _chosen(letters, arguments.ids), arguments)


def _chosen(letters: list[dict[str, Any]], beginnings: Sequence[str]) -> list[dict[str, Any]]:
    if not beginnings:
        return letters
    found: dict[str, dict[str, Any]] = {}
    for beginning in beginnings:
        those = [letter for letter in letters if letter["id"].startswith(beginning)]
        if not those:
            raise AembusError(f"there is no such letter (among those chosen), id={beginning!r}")
        if len(those) > 1:
            ids = [letter["id"] for letter in those[:5]]
            raise WrongUsage(f"several ids begin so; write more of it, id={beginning!r}, ids={ids}")
        found[those[0]["id"]] = those[0]
    return list(found.values())


def _list(box: DeadLetterBox, letters: list[dict[str, Any]], arguments: argparse.Namespace) -> int:
    if arguments.json:
        _print_json([_without_detail(letter) for letter in letters])
    else:
        _print_table(letters)
        print(f"{count(len(letters), 'dead letter')}, {_where(box, arguments.bus)}")
    return 0


def _where(box: DeadLetterBox, bus: str) -> str:
    if box.path.exists():
        return f"file {box.path}"
    if buses.find(bus).state == buses.RUNNING:
        return f"they would be in {box.path}"
    return f"and no such bus runs; there is no file {box.path}"


def _show(box: DeadLetterBox, letters: list[dict[str, Any]], arguments: argparse.Namespace) -> int:
    from aembus.supervisor.dead_letter_box import readable

    shown = [readable(letter) for letter in letters]
    if arguments.json:
        _print_json(shown)
        return 0
    for letter in shown:
        detail = letter.pop("detail")
        kept_at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter["kept_at"]))
        lines = [(key, value) for key, value in {**letter, "kept_at": kept_at}.items()]
        width = max(len(key) for key, _ in lines)
        print("\n".join(f"{key.ljust(width)}  {printable(str(value))}" for key, value in lines))
        print("", *map(printable, detail.splitlines()), *([""] if detail else []), sep="\n")
    return 0


def _replay(
    box: DeadLetterBox, letters: list[dict[str, Any]], arguments: argparse.Namespace
) -> int:
    ids = [letter["id"] for letter in letters]
    if arguments.dry_run:
        return _dry_run(letters, arguments)
    result = box.replay(ids, on_progress=_Progress("replayed", len(ids)))
    if arguments.json:
        _print_json({"replayed": result.replayed, "refused": result.refused})
    else:
        for name, reason in result.refused.items():
            print(f"{name}: {reason}", file=sys.stderr)
        kept = f"; {count(len(result.refused), 'letter')} kept" if result.refused else ""
        print(f"replayed: {count(len(result.replayed), 'job')}{kept}")
    return 1 if result.refused else 0


def _drop(box: DeadLetterBox, letters: list[dict[str, Any]], arguments: argparse.Namespace) -> int:
    ids = [letter["id"] for letter in letters]
    if arguments.dry_run:
        return _dry_run(letters, arguments)
    dropped = box.drop(ids, on_progress=_Progress("dropped", len(ids)))
    if arguments.json:
        _print_json({"dropped": dropped})
    else:
        print(f"dropped: {count(len(dropped), 'letter')}")
    return 0


def _dry_run(letters: list[dict[str, Any]], arguments: argparse.Namespace) -> int:
    if arguments.json:
        _print_json({f"would_{arguments.command_name}": [letter["id"] for letter in letters]})
    else:
        _print_table(letters)
        print(f"would {arguments.command_name}: {count(len(letters), 'letter')}")
    return 0


class _Progress:
    """Says on a terminal how far it is, on one line."""

    def __init__(self, verb: str, of: int) -> None:
        self._verb, self._of = verb, of
        self._said_at = 0.0

    def __call__(self, done: int) -> None:
        if not sys.stderr.isatty():
            return
        if done >= self._of:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said_at >= PROGRESS_S:
            self._said_at = time.monotonic()
            text = f"\r{self._verb} {done} of {self._of}\x1b[K"
            print(text, end="", file=sys.stderr, flush=True)


def _print_json(value: Any) -> None:
    print(to_json(value, indent=2))  # data may hold bytes, and keys that JSON has not got


def _without_detail(letter: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in letter.items() if key not in ("detail", "payload")}
    return {**shown, "bytes": len(letter["payload"])}


def _print_table(letters: list[dict[str, Any]]) -> None:
    if not letters:
        return
    now = time.time()
    rows = [
        (
            letter["id"], duration(max(now - letter["kept_at"], 0)), letter["point"] or "-",
            letter["group"] or letter["event"] or "-", letter["member"], letter["attempts"],
            size(len(letter["payload"])), _short(letter["reason"]),
        )
        for letter in letters
    ]  # fmt: skip
    header = ("id", "age", "point", "for", "member", "attempts", "size", "reason")
    print(table(header, rows))


def _short(reason: str) -> str:
    return reason if len(reason) <= REASON_LENGTH_MAX else reason[: REASON_LENGTH_MAX - 1] + "…"
