"""A scene: a real bus with a supervisor, workers and clients, all real processes.

Workers, members that jobs interrupt and members with an event loop are its receivers, of one group;
producers and callers are its senders.

Faults are done to it from outside; `settle` then lets everything come to rest and asks the six
questions.  A wrong answer raises `Violation`, with the seed and the last faults.

- I1 every live sender and every receiver exchange a probe within PROBE_S (see LATE);
- I2 what was sent is delivered, a dead letter or queued, by the logs and by shared memory alike;
- I3 each lane's first deliveries come in its order, and in its sender's;
- I4 no checksum is wrong;
- I5 names, descriptors and children are what they were;
- I6 a replacement is ready within READY_S (the median; see LATE).

The processes run the sources that AEMBUS_SOURCES names (a copy of the project, to be broken), by
default those beside these tests.

    scene_base    its processes: started, looked at, ended; what they wrote down
    scene_faults  what is done to them
    scene         what is asked of them, and the end
    scene_actors, scene_senders, scene_receivers, scene_stage   what they do, a process for each
    scene_board   how they are told
    scene_log, scene_accounts          what they write down, and whether it agrees
    scene_view, scene_belongings       shared memory, and what there must not be more of
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Final

from aembus.shm import layout
from tests.crash.scene_base import (
    GONE_S,
    LATE,
    READY_S,
    SOURCES,
    START_S,
    TICK_S,
    Violation,
    environment,
    new_seed,
)
from tests.crash.scene_faults import SceneFaults
from tests.crash.scene_stage import worker_names
from tests.crash.scene_view import names_by_kind

__all__ = ["SOURCES", "Scene", "Violation", "environment", "new_seed"]

PROBE_S: Final = 1.0
DRAIN_S: Final = 10.0


class Scene(SceneFaults):
    """One scene.  Use it as a context manager: what still runs at the end is killed."""

    # --- loud and quiet ---------------------------------------------------------------------------

    def be_loud(self, mode: int) -> None:
        """Let the clients send."""
        self.board.be_loud(mode)

    def finished(self) -> int:
        """Return how many jobs the receivers have finished in this life of the bus."""
        return sum(self.view.finished(m.inbox_id) for m in self.receivers().values())

    @property
    def worker_names(self) -> list[str]:
        """What the workers are called."""
        return worker_names(self.stage)

    def identities(self) -> set[tuple[int, int, int]]:
        """Return who is on the bus: slots, incarnations, PIDs."""
        return {(m.slot, m.incarnation, m.pid) for m in self.view.members()}

    def finished_by(self, name: str) -> int:
        """Return how many jobs one receiver has finished in this life of the bus."""
        return self.view.finished(self.receivers()[name].inbox_id)

    def await_finished_by(self, name: str, jobs: int) -> None:
        """Wait until one worker has finished so many."""
        self._wait(
            f"I1: jobs go on being delivered to {name}",
            START_S,
            lambda: self.finished_by(name) >= jobs,
        )

    def forgive_delay(self) -> None:
        """Count from now on how long replacements take: nobody was there to start them."""
        for worker in self._receivers.values():
            if worker.killed_at:
                worker.killed_at = time.monotonic()

    def await_finished(self, jobs: int) -> None:
        """Wait until the receivers have finished so many."""
        self._wait("I1: jobs go on being delivered", START_S, lambda: self.finished() >= jobs)

    def watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass and look at the receivers meanwhile; True if `until` came true."""
        deadline = time.monotonic() + seconds
        while True:
            self.look()
            if until():
                return True
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(TICK_S, left_s))

    @staticmethod
    def pass_time(seconds: float) -> None:
        """Let time pass without a look at anybody."""
        time.sleep(seconds)

    def supervisor_lives(self) -> bool:
        """Say whether the supervisor's process runs."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def await_at_work(self, name: str) -> None:
        """Wait until a worker has finished a job since it was started, so that it may be killed."""
        self.watch(START_S, lambda: name in self.workers_at_work())

    def await_state(self, name: str, state: str) -> None:
        """Wait until the registry shows a worker in this state."""
        self._wait(f"{name} is {state}", START_S, lambda: self.receivers()[name].state == state)

    def settle(self) -> None:
        """Let everything come to rest and ask the six questions."""
        self.board.be_quiet()
        assert not self._stopped, "continue them first"
        self._await_guests()
        self._wait("I6: all are up", START_S, self._all_up)
        self._wait("senders are quiet", START_S, self._all_quiet)
        self._wait("I2: what is queued is delivered", DRAIN_S, self._drained)
        self._exchange_probes()
        self._wait("I2: what is queued is delivered", DRAIN_S, self._drained)
        self._account()
        self._check_leaks()
        self.view.forget_gone()

    def _all_up(self) -> bool:
        self.look()
        receivers = self._receivers.values()
        members = 1 + self.stage.workers + len(self.stage.clients)
        return (
            self._all_connected()
            and all(receiver.running and not receiver.killed_at for receiver in receivers)
            and len(self.view.members()) == members
            and not self.workers_starting()
        )

    def _all_quiet(self) -> bool:
        senders = range(self.stage.senders)
        return self._all_connected() and all(self.board.is_quiet(n) for n in senders)

    def _drained(self) -> bool:
        return not any(self.view.queued(m.inbox_id) for m in self.view.members())

    def _exchange_probes(self) -> None:
        self.board.probe_round += 1
        began = time.monotonic()
        while unanswered := self.board.unanswered(self.stage.senders, len(self._receivers)):
            if time.monotonic() - began > LATE * PROBE_S:
                self.fail(
                    f"I1: no probe in {LATE * PROBE_S} s, between (sender, receiver) {unanswered}"
                )
            time.sleep(TICK_S)
        self.probes_ms.append((time.monotonic() - began) * 1000)

    def _account(self) -> None:
        self.take_logs()
        receivers = self.receivers()
        for name, member in receivers.items():
            self.accounts.note_ended_and_dead(name, member.inbox_id)
        self.accounts.settle()
        for name, member in receivers.items():
            for origin, counts in self.view.lanes(member.inbox_id).items():
                self.accounts.compare_lane(
                    name, member.inbox_id, origin, counts, calls=self.stage.callers > 0
                )
            corrupted = self.view.word(member.inbox_id, layout.CORRUPTED)
            if corrupted:
                self.accounts.wrong.append(f"I4: {name} gave up {corrupted} records")
        self._judge_accounts()
        self._logs.forget()

    def _check_leaks(self) -> None:
        if more := self._belongings.too_many():
            self.fail(f"I5: (what there may be, what there is): {more}")

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Settle, stop the bus in order, and see that nothing is left."""
        self.settle()
        for what, times_ms, limit_s in (
            ("I1: a probe", self.probes_ms, PROBE_S),
            ("I6: a replacement", self.ready_ms, READY_S),
        ):
            if times_ms and statistics.median(times_ms) > limit_s * 1000:
                self.fail(f"{what} takes longer than {limit_s} s: {sorted(times_ms)}")
        self.sums.add(self.accounts.sums)
        self.rescued_wakeups += self.rescued_now()
        self.board.end()
        for number, process in self._clients.items():
            try:
                code = process.wait(START_S)
            except subprocess.TimeoutExpired:
                self.fail(f"{self.stage.clients[number]} {number} does not leave")
            if code:
                self.fail(f"{self.stage.clients[number]} {number} ended with exit code {code}")
        self.stop_supervisor()

    def stop_supervisor(self) -> None:
        """Stop the bus with SIGTERM, and see that nothing is left."""
        self.end_supervisor()
        self._wait("I5: no worker is left", GONE_S, lambda: not self.worker_pids())
        left = names_by_kind(self.bus)
        if left:
            self.fail(f"I5: left in /dev/shm: {left}")
