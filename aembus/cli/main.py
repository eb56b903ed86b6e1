"""The command line: finds the command, runs it, and turns what went wrong into one clear line.

Exit codes: 0 well, 1 the thing asked for failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from aembus.cli import clean, dead, doctor, fleet, look, run, service, stress, top, trace
from aembus.cli.usage import WrongUsage, version
from aembus.errors import AembusError

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130

_EXAMPLES = """examples:
  aembus run myapp.server:main --workers 4 --service timer --service tcp
  aembus ls
  aembus stats --bus server
  aembus service upgrade timer --hand-over
  aembus dead list
  aembus doctor

Each command has its own: aembus COMMAND --help"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="aembus",
        description="A multi-process shared-memory event bus: run one, and look at it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"aembus {version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        *(run.add, look.add_ls, look.add_stats, top.add, trace.add, service.add, dead.add),
        *(fleet.add_upgrade, fleet.add_scale, stress.add, clean.add, doctor.add),
    ):
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's own arguments); return the exit code.

    Wrong usage ends in SystemExit(2), as argparse does it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _stand_in_for_closed()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a terminal need not know all letters
    code = 0
    try:
        try:
            code = _execute(words)
        finally:
            print(end="", flush=True)  # here, so that a broken pipe is seen here
        return code
    except BrokenPipeError:  # whoever read our output has seen enough
        _forget_output()
        return code
    except OSError as error:  # of that flush: the disk is full
        _forget_output()
        if code != EXIT_FAILED:  # else it is said
            print(f"aembus: error: the output cannot be written: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _stand_in_for_closed() -> None:
    # As in `aembus ls >&-`: else sockets and files would get these numbers, and print() nothing.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest one: this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))


def _forget_output() -> None:
    # Else what is left of it is written when the interpreter ends, and fails again.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _execute(words: list[str]) -> int:
    words, worker_arguments = _split(words)
    whole = build_parser()
    if words and words[0].partition("=")[0] == "--bus":
        whole.error("--bus stands behind the command, for instance: aembus stats --bus NAME")
    arguments = whole.parse_args(words)
    parser: argparse.ArgumentParser = arguments.parser
    execute: Callable[[argparse.Namespace], int] = arguments.execute
    if execute is run.execute:
        arguments.worker_arguments = tuple(worker_arguments or ())
    elif worker_arguments is not None:
        parser.error("only `aembus run` takes arguments after --")
    try:
        return execute(arguments)
    except WrongUsage as error:
        parser.error(str(error))
    except BrokenPipeError:
        raise
    except (AembusError, OSError) as error:
        few = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
        way_out = "; raise the limit: ulimit -n" if few else ""
        print(f"aembus: error: {' '.join(str(error).splitlines())}{way_out}", file=sys.stderr)
        return EXIT_FAILED


def _split(words: list[str]) -> tuple[list[str], list[str] | None]:
    # By hand: argparse would take what follows "--" as its own positional arguments.
    if "--" not in words:
        return words, None
    place = words.index("--")
    return words[:place], words[place + 1 :]
