"""Random faults under load: ``python -m tests.crash.storm --kills 10000 --seed 1``.

Rounds follow each other on one scene: the senders are let loose, in a mode by chance, some
members are killed at random moments, and then the scene settles and its six questions are asked.
A supervisor's death ends a round and the bus with it; the next one starts on what it left.

Ctrl-C or SIGTERM ends it early: processes and names are removed, and the exit code is 130.
If a promise is not kept, the exit code is 1, and what the processes wrote, with a copy of the
bus's memory, stays in a directory that the last line names.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.crash.scene import Scene, new_seed
from tests.crash.scene_base import Violation
from tests.crash.scene_board import MODES

WORKER: Final = "worker"
PRODUCER: Final = "producer"
SUPERVISOR: Final = "supervisor"
PAIR: Final = "pair"
SHARES: Final = {WORKER: 60, PRODUCER: 25, SUPERVISOR: 10, PAIR: 5}
OTHER_ENDS: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGUSR2)  # the last by os._exit
OTHER_SHARE: Final = 0.1
KILLS_A_ROUND: Final = (8, 24)
PAUSE_S: Final = 0.05
AT_WORK_S: Final = 5.0  # for somebody to get something done, so that it may be killed
BOOT_SHARE: Final = 0.08  # of workers' deaths, after which the replacement is killed as it starts
HANG_UP_SHARE: Final = 0.03
SPARE_SHARE: Final = 0.1  # of workers' deaths, just before which the spare is killed
GUEST_SHARE: Final = 0.4  # of rounds
SETTLED_SHARE: Final = 0.5  # of the supervisor's deaths, of whose rounds else less can be said
STOP_SHARE: Final = 0.3
RESCUES_MIN: Final = 3  # a machine may be too slow to post within a sleep
RESCUE_KILLS: Final = 500  # one more for so many
JOBS_A_KILL: Final = 5  # at least, else the run proves nothing
EXIT_INTERRUPTED: Final = 130
CAST: Final = {"workers": 3, "producers": 2, "callers": 1, "interrupted": 1, "serving": 1}


@dataclass(slots=True)
class Figures:
    """What a storm came to."""

    seed: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    seconds: float = 0.0
    jobs: dict[str, int] = field(default_factory=dict)
    recovery_ms: dict[str, float] = field(default_factory=dict)
    ready_ms: dict[str, float] = field(default_factory=dict)
    probes_ms: dict[str, float] = field(default_factory=dict)
    rescued_wakeups: int = 0
    leaks: int = 0  # else it would have ended with a Violation

    def to_json(self) -> dict[str, Any]:
        """Return the figures as ``--json`` writes them."""
        return {name: getattr(self, name) for name in self.__slots__}


class Storm:
    """Faults by chance, done to one scene.

    Args:
        pause_s: the mean time between two.
    """

    def __init__(self, scene: Scene, seed: int, pause_s: float = PAUSE_S) -> None:
        self.scene = self._scene = scene
        self._pause_s = pause_s
        self._random = random.Random(f"storm {seed}")
        self.figures = Figures(seed)

    @property
    def kills(self) -> int:
        """How many were done."""
        return self.figures.kills.total()

    def round(self, kills_max: int) -> None:
        """Let the senders loose, kill, settle."""
        scene, choose = self._scene, self._random
        self.figures.rounds += 1
        scene.be_loud(choose.choice(MODES))
        guest = self._invite()
        kills_max = min(kills_max, choose.randint(*KILLS_A_ROUND))
        for _ in range(kills_max):
            scene.watch(choose.expovariate(1 / self._pause_s))
            if choose.random() < STOP_SHARE / 10:
                self._stop_somebody()
            if choose.random() < 0.3:
                guest = self._see_off(guest)
            what = choose.choices([*SHARES], [*SHARES.values()])[0]
            self.figures.kills[what] += 1
            if what == SUPERVISOR:
                if choose.random() < SETTLED_SHARE:
                    self._see_off(guest)
                    scene.settle()
                    scene.be_loud(choose.choice(MODES))
                    scene.watch(choose.random() * 0.2)
                scene.kill_supervisor()
                scene.restart_after_death()
                return
            self._kill(what)
        self._see_off(guest)
        scene.settle()

    def _kill(self, what: str) -> None:
        if what in (WORKER, PAIR):
            self._kill_worker()
        if what in (PRODUCER, PAIR):
            self._kill_producer()

    def _end(self) -> signal.Signals:
        choose = self._random
        end = choose.choice(OTHER_ENDS) if choose.random() < OTHER_SHARE else signal.SIGKILL
        self.figures.ends["os._exit" if end == signal.SIGUSR2 else end.name] += 1
        return end

    def _kill_worker(self) -> None:
        scene, choose = self._scene, self._random
        if not scene.watch(AT_WORK_S, lambda: bool(scene.receivers_at_work())):
            scene.fail(f"I1: no receiver gets anything done in {AT_WORK_S} s")
        name = choose.choice(scene.receivers_at_work())
        if name not in scene.worker_names:
            self.figures.other["client that receives killed"] += 1
            scene.kill_receiver(name, self._end())
            return
        if choose.random() < HANG_UP_SHARE:
            self.figures.other["hang-up of a worker"] += 1
            scene.worker_hangs_up(name)
            return
        if choose.random() < SPARE_SHARE:
            for pid in scene.spares():
                self.figures.other["spare killed"] += 1
                scene.kill_spare(pid)
        scene.kill_worker(name, self._end())
        if choose.random() < BOOT_SHARE:
            # It must have come that far; then at any moment of its start.
            if scene.watch(AT_WORK_S, lambda: bool(scene.workers_starting())):
                scene.watch(choose.random() * 0.15)
                starting = scene.workers_starting()
                if starting:
                    self.figures.other["worker killed while it started"] += 1
                    scene.kill_starting_worker(choose.choice(starting))

    def _kill_producer(self) -> None:
        scene = self._scene
        if not scene.watch(AT_WORK_S, lambda: bool(scene.senders_connected())):
            scene.fail(f"I1: no sender gets onto the bus in {AT_WORK_S} s")
        scene.kill_producer(self._random.choice(scene.senders_connected()), self._end())

    def _invite(self) -> str:
        if self._random.random() >= GUEST_SHARE:
            return ""
        guest = self._scene.invite()
        self._scene.await_guest(guest)
        return guest

    def _see_off(self, guest: str) -> str:
        if not guest:
            return ""
        how = self._random.choice((signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1))
        word = {signal.SIGTERM: "leaves", signal.SIGKILL: "is killed", signal.SIGUSR1: "hangs up"}
        self.figures.other[f"guest {word[how]}"] += 1
        self._scene.see_off(guest, how)
        return ""

    def _stop_somebody(self) -> None:
        scene, choose = self._scene, self._random
        pids = [scene.worker_pid(n) for n in scene.receivers_at_work()]
        pids += [scene.producer_pid(n) for n in scene.senders_connected()]
        if pids:
            self.figures.other["stopped for a while"] += 1
            pid = choose.choice(pids)
            scene.stop_process(pid)
            scene.watch(choose.uniform(0.02, 0.15))
            scene.continue_process(pid)

    def finish(self) -> Figures:
        """Stop the scene, and return the figures.  Raises Violation if too little was done."""
        scene, figures = self._scene, self.figures
        scene.stop()
        sums = scene.sums
        figures.jobs = asdict(sums)
        figures.recovery_ms = quantiles(scene.recoveries_ms)
        figures.ready_ms = quantiles(scene.ready_ms)
        figures.probes_ms = quantiles(scene.probes_ms)
        figures.rescued_wakeups = scene.rescued_wakeups
        idle = [n for n in range(scene.stage.senders) if not scene.board.sent(n)]
        if idle or sums.delivered < JOBS_A_KILL * self.kills:
            scene.fail(f"too little was done: {sums}, idle senders: {idle}")
        if figures.rescued_wakeups > max(RESCUES_MIN, self.kills // RESCUE_KILLS):
            scene.fail(f"posts are lost: {figures.rescued_wakeups} wake-ups by the bound")
        if self.kills >= 100 and not sums.redelivered:
            scene.fail(f"no kill met a job in hand: {sums}")
        return figures


def quantiles(values: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the largest of some values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    place = len(ordered) - 1
    return {
        "count": len(ordered),
        "p50": round(ordered[place // 2], 1),
        "p99": round(ordered[int(place * 0.99)], 1),
        "max": round(ordered[-1], 1),
    }


def replay_command(kills: int, seed: int, pause_s: float = PAUSE_S) -> str:
    """Return the command that plays a storm again."""
    return f"python -m tests.crash.storm --kills {kills} --seed {seed} --pause {pause_s:g}"


def table(figures: Figures) -> str:
    """Return the figures for people."""
    rows: list[tuple[str, Any]] = [("seed", figures.seed)]
    rows += [(f"kills: {what}", number) for what, number in sorted(figures.kills.items())]
    rows += [(f"ended by {what}", number) for what, number in sorted(figures.ends.items())]
    rows += [(f"also: {what}", number) for what, number in sorted(figures.other.items())]
    rows += [(f"jobs {what}", number) for what, number in figures.jobs.items()]
    for what, values in (
        ("kill to next job", figures.recovery_ms),
        ("kill to ready", figures.ready_ms),
        ("all probes", figures.probes_ms),
    ):
        rows += [(f"{what} (ms), {name}", value) for name, value in values.items()]
    rows += [("rescued wake-ups", figures.rescued_wakeups), ("leaks", figures.leaks)]
    rows.append(("rounds / seconds", f"{figures.rounds} / {figures.seconds:.0f}"))
    return "\n".join(f"{name:34} {value}" for name, value in rows)


def run(
    scene: Scene,
    seed: int,
    kills: int,
    progress: bool = False,
    seconds_max: float = math.inf,
    pause_s: float = PAUSE_S,
) -> Figures:
    """Do so many kills to a scene, if the time suffices, and return the figures."""
    began = time.monotonic()
    storm = Storm(scene, seed, pause_s)
    with scene:
        scene.settle()
        while storm.kills < kills and time.monotonic() - began < seconds_max:
            storm.round(kills - storm.kills)
            if progress:
                seconds = time.monotonic() - began
                print(
                    f"{seconds:7.0f} s  {storm.kills} of {kills} kills", file=sys.stderr, flush=True
                )
        storm.figures.seconds = time.monotonic() - began
        return storm.finish()


def _end_at_first_signal() -> None:
    """Have the first SIGINT or SIGTERM raise KeyboardInterrupt; tidying up is not interrupted."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in numbers:
        signal.signal(each, interrupt)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash.storm",
        description=__doc__,
        epilog="example: python -m tests.crash.storm --kills 300 --seed 7 --json storm.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=300, help="how many (default: 300)")
    parser.add_argument("--seed", type=int, default=None, help="of chance (default: a new one)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop after so many (default: never)"
    )
    parser.add_argument(
        "--pause", type=float, default=PAUSE_S,
        help="seconds between two, on average (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    seed = new_seed() if options.seed is None else options.seed
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bus = f"storm-{os.getpid()}"  # two of one seed may run at once
    _end_at_first_signal()
    try:
        with tempfile.TemporaryDirectory(prefix="aembus-storm-") as directory:
            replay = replay_command(options.kills, seed, options.pause)
            scene = Scene(bus, Path(directory), seed, replay=replay, **CAST)
            try:
                figures = run(scene, seed, options.kills, True, options.seconds, options.pause)
            except Violation as violation:
                print(violation, file=sys.stderr)
                kept = shutil.copytree(
                    directory, f"{directory}-kept", ignore=shutil.ignore_patterns("compiled")
                )
                print(f"kept: {kept}", file=sys.stderr)
                return 1
    except KeyboardInterrupt:
        print(f"interrupted: bus {bus!r} and its processes are removed", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures.to_json(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
