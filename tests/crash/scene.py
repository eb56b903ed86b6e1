"""A scene: a real bus with a supervisor, workers in a group, and producers, all real processes.

Faults are done to it from outside; `settle` then lets everything come to rest and asks the six
questions.  A wrong answer raises `Violation`, with the seed and the last faults.

- I1 every live producer and every worker exchange a probe within PROBE_S (see LATE);
- I2 what was sent is delivered, a dead letter or queued, by the logs and by shared memory alike;
- I3 each lane's first deliveries come in its order, and in its producer's;
- I4 no checksum is wrong;
- I5 names, descriptors and children are what they were;
- I6 a replacement is ready within READY_S (the median; see LATE).

The processes run the sources that AEMBUS_SOURCES names (a copy of the project, to be broken), by
default those beside these tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgpack

from aembus.routing import Member
from aembus.shm import layout
from aembus.supervisor.dead_letters import DeadLetters
from tests.crash.scene_accounts import Accounts, Letter, Sums
from tests.crash.scene_actors import Stage, worker_names
from tests.crash.scene_board import Board
from tests.crash.scene_log import POINTS, LogReader
from tests.crash.scene_view import SHARED, View, children, descriptors, names_by_kind

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = Path(os.environ.get("AEMBUS_SOURCES", ROOT))

PROBE_S: Final = 1.0
READY_S: Final = 4.0  # the plan says 2, on a machine of its own
LATE: Final = 5  # times as long may take a single one, on a machine that has other things to do
GONE_S: Final = 10.0  # for workers after their supervisor's death
START_S: Final = 20.0
DRAIN_S: Final = 10.0
LEAKS_S: Final = 2.0  # for what is just ending to end
TICK_S: Final = 0.003
FAULTS_KEPT: Final = 25


class Violation(AssertionError):
    """A promise was not kept."""


@dataclass(slots=True)
class WorkerState:
    """What is known of one worker.

    pid, since: its process now, and how many jobs were finished when that was first seen running.
    killed_at: when it was killed; 0 once a replacement is ready.
    """

    name: str
    pid: int = 0
    since: int = 0
    running: bool = False
    killed_at: float = 0.0
    killed_pid: int = 0


class Scene:
    """One scene.  Use it as a context manager: what still runs at the end is killed.

    Args:
        bus: a name that nobody else has.
        directory: for logs, board and dead letters.
        seed: of what the producers send.
        replay: the command that plays it again, for the text of a violation.
    """

    def __init__(
        self,
        bus: str,
        directory: Path,
        seed: int,
        *,
        workers: int = 4,
        producers: int = 3,
        lane_bytes: int = 64 * 1024,
        slots: int = 24,
        stop_timeout_s: float = 2.0,
        handler_timeout_s: float | None = None,
        raise_share: float = 0.002,
        replay: str = "",
    ) -> None:
        self.directory = directory
        self.replay = replay
        self.stage = Stage(
            bus, str(directory), "", workers, producers, lane_bytes, slots, seed,
            stop_timeout_s, handler_timeout_s, raise_share, "WARNING",
        )  # fmt: skip
        self.faults: deque[str] = deque(maxlen=FAULTS_KEPT)
        self.board = Board(directory / "board", producers)
        self.sums = Sums()
        self.recoveries_ms: list[float] = []  # from a kill to the first job of the replacement
        self.ready_ms: list[float] = []
        self.probes_ms: list[float] = []
        self.rescued_wakeups = 0
        self.lives = 0
        self._logs = LogReader(directory)
        self._errors = (directory / "stderr").open("ab")
        self._producers: dict[int, subprocess.Popen[bytes]] = {}
        self._guests: dict[str, subprocess.Popen[bytes]] = {}
        self._guests_begun = 0
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._view: View | None = None
        self._workers: dict[str, WorkerState] = {}
        self._stopped: set[int] = set()
        self._killed_at_ns: dict[str, tuple[int, int]] = {}  # worker → when, its PID then
        self._baseline: dict[str, int] = {}
        self.accounts = Accounts()
        self._letters_read = 0

    # --- beginning and end ------------------------------------------------------------------------

    def __enter__(self) -> Scene:
        self.start_supervisor()
        for number in range(self.stage.producers):
            self._spawn_producer(number)
        self._wait("producers connect", START_S, self._all_connected)
        return self

    def __exit__(self, *exception: object) -> None:
        self.board.end()
        processes = [*self._producers.values(), *self._guests.values()]
        if self._supervisor is not None:
            processes.append(self._supervisor)
        for pid in self._stopped | self.worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        with contextlib.suppress(Violation):
            self._wait("workers end", GONE_S, lambda: not self.worker_pids())
        for pid in self.worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in Path("/dev/shm").glob(f"*aembus.{self.bus}.*"):
            path.unlink(missing_ok=True)
        if self._view is not None:
            self._view.close()
        self.board.close()
        self._errors.close()

    @property
    def bus(self) -> str:
        """The bus's name."""
        return self.stage.bus

    @property
    def view(self) -> View:
        """The bus, seen from outside."""
        assert self._view is not None
        return self._view

    @property
    def supervisor_pid(self) -> int:
        """The supervisor's PID."""
        assert self._supervisor is not None
        return self._supervisor.pid

    def spawn(self, role: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a process of the scene's own; its standard output is a pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.crash.scene_actors", role, self.stage.to_json(),
             *arguments],
            cwd=SOURCES, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Return the environment of the scene's processes."""
        return environment(self.bus, self.directory)

    def start_supervisor(self, **environment: str) -> None:
        """Start a supervisor, which must succeed at the first try, and wait until it is ready."""
        self.begin_supervisor(**environment)
        self.await_ready()

    def begin_supervisor(self) -> None:
        """Start a supervisor, and do not wait."""
        self.lives += 1
        state = str(self.directory / f"state-{self.lives}")
        self.stage = dataclasses.replace(self.stage, state=state)
        self.accounts = Accounts()
        self._letters_read = 0
        self._supervisor = self.spawn("supervisor")

    def await_ready(self) -> None:
        """Wait until the supervisor is ready."""
        assert self._supervisor is not None
        said = self.read_line(self._supervisor, START_S)
        if said != "ready":
            self.fail(f"the supervisor did not start: {said!r}")
        if self._view is not None:
            self._view.close()
        self._view = View(self.bus)
        self._workers = {name: WorkerState(name) for name in worker_names(self.stage)}
        self._killed_at_ns.clear()
        self._baseline = {}
        self.look()

    def read_line(self, process: subprocess.Popen[bytes], timeout_s: float) -> str:
        """Return the next line that a process says, "" if it ends."""
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], timeout_s)
        if not readable:
            self.fail(f"no word in {timeout_s} s from {process.args!r}")
        return process.stdout.readline().decode().strip()

    def _spawn_producer(self, number: int) -> None:
        process = self.spawn("producer", str(number))
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        self._producers[number] = process

    def _all_connected(self) -> bool:
        for number, process in self._producers.items():
            if process.poll() is not None:
                self.fail(f"producer {number} ended by itself, exit code {process.returncode}")
        return all(self.board.connected(n) == p.pid for n, p in self._producers.items())

    # --- looking ----------------------------------------------------------------------------------

    def look(self) -> None:
        """Take note of what has become of the workers; fail if a replacement takes too long."""
        now = time.monotonic()
        for name, member in self.view.workers().items():
            worker = self._workers[name]
            running = member.state == "running" and member.pid != worker.killed_pid
            if running and member.pid != worker.pid:
                worker.pid, worker.since = member.pid, self.view.finished(member.inbox_id)
                if worker.killed_at:
                    self.ready_ms.append((now - worker.killed_at) * 1000)
                    worker.killed_at = 0.0
            worker.running = running
            if worker.killed_at and now - worker.killed_at > LATE * READY_S and not self._stopped:
                self.fail(f"I6: no replacement of {name} in {LATE * READY_S} s")
        assert self._supervisor is not None
        if self._supervisor.poll() is not None:
            self.fail(f"the supervisor ended, exit code {self._supervisor.returncode}")

    def workers_at_work(self) -> list[str]:
        """Return the workers that have finished a job since they were started."""
        members = self.view.workers()
        return [
            worker.name
            for worker in self._workers.values()
            if worker.running
            and worker.pid not in self._stopped
            and self.view.finished(members[worker.name].inbox_id) > worker.since
        ]

    def producers_connected(self) -> list[int]:
        """Return the producers that are on the bus."""
        return [
            number
            for number, process in self._producers.items()
            if self.board.connected(number) == process.pid and process.pid not in self._stopped
        ]

    def worker_pid(self, name: str) -> int:
        """Return the PID of a worker's process now."""
        return self._workers[name].pid

    def producer_pid(self, number: int) -> int:
        """Return the PID of a producer's process now."""
        return self._producers[number].pid

    def workers_starting(self) -> list[int]:
        """Return the PIDs of the supervisor's children that are not running workers yet."""
        known = {worker.pid for worker in self._workers.values()}
        known |= {worker.killed_pid for worker in self._workers.values()}
        return sorted(children(self.supervisor_pid) - known)

    def worker_pids(self) -> set[int]:
        """Return the PIDs of all workers of this scene that run, whoever is their parent."""
        mark = f"AEMBUS_SCENE={self.bus}".encode()
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_bytes().split(b"\0")
                if b"aembus.worker" in command:
                    if mark in (path / "environ").read_bytes().split(b"\0"):
                        found.add(int(path.name))
        return found

    # --- faults -----------------------------------------------------------------------------------

    def note(self, fault: str) -> None:
        """Write down a fault, for the text of a violation."""
        self.faults.append(f"{time.monotonic():.3f} {fault}")

    def kill_worker(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a worker's process by force."""
        worker = self._workers[name]
        self.note(f"{number.name} to worker {name}, pid {worker.pid}")
        self._end_by_force(worker.pid, number)
        worker.running = False
        worker.killed_at, worker.killed_pid = time.monotonic(), worker.pid
        self._killed_at_ns[name] = (time.monotonic_ns(), worker.pid)

    def kill_starting_worker(self, pid: int) -> None:
        """Kill a worker's process that has not come up yet."""
        self.note(f"SIGKILL to a worker that starts, pid {pid}")
        self._end_by_force(pid, signal.SIGKILL)
        for worker in self._workers.values():
            if worker.killed_at:
                worker.killed_at = time.monotonic()

    def kill_producer(self, number: int, how: signal.Signals = signal.SIGKILL) -> None:
        """End a producer's process by force, and start another."""
        process = self._producers[number]
        self.note(f"{how.name} to producer {number}, pid {process.pid}")
        self._end_by_force(process.pid, how)
        process.wait()
        self._spawn_producer(number)

    def _end_by_force(self, pid: int, number: signal.Signals) -> None:
        self.accounts.ended_by_force.add(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill_supervisor(self) -> None:
        """Kill the supervisor, see everybody end, and judge what was."""
        assert self._supervisor is not None
        self.note(f"SIGKILL to the supervisor, pid {self._supervisor.pid}")
        self._supervisor.kill()
        self._supervisor.wait()
        self.bury_supervisor()

    def kill_starting_supervisor(self, after_s: float) -> None:
        """Kill a supervisor that was begun, after so many seconds; its workers end, too."""
        process = self._supervisor
        assert process is not None
        assert process.stdout is not None
        time.sleep(after_s)  # the moment is what is tried out
        self.note(f"SIGKILL to the supervisor, {after_s:.3f} s after it was started")
        process.kill()
        process.wait()
        process.stdout.close()
        self._wait("workers end after their supervisor", GONE_S, lambda: not self.worker_pids())

    def kill_stopping_supervisor(self, after_s: float) -> None:
        """Tell the supervisor to stop, kill it after so many seconds, and judge what was."""
        process = self._supervisor
        assert process is not None
        process.terminate()
        time.sleep(after_s)  # the moment is what is tried out
        self.note(f"SIGKILL to the supervisor, {after_s:.3f} s after it was told to stop")
        process.kill()
        process.wait()
        self.bury_supervisor()

    def stop_under_load(self) -> None:
        """Stop the bus in order while the producers send, and judge what was."""
        self.note("SIGTERM to the supervisor, under load")
        self.end_supervisor()
        self.bury_supervisor()

    def bury_supervisor(self) -> float:
        """Judge what a dead supervisor leaves; return how long its workers lived on, seconds."""
        began = time.monotonic()
        assert self._supervisor is not None
        if self._supervisor.stdout is not None:
            self._supervisor.stdout.close()
        self.board.be_quiet()
        self._wait("workers end after their supervisor", GONE_S, lambda: not self.worker_pids())
        took_s = time.monotonic() - began
        self._await_guests()
        self._wait("producers notice", GONE_S, self._all_disconnected)
        self.take_logs()
        self.accounts.settle_broken(self.view.queued_anywhere() if self._view else 0)
        self._judge_accounts()
        self.sums.add(self.accounts.sums)
        if self._view is not None:
            self.rescued_wakeups += self.rescued_now()
        return took_s

    def _all_disconnected(self) -> bool:
        return all(
            self.board.connected(n) != p.pid or p.poll() is not None
            for n, p in self._producers.items()
        )

    def restart_after_death(self) -> None:
        """Start the next supervisor, at the first try, and let the producers come back."""
        self.start_supervisor()
        self._wait("producers come back", START_S, self._all_connected)

    def hang_up(self, pid: int) -> None:
        """Let a member end its connection to the supervisor and live on."""
        self.note(f"pid {pid} hangs up")
        os.kill(pid, signal.SIGUSR1)

    def worker_hangs_up(self, name: str) -> None:
        """Let a worker hang up; it ends by itself then, and is replaced."""
        worker = self._workers[name]
        self.hang_up(worker.pid)
        worker.running = False
        worker.killed_at, worker.killed_pid = time.monotonic(), worker.pid

    def stop_process(self, pid: int) -> None:
        """SIGSTOP."""
        self.note(f"SIGSTOP to pid {pid}")
        self._stopped.add(pid)
        os.kill(pid, signal.SIGSTOP)

    def continue_process(self, pid: int) -> None:
        """SIGCONT."""
        self.note(f"SIGCONT to pid {pid}")
        os.kill(pid, signal.SIGCONT)
        self._stopped.discard(pid)

    # --- guests -----------------------------------------------------------------------------------

    def invite(self) -> str:
        """Start a member that joins the group; return its name.  It comes up meanwhile."""
        self._guests_begun += 1
        name = f"guest-{self._guests_begun}"
        self._guests[name] = self.spawn("guest", name)
        self.note(f"{name} comes, pid {self._guests[name].pid}")
        return name

    def await_guest(self, name: str) -> None:
        """Wait until a guest takes part."""
        if self.read_line(self._guests[name], START_S) != "ready":
            self.fail(f"{name} did not join")

    def guest_pid(self, name: str) -> int:
        """Return a guest's PID."""
        return self._guests[name].pid

    def see_off(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Let a guest leave (SIGTERM), or end it by force, or let it hang up (SIGUSR1)."""
        guest = self._guests[name]
        self.note(f"{name} goes by {number.name}, pid {guest.pid}")
        if number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(guest.pid, number)
        else:
            self._end_by_force(guest.pid, number)

    def await_unlisted(self, name: str) -> None:
        """Wait until the registry does not show a guest any more."""
        pid = self._guests[name].pid
        self._wait(
            "the registry is published without a guest",
            START_S,
            lambda: all(member.pid != pid for member in self.view.members()),
        )

    def _await_guests(self) -> None:
        for guest in self._guests.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                guest.wait(START_S)
            if guest.returncode is None:
                self.fail(f"a guest does not go, pid {guest.pid}")
            assert guest.stdout is not None
            guest.stdout.close()
        self._guests.clear()

    # --- loud and quiet ---------------------------------------------------------------------------

    def be_loud(self, mode: int) -> None:
        """Let the producers send."""
        self.board.be_loud(mode)

    def finished(self) -> int:
        """Return how many jobs the workers have finished in this life of the bus."""
        return sum(self.view.finished(m.inbox_id) for m in self.view.workers().values())

    @property
    def worker_names(self) -> list[str]:
        """What the workers are called."""
        return worker_names(self.stage)

    def identities(self) -> set[tuple[int, int, int]]:
        """Return who is on the bus: slots, incarnations, PIDs."""
        return {(m.slot, m.incarnation, m.pid) for m in self.view.members()}

    def finished_by(self, name: str) -> int:
        """Return how many jobs one worker has finished in this life of the bus."""
        return self.view.finished(self.view.workers()[name].inbox_id)

    def await_finished_by(self, name: str, jobs: int) -> None:
        """Wait until one worker has finished so many."""
        self._wait(
            f"I1: jobs go on being delivered to {name}",
            START_S,
            lambda: self.finished_by(name) >= jobs,
        )

    def forgive_delay(self) -> None:
        """Count from now on how long replacements take: nobody was there to start them."""
        for worker in self._workers.values():
            if worker.killed_at:
                worker.killed_at = time.monotonic()

    def await_finished(self, jobs: int) -> None:
        """Wait until the workers have finished so many."""
        self._wait("I1: jobs go on being delivered", START_S, lambda: self.finished() >= jobs)

    def watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass and look at the workers meanwhile; True if `until` came true."""
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
        self._wait(f"{name} is {state}", START_S, lambda: self.view.workers()[name].state == state)

    def settle(self) -> None:
        """Let everything come to rest and ask the six questions."""
        self.board.be_quiet()
        assert not self._stopped, "continue them first"
        self._await_guests()
        self._wait("I6: all are up", START_S, self._all_up)
        self._wait("producers are quiet", START_S, self._all_quiet)
        self._wait("I2: what is queued is delivered", DRAIN_S, self._drained)
        self._exchange_probes()
        self._wait("I2: what is queued is delivered", DRAIN_S, self._drained)
        self._account()
        self._check_leaks()
        self.view.forget_gone()

    def _all_up(self) -> bool:
        self.look()
        workers = self._workers.values()
        members = 1 + self.stage.workers + self.stage.producers
        return (
            self._all_connected()
            and all(worker.running and not worker.killed_at for worker in workers)
            and len(self.view.members()) == members
            and not self.workers_starting()
        )

    def _all_quiet(self) -> bool:
        return self._all_connected() and all(self.board.is_quiet(n) for n in self._producers)

    def _drained(self) -> bool:
        return not any(self.view.queued(m.inbox_id) for m in self.view.members())

    def _exchange_probes(self) -> None:
        self.board.probe_round += 1
        began = time.monotonic()
        while unanswered := self.board.unanswered(self.stage.workers):
            if time.monotonic() - began > LATE * PROBE_S:
                self.fail(
                    f"I1: no probe in {LATE * PROBE_S} s, between (producer, worker) {unanswered}"
                )
            time.sleep(TICK_S)
        self.probes_ms.append((time.monotonic() - began) * 1000)

    def _account(self) -> None:
        self.take_logs()
        workers = self.view.workers()
        for name, member in workers.items():
            self.accounts.note_ended_and_dead(name, member.inbox_id)
        self.accounts.settle()
        for name, member in workers.items():
            for origin, counts in self.view.lanes(member.inbox_id).items():
                self.accounts.compare_lane(name, member.inbox_id, origin, counts)
            corrupted = self.view.word(member.inbox_id, layout.CORRUPTED)
            if corrupted:
                self.accounts.wrong.append(f"I4: {name} gave up {corrupted} records")
        self._judge_accounts()
        self._logs.forget()

    def take_logs(self) -> None:
        """Take in what the members have written down since the last time."""
        for name, entries in self._logs.new_entries():
            self.accounts.take(name, entries)
        for letter in self._new_letters():
            self.accounts.take_letter(letter)
        for name, (at_ns, pid) in list(self._killed_at_ns.items()):
            worker = self._workers[name]
            first = self.accounts.first_by_pid.get(worker.pid, 0)
            if worker.pid != pid and first > at_ns:
                self.recoveries_ms.append((first - at_ns) / 1e6)
                del self._killed_at_ns[name]

    def _new_letters(self) -> Iterator[Letter]:
        letters = list(DeadLetters(Path(self.stage.state)).read())
        for letter in letters[self._letters_read :]:
            job = None  # of no concern of the accounts: an answer to a producer that is gone
            if letter["point"] in POINTS.values():
                stream, number, *_ = msgpack.unpackb(letter["payload"])
                job = (stream, number)
            _, inbox_id, _, origin, lane_number = letter["identity"]
            yield Letter(
                job, inbox_id, origin, lane_number, letter["attempts"], letter["reason"]
            )  # fmt: skip
        self._letters_read = len(letters)

    def _judge_accounts(self) -> None:
        if self.accounts.wrong:
            self.fail("I2-I4: " + "\n  ".join(self.accounts.wrong[:10]))

    def _check_leaks(self) -> None:
        if not self._baseline:
            self._baseline = self._allowed(self._belongings())
        if not self._wait_for_baseline():
            self.fail(f"I5: (what there may be, what there is): {self._more_than_baseline()}")

    def _wait_for_baseline(self) -> bool:
        deadline = time.monotonic() + LEAKS_S
        while time.monotonic() < deadline:
            if not self._more_than_baseline():
                return True
            time.sleep(TICK_S)
        return False

    def _more_than_baseline(self) -> dict[str, tuple[int, int]]:
        now = self._belongings()
        members = len(self.view.members())
        allowed = self._baseline | {
            "names: registry": 1, "names: lock": 1, "names: control": 1, "names: pipe": 1,
            "names: inbox": members, "names: bell": members - 1,
        }  # fmt: skip
        return {
            what: (allowed.get(what, 0), number)
            for what, number in now.items()
            if number > allowed.get(what, 0)
        }

    def _belongings(self) -> dict[str, int]:
        processes = {"supervisor": self.supervisor_pid}
        processes |= {worker.name: worker.pid for worker in self._workers.values()}
        counted = {
            "children of the supervisor": len(children(self.supervisor_pid)),
            "workers": len(self.worker_pids()),
        }
        for kind, number in names_by_kind(self.bus).items():
            counted[f"names: {kind}"] = number
        for name, pid in processes.items():
            for kind, number in descriptors(pid).items():
                counted[f"{name}: {kind}"] = number
        return counted

    def _allowed(self, now: dict[str, int]) -> dict[str, int]:
        # Each may yet map the inbox of each, when it first sends there.
        members = len(self.view.members())
        return {k: v + members if k.endswith(SHARED) else v for k, v in now.items()}

    def rescued_now(self) -> int:
        """Return how often a worker was woken by the bound of its sleep, in this life."""
        return sum(
            self.view.word(member.inbox_id, layout.RESCUED_WAKEUPS)
            for member in self.view.workers().values()
        )

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
        for number, process in self._producers.items():
            try:
                code = process.wait(START_S)
            except subprocess.TimeoutExpired:
                self.fail(f"producer {number} does not leave")
            if code:
                self.fail(f"producer {number} ended with exit code {code}")
        self.stop_supervisor()

    def stop_supervisor(self) -> None:
        """Stop the bus with SIGTERM, and see that nothing is left."""
        self.end_supervisor()
        self._wait("I5: no worker is left", GONE_S, lambda: not self.worker_pids())
        left = names_by_kind(self.bus)
        if left:
            self.fail(f"I5: left in /dev/shm: {left}")

    def end_supervisor(self) -> None:
        """Stop the supervisor with SIGTERM."""
        process = self._supervisor
        assert process is not None
        process.terminate()
        said = self.read_line(process, START_S)
        if said != "stopped" or process.wait(START_S):
            self.fail(f"the supervisor did not stop well: {said!r}, {process.returncode}")

    # --- failing ----------------------------------------------------------------------------------

    def _wait(self, what: str, timeout_s: float, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"not within {timeout_s} s: {what}")
            time.sleep(TICK_S)

    def fail(self, what: str) -> None:
        """Raise Violation, with all that may help."""
        raise Violation(
            f"{what}\nseed {self.stage.seed}; play it again: {self.replay or '(see the test)'}\n"
            f"members: {self._describe_members()}\nlast faults:\n  "
            + "\n  ".join(self.faults)
            + "\nlast words:\n  "
            + "\n  ".join(self._last_words())
        )

    def _describe_members(self) -> str:
        if self._view is None:
            return "(no bus)"
        described = []
        for member in self._view.members():
            with contextlib.suppress(Exception):
                described.append(self._describe_member(member))
        return "; ".join(described)

    def _describe_member(self, member: Member) -> str:
        queued = self.view.queued(member.inbox_id)
        return f"{member.name} slot={member.slot} pid={member.pid} {member.state} queued={queued}"

    def _last_words(self) -> list[str]:
        self._errors.flush()
        text = (self.directory / "stderr").read_text(errors="replace")
        return text.splitlines()[-40:]


def environment(bus: str, directory: Path) -> dict[str, str]:
    """Return the environment of the processes of a scene that keeps its files in `directory`."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join([str(SOURCES), str(ROOT)]),
        # So many processes are started that compiling the modules for each would take longer
        # than anything else; in a place of its own, for the sources may be changed ones.
        "PYTHONPYCACHEPREFIX": str(directory / "compiled"),
        "AEMBUS_SCENE": bus,
    }


def new_seed() -> int:
    """Return a seed: that of AEMBUS_CRASH_SEED, or one by chance."""
    given = os.environ.get("AEMBUS_CRASH_SEED")
    return int(given) if given else random.SystemRandom().randrange(1 << 32)
