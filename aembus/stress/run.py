"""A stress run from its start to its end: a bus, producers, perhaps kills, and the accounts.

The run is an observer: it starts the processes, tells the producers when, and reads cursors and
ledgers.  All names in /dev/shm are the bus's, so they go with it however the run ends.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from aembus.control import ControlClient
from aembus.errors import AembusError, BusBroken
from aembus.shm import names
from aembus.stress import room, surroundings, verdict
from aembus.stress.board import OVER, QUIET, SENDING, Board
from aembus.stress.histogram import Histogram
from aembus.stress.kills import Killer, Recoveries, Saboteur
from aembus.stress.ledger import Ledger
from aembus.stress.load import Producers
from aembus.stress.observer import Observer
from aembus.stress.options import Options, Progress
from aembus.stress.producer import ProducerTask
from aembus.stress.report import Course, Kill, Report
from aembus.stress.worker import WorkerTask
from aembus.supervisor.configuration import WorkerSpec
from aembus.supervisor.supervisor import Supervisor

WORKER: Final = "aembus.stress.worker:main"
WORKER_KIND: Final = "stress"

TICK_S: Final = 0.05
SAMPLE_S: Final = 0.25
START_S: Final = 60.0  # and a second for each producer: a machine may be slow, but not for ever
QUIET_S: Final = 15.0
STANDSTILL_S: Final = 10.0  # without a job finished: then what is queued stays queued


class StressRun:
    """One run.

    Args:
        options: what to run.
        watch: called often with how far it is.
        interrupted: asked often; once it says True the run is ended early, but in order.
        sabotage: makes who kills; None for whoever the options ask for, if anybody.
    """

    def __init__(
        self,
        options: Options,
        watch: Callable[[Progress], None] = lambda progress: None,
        interrupted: Callable[[], bool] = lambda: False,
        sabotage: Callable[[Producers, Observer, Recoveries], Saboteur] | None = None,
    ) -> None:
        self._options = options
        self._watch = watch
        self._interrupted = interrupted
        self._sabotage = sabotage
        if sabotage is None and options.kill_every_s is not None:
            self._sabotage = partial(Killer, options.kill_every_s, random.Random(options.seed))
        self._nonce = names.new_nonce()
        self._course = Course()
        self._ended_early = False

    def run(self) -> Report:
        """Run, and report.  Nothing is left behind, however it ends.

        Raises: AembusError if the bus or a producer could not start or ended by itself.
        """
        options = self._options
        sizes = room.choose(
            options.producers, options.workers, options.size, self._sabotage is not None
        )
        task = WorkerTask(self._nonce, sizes.slots, options.producers)
        spec = WorkerSpec(WORKER_KIND, WORKER, options.workers, (task.to_json(),))
        with (
            surroundings.chosen_lane(options.lane),
            surroundings.one_core(options.pin),
            surroundings.state_directory(options.bus, self._nonce) as state,
        ):
            supervisor = Supervisor(
                options.bus,
                workers=[spec],
                slots=sizes.slots,
                lane_bytes=sizes.lane_bytes,
                state_directory=state,
                log_level="ERROR",
            )
            self._watch(Progress("starting", 0, options.producers))
            try:
                with supervisor, contextlib.ExitStack() as opened:
                    return self._run_on(supervisor.pid, opened)
            finally:
                surroundings.sweep_up(options.bus)

    def _run_on(self, supervisor_pid: int, opened: contextlib.ExitStack) -> Report:
        options = self._options
        self._pidfd = os.pidfd_open(supervisor_pid)
        opened.callback(os.close, self._pidfd)
        self._observer = Observer(options.bus)
        opened.callback(self._observer.close)
        self._ledgers = {
            worker: Ledger.open(Ledger.name(options.bus, self._nonce, worker), options.producers)
            for worker in self._observer.worker_names
        }
        for ledger in self._ledgers.values():
            opened.callback(ledger.close)
        name = Board.name(options.bus, self._nonce)
        self._board = Board.create(name, options.producers, options.workers)
        opened.callback(self._board.close)
        tasks = [
            ProducerTask(
                options.bus,
                self._nonce,
                number,
                options.producers,
                options.workers,
                options.size,
                options.seed,
                number % options.workers if options.apart else None,
            )
            for number in range(options.producers)
        ]
        self._producers = Producers(tasks, self._board)
        opened.callback(self._end_producers)
        self._start_producers()
        killer = self._load()
        drained_s = self._drain()
        return self._report(self._statistics(), drained_s, killer)

    # --- the stages -----------------------------------------------------------------------------

    def _start_producers(self) -> None:
        count = self._options.producers
        for _ in self._producers.start():
            self._watch(Progress("starting", self._producers.ready(), count))
            self._raise_if_interrupted()
        deadline = time.monotonic() + START_S + count
        while (ready := self._producers.ready()) < count:
            self._watch(Progress("starting", ready, count))
            self._pause(TICK_S)
            self._producers.check()
            self._raise_if_interrupted()
            if time.monotonic() > deadline:
                raise AembusError(f"the producers do not come up, ready={ready}, producers={count}")

    def _raise_if_interrupted(self) -> None:
        if self._interrupted():
            raise KeyboardInterrupt  # there is nothing to report yet

    def _lanes_in_use(self) -> set[str]:
        producers = (self._board.lane(number) for number in range(self._options.producers))
        return {*(ledger.lane for ledger in self._ledgers.values()), *producers}

    def _load(self) -> Saboteur | None:
        """Let the producers send for the time given; return who killed, if anybody was to."""
        options, course = self._options, self._course
        killer = None
        if self._sabotage is not None:
            recoveries = Recoveries(self._ledgers)
            killer = self._sabotage(self._producers, self._observer, recoveries)
        tick_s = min(TICK_S, (options.kill_every_s or 1.0) / 4)
        self._began = began = time.monotonic()
        course.samples.append((0.0, self._observer.all_finished()))
        self._board.phase = SENDING
        while (now_s := time.monotonic() - began) < options.seconds:
            if self._interrupted():
                self._ended_early = True
                break
            if killer is not None and (victim := killer.tick(now_s)) is not None:
                course.kills.append(Kill(now_s, victim))
            self._sample(now_s)
            self._watch(
                Progress("running", now_s, options.seconds, self._rate(), len(course.kills))
            )
            self._pause(min(tick_s, options.seconds - now_s))
            self._producers.check()
        self._board.phase = QUIET
        return killer

    def _sample(self, now_s: float) -> None:
        if now_s - self._course.samples[-1][0] >= SAMPLE_S:
            self._course.samples.append((now_s, self._observer.all_finished()))

    def _rate(self) -> float:
        rates = self._course.rates()[-4:]
        return sum(rate for _, rate in rates) / len(rates) if rates else 0.0

    def _drain(self) -> float:
        """Wait until everything is delivered; return when the last job was, since the start."""
        deadline = time.monotonic() + QUIET_S
        while not self._producers.all_quiet():
            self._pause(TICK_S)
            self._producers.check()
            if time.monotonic() > deadline:
                raise AembusError("producers do not stop to send; see whether they are stopped")
        queued_first = self._observer.queued()
        finished, finished_at = self._observer.all_finished(), time.monotonic()
        while queued := self._observer.queued():
            self._watch(Progress("draining", queued_first - queued, queued_first, self._rate()))
            now = time.monotonic()
            if (finished_now := self._observer.all_finished()) != finished:
                finished, finished_at = finished_now, now
            elif now - finished_at > STANDSTILL_S:
                break
            self._pause(TICK_S / 5)
        drained_s = time.monotonic() - self._began
        self._course.samples.append((drained_s, self._observer.all_finished()))
        return drained_s

    def _pause(self, seconds: float) -> None:
        # Sleeps, unless the supervisor's process ends.
        ended, _, _ = select.select([self._pidfd], [], [], max(seconds, 0))
        if ended:
            raise BusBroken("the supervisor ended in the middle of the run")

    def _end_producers(self) -> None:
        self._board.phase = OVER
        self._producers.end()

    # --- the end --------------------------------------------------------------------------------

    def _statistics(self) -> list[dict[str, Any]]:
        control = ControlClient(self._options.bus)
        try:
            members: list[dict[str, Any]] = control.request("statistics")["members"]
        finally:
            control.close()
        return members

    def _report(
        self, members: list[dict[str, Any]], drained_s: float, killer: Saboteur | None
    ) -> Report:
        options = self._options
        latencies = Histogram()
        for ledger in self._ledgers.values():
            ledger.add_latencies(latencies)
        accounts = verdict.account_all(
            (
                (lane, self._ledgers[worker].row(slot))
                for worker in self._observer.worker_names
                for slot, lane in self._observer.lanes(worker).items()
            ),
            sum(self._board.sent(number) for number in range(options.producers)),
            sum(member["corrupted"] for member in members),
        )
        failures = verdict.shortcomings(accounts)
        if not self._ended_early:  # else there may not have been time enough
            floor = verdict.jobs_floor(
                options.seconds, options.size, kills=killer is not None
            )
            failures += verdict.idleness(accounts.delivered, floor, self._idle())
        workers_killed, recoveries_s = 0, list[float]()
        if killer is not None:
            killer.recoveries.look()
            workers_killed, recoveries_s = killer.workers_killed, killer.recoveries.found_s
        failures += _other_failures(members, workers_killed)
        return Report(
            accounts=accounts,
            seconds=drained_s,
            latencies=latencies,
            course=self._course,
            workers_killed=workers_killed,
            recoveries_s=recoveries_s,
            rescued_wakeups=sum(member["rescued_wakeups"] for member in members),
            lane="+".join(sorted(self._lanes_in_use())),
            producers=options.producers,
            workers=options.workers,
            size=options.size,
            seed=options.seed,
            pinned=options.pin,
            interrupted=self._ended_early,
            failures=failures,
        )

    def _idle(self) -> list[str]:
        came_from: set[int] = set()
        idle = []
        for worker, ledger in self._ledgers.items():
            seen = ledger.producers_seen()
            came_from |= seen
            if not seen:
                idle.append(f"worker {worker}")
        producers = {*range(self._options.producers)}
        return idle + [f"producer {number}" for number in sorted(producers - came_from)]


def _other_failures(members: list[dict[str, Any]], killed: int) -> Iterator[str]:
    workers = [member for member in members if member["kind"] == "worker"]
    failed = sum(worker["failed"] for worker in workers)
    if failed:
        yield f"handlers that raised: {failed}"
    by_themselves = sum(worker["restarts"] for worker in workers) - killed
    if by_themselves > 0:
        yield f"workers that ended by themselves: {by_themselves}"
