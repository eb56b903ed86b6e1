"""All trials of one transport in one scenario, in a process of their own.

So each transport finds the environment that it needs, forks from a process that has loaded nothing
of the others, and can harm none of them.  The bench says when the next trial is to begin, which is
how the transports take turns; what of a trial can wait (is it a hang? is anything missing?) is
looked at while others have theirs.

The bench writes a line for each trial, and ends the series by closing the pipe; the series answers
with a line once the kill is behind it, and at the end with its outcomes.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bench.kills.board import SCENARIOS
from bench.kills.trial import NAP_S, Outcome, Trial
from bench.kills.wires import WIRES
from bench.work import SHAPES
from bench.worker import PR_SET_PDEATHSIG

ATTEND_S: Final = 0.05  # how long a kill is watched before others have their turn
LOOK_S: Final = 0.01
TRIAL_S_MAX: Final = 120.0
END_S_MAX: Final = 60.0


class SeriesFailed(Exception):
    """A series could not do its trials; the message says why."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a series is told: transport and scenario by their names, where chance comes from."""

    wire: str
    scenario: str
    seed: str
    scratch: str


class Series:
    """The bench's end of a series; use it as a context manager.

    Raises: SeriesFailed, from all of its methods.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._results: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        driver = WIRES[self.order.wire].driver(SHAPES["one_to_one"], Path(self.order.scratch))
        # Not in the terminal's process group: Ctrl-C is for the bench.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.kills.series", json.dumps(asdict(self.order))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0,
            env={**os.environ, **driver.environment},
        )  # fmt: skip
        self._hear("start", TRIAL_S_MAX)
        return self

    def kill_once(self) -> None:
        """Let it do its next trial, and wait until the kill is behind it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("trial\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: that will be heard
        self._hear("do its trial", TRIAL_S_MAX)

    def end(self) -> dict[str, Any]:
        """Wait until every trial's outcome is clear; return them, and what else it says."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        results = self._hear("end", END_S_MAX)
        self._process.wait(END_S_MAX)
        return results

    def _hear(self, what: str, timeout_s: float) -> dict[str, Any]:
        out = self._process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], timeout_s)
        line = out.readline() if ready else ""
        if not line:
            code = self._process.poll()
            why = "it does not answer" if code is None else f"it ended, exit code={code}"
            raise SeriesFailed(f"it should {what}, but {why}")
        heard: dict[str, Any] = json.loads(line)
        if "failed" in heard:
            raise SeriesFailed(heard["failed"])
        return heard

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, if that was not done."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# --- the series' own process ----------------------------------------------------------------------


def run_series(order: Order) -> None:
    """Do trials as long as the bench asks for them."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a transport prints is not for the bench
    wire = WIRES[order.wire](SCENARIOS[order.scenario], Path(order.scratch))
    rng = random.Random(f"{order.seed} {order.wire} {order.scenario}")

    def answer(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    with ExitStack() as stack:
        try:
            wire.start(stack)
            watched = Watched()
            stack.callback(watched.close)
            answer({"started": wire.driver.name})
            while _asked(watched):
                wire.number += 1
                trial = watched.begin(wire.number, Trial(wire, rng))
                deadline = time.monotonic() + ATTEND_S
                while not trial.prompt and time.monotonic() < deadline:
                    watched.look()
                    time.sleep(NAP_S)
                answer({"killed": wire.number})
            while watched.look():
                time.sleep(LOOK_S)
            outcomes = [outcome.to_json() for outcome in watched.outcomes.values()]
            answer({"outcomes": outcomes, "kept": watched.kept(wire.dead_letters())})
        except BrokenPipeError:
            pass  # the bench has ended
        except Exception as error:
            answer({"failed": f"{type(error).__name__}: {error}"})


class Watched:
    """The trials whose outcome is not clear yet, and the outcomes of the others."""

    def __init__(self) -> None:
        self._trials: dict[int, Trial] = {}
        self.outcomes: dict[int, Outcome] = {}

    def begin(self, number: int, trial: Trial) -> Trial:
        """Begin a trial and watch it from now on."""
        self._trials[number] = trial
        trial.begin()
        return trial

    def look(self) -> bool:
        """Look at each once; say whether there is any left."""
        for number, trial in list(self._trials.items()):
            outcome = trial.look()
            if outcome is not None:
                self.outcomes[number] = outcome
                del self._trials[number]
                trial.close()
        return bool(self._trials)

    def kept(self, letters: set[tuple[int, int, int]]) -> int:
        """Return how many of the missing jobs are among the dead letters."""
        missing = ((number, *job) for number, outcome in self.outcomes.items()
                   for job in outcome.missing or ())  # fmt: skip
        return sum(job in letters for job in missing)

    def close(self) -> None:
        """End those that are left."""
        for trial in self._trials.values():
            trial.close()
        self._trials.clear()


def _asked(watched: Watched) -> bool:
    # Whether the bench wants another trial; it closes the pipe when it does not.
    while True:
        timeout_s = LOOK_S if watched.look() else None
        ready, _, _ = select.select([0], [], [], timeout_s)
        if ready:
            return bool(os.read(0, 64))


if __name__ == "__main__":
    run_series(Order(**json.loads(sys.argv[1])))
