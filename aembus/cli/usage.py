"""What the commands share in reading their arguments."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any, Final, TypeAlias

from aembus.errors import OpenError
from aembus.shm import names

SECONDS_MAX: Final = 1e9  # some thirty years; for much more the system has no number

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class WrongUsage(Exception):
    """The arguments do not fit together, or not what runs; ends with exit code 2."""


def add_command(
    commands: Commands, name: str, summary: str, description: str, examples: str, **options: Any
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    Args:
        summary: for the list of commands.
        description: for its own help, before the options.
        examples: command lines, one each line, for the end of its help.
    """
    lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )
    parser.set_defaults(parser=parser)
    return parser


def version() -> str:
    """Return the release of this aembus."""
    # The package is loaded, since this is a part of it; nothing in it imports its public names.
    return str(sys.modules["aembus"].__version__)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def bus_name(text: str) -> str:
    """Return `text` if it can name a bus (for argparse)."""
    try:
        return names.check_bus_name(text)
    except OpenError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive_s(text: str) -> float:
    """Return `text` as a number of seconds above 0, SECONDS_MAX at most (for argparse)."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(
            f"want a number of seconds above 0 and at most {SECONDS_MAX:.0f}, got={text!r}"
        )
    return seconds


def positive_int(text: str) -> int:
    """Return `text` as a whole number above 0 (for argparse)."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"want a whole number above 0, got={text!r}")
    return int(text)
