"""What a seeded bug is, and how the harness is asked to notice it.

Each bug is a replacement of source text in a copy of the project; nothing in aembus can switch one
on.  Whoever is asked is a command of the general harness that knows nothing of the bug, and that
an unbroken copy passes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

BUS: Final = "{bus}"  # stands for the bus's name in a command
DIRECTORY: Final = "{directory}"  # for a place for temporary files

Lane = Literal["python", "c"]


class BugDoesNotFit(AssertionError):
    """The text that a bug replaces is not in the sources, or more than once."""


class Edit(NamedTuple):
    """One replacement in a file, relative to the project."""

    file: str
    old: str
    new: str


class Question(NamedTuple):
    """A command of the harness.

    arguments: of Python; BUS and DIRECTORY are filled in.
    violation: a part of what it says when the promise that it looks after is broken.
    lane: which one is tried.
    """

    arguments: tuple[str, ...]
    violation: str
    lane: Lane = "python"

    def command(self, bus: str, directory: Path) -> list[str]:
        """Return the command for a bus name, and a directory that it may use."""
        replaced = (a.replace(BUS, bus) for a in self.arguments)
        return [sys.executable, *(a.replace(DIRECTORY, str(directory)) for a in replaced)]


@dataclass(frozen=True)
class Bug:
    """One bug.

    name: of the test.
    breaks: which promise, in a sentence.
    edits: all of them are made.
    asked: each of these must notice.
    """

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    asked: tuple[Question, ...]

    def seed(self, sources: Path) -> None:
        """Break the copy of the sources in a directory.  Raises BugDoesNotFit."""
        for edit in self.edits:
            path = sources / edit.file
            text = path.read_text()
            if text.count(edit.old) != 1:
                raise BugDoesNotFit(
                    "the bug does not fit the sources any more: write it anew, as the same mistake "
                    f"would look now, bug={self.name!r}, file={edit.file}, "
                    f"found={text.count(edit.old)} times, old text:\n{edit.old}"
                )
            path.write_text(text.replace(edit.old, edit.new))


def sweep(scenario: str, state: str, violation: str, *, fault: str = "kill") -> Question:
    """Ask the kill points: one act in one state, at each bytecode that changes something."""
    return Question(_sweep(scenario, state, "bytecodes", fault), violation)


def sweep_in_c(scenario: str, state: str, violation: str) -> Question:
    """Ask the named points of the lane in C."""
    return Question(_sweep(scenario, state, "named", "kill"), violation, "c")


def _sweep(scenario: str, state: str, layer: str, fault: str) -> tuple[str, ...]:
    return (
        "-m", "tests.crash.points", "sweep", "--bus", BUS, "--first", "--layer", layer,
        "--every", "100000", "--faults", fault, "--scenarios", scenario, "--states", state,
    )  # fmt: skip


def registry(violation: str) -> Question:
    """Ask the kill points of the registry's two ends."""
    return Question(("-m", "tests.crash.points", "registry", "--bus", BUS), violation)


def one_test(test: str, violation: str, lane: Lane = "python") -> Question:
    """Ask one test: an exploration of schedules, a scene, or a run step by step."""
    # Without the project's own `pythonpath`, which would come before the copy.
    options = ("-q", "-x", "-o", "pythonpath=", "-p", "no:cacheprovider", "--basetemp", DIRECTORY)
    return Question(("-m", "pytest", *options, f"tests/{test}"), violation, lane)
