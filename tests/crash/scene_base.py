"""The processes of a scene: how they are started, looked at and ended; and how a scene fails.

What is done to them is in scene_faults, what is asked of them in scene.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Self

import msgpack

from aembus.routing import Member
from aembus.shm import layout
from aembus.supervisor.dead_letters import DeadLetters
from tests.crash.scene_accounts import Accounts, Letter, Sums
from tests.crash.scene_belongings import SUPERVISOR, Belongings
from tests.crash.scene_board import Board
from tests.crash.scene_log import POINTS, LogReader
from tests.crash.scene_stage import Stage, receiver_names, worker_names
from tests.crash.scene_view import View, children, spares

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = Path(os.environ.get("AEMBUS_SOURCES", ROOT))

READY_S: Final = 4.0  # for a replacement; the plan says 2, on a machine of its own
LATE: Final = 5  # times as long may take a single one, on a machine that has other things to do
GONE_S: Final = 10.0  # for workers after their supervisor's death
START_S: Final = 20.0
TICK_S: Final = 0.003
FAULTS_KEPT: Final = 25
WORDS_KEPT: Final = 150
STACKS_S: Final = 0.05


class Violation(AssertionError):
    """A promise was not kept."""


@dataclass(slots=True)
class ReceiverState:
    """What is known of one receiver: a worker, or a client with a name.

    pid, since: its process now, and how many jobs were finished when that was first seen running.
    killed_at: when it was killed; 0 once a replacement is ready.
    """

    name: str
    pid: int = 0
    since: int = 0
    running: bool = False
    killed_at: float = 0.0
    killed_pid: int = 0


class SceneBase:
    """One scene.  Use it as a context manager: what still runs at the end is killed.

    Args:
        bus: a name that nobody else has.
        directory: for logs, board and dead letters.
        seed: of what the clients send.
        workers, producers, callers, interrupted, serving: how many, see Stage.
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
        callers: int = 0,
        interrupted: int = 0,
        serving: int = 0,
        replay: str = "",
    ) -> None:
        self.directory = directory
        self.replay = replay
        self.stage = Stage(
            bus, str(directory), "", workers, producers, lane_bytes, slots, seed,
            stop_timeout_s, handler_timeout_s, raise_share, "WARNING",
            callers, interrupted, serving,
        )  # fmt: skip
        self.faults: deque[str] = deque(maxlen=FAULTS_KEPT)
        self.board = Board(directory / "board", len(self.stage.clients))
        self.sums = Sums()
        self.recoveries_ms: list[float] = []  # from a kill to the first job of the replacement
        self.ready_ms: list[float] = []
        self.probes_ms: list[float] = []
        self.rescued_wakeups = 0
        self.lives = 0
        self._logs = LogReader(directory)
        self._errors = (directory / "stderr").open("ab")
        self._clients: dict[int, subprocess.Popen[bytes]] = {}
        self._guests: dict[str, subprocess.Popen[bytes]] = {}
        self._guests_begun = 0
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._view: View | None = None
        self._receivers: dict[str, ReceiverState] = {}
        self._stopped: set[int] = set()
        self._killed_at_ns: dict[str, int] = {}  # worker → when, until its replacement runs
        self._replaced_at_ns: dict[int, int] = {}  # PID of a replacement → the same
        self._belongings = Belongings(
            self.bus,
            self._pids,
            lambda: len(self.worker_pids()),
            lambda: len(self.view.members()),
            1 + interrupted + serving,
        )
        self.accounts = Accounts()
        self._letters_read = 0

    # --- beginning and end ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start_supervisor()
            for number in range(len(self.stage.clients)):
                self._spawn_client(number)
            self._wait("clients connect", START_S, self._all_connected)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.board.end()
        processes = [*self._clients.values(), *self._guests.values()]
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
        # Workers that do not end, and what was started when Ctrl-C came, and is not known here.
        while left := self._pids_of_scene():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(TICK_S)
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
        self._receivers = {n: ReceiverState(n) for n in receiver_names(self.stage)}
        self._killed_at_ns.clear()
        self._replaced_at_ns.clear()
        self._belongings.forget()
        self.look()

    def read_line(self, process: subprocess.Popen[bytes], timeout_s: float) -> str:
        """Return the next line that a process says, "" if it ends."""
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], timeout_s)
        if not readable:
            self.fail(f"no word in {timeout_s} s from {process.args!r}")
        return process.stdout.readline().decode().strip()

    def _spawn_client(self, number: int) -> None:
        process = self.spawn("client", str(number))
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        self._clients[number] = process

    def _all_connected(self) -> bool:
        for number, process in self._clients.items():
            if process.poll() is not None:
                who = f"{self.stage.clients[number]} {number}"
                self.fail(f"{who} ended by itself, exit code {process.returncode}")
        return all(self.board.connected(n) == p.pid for n, p in self._clients.items())

    # --- looking ----------------------------------------------------------------------------------

    def receivers(self) -> dict[str, Member]:
        """Return those who receive and have a name, by name, as the registry shows them now."""
        return {m.name: m for m in self.view.members() if m.name in self._receivers}

    def look(self) -> None:
        """Take note of what has become of the receivers; fail if a replacement takes too long."""
        now = time.monotonic()
        for name, member in self.receivers().items():
            receiver = self._receivers[name]
            running = member.state == "running" and member.pid != receiver.killed_pid
            if running and member.pid != receiver.pid:
                receiver.pid, receiver.since = member.pid, self.view.finished(member.inbox_id)
                if name in self._killed_at_ns:
                    self._replaced_at_ns[member.pid] = self._killed_at_ns.pop(name)
                if receiver.killed_at:
                    if member.kind == "worker":
                        self.ready_ms.append((now - receiver.killed_at) * 1000)
                    receiver.killed_at = 0.0
            receiver.running = running
            waiting_s = now - receiver.killed_at if receiver.killed_at else 0.0
            if waiting_s > LATE * READY_S and not self._stopped:
                self.fail(f"I6: no replacement of {name} in {LATE * READY_S} s")
        assert self._supervisor is not None
        if self._supervisor.poll() is not None:
            self.fail(f"the supervisor ended, exit code {self._supervisor.returncode}")

    def receivers_at_work(self) -> list[str]:
        """Return the receivers that have finished a job since they were started."""
        members = self.receivers()
        return [
            receiver.name
            for receiver in self._receivers.values()
            if receiver.running
            and receiver.pid not in self._stopped
            and self.view.finished(members[receiver.name].inbox_id) > receiver.since
        ]

    def workers_at_work(self) -> list[str]:
        """Return the workers that have finished a job since they were started."""
        workers = worker_names(self.stage)
        return [name for name in self.receivers_at_work() if name in workers]

    def senders_connected(self) -> list[int]:
        """Return the producers and callers that are on the bus."""
        return [
            number
            for number, process in self._clients.items()
            if number < self.stage.senders
            and self.board.connected(number) == process.pid
            and process.pid not in self._stopped
        ]

    def _pids(self) -> dict[str, int]:
        receivers = {receiver.name: receiver.pid for receiver in self._receivers.values()}
        return {SUPERVISOR: self.supervisor_pid, **receivers}

    def worker_pid(self, name: str) -> int:
        """Return the PID of a worker's, or another receiver's, process now."""
        return self._receivers[name].pid

    def producer_pid(self, number: int) -> int:
        """Return the PID of a producer's, or another client's, process now."""
        return self._clients[number].pid

    def workers_starting(self) -> list[int]:
        """Return the PIDs of the supervisor's children that are not running workers yet."""
        known = {worker.pid for worker in self._receivers.values()}
        known |= {worker.killed_pid for worker in self._receivers.values()}
        return sorted(children(self.supervisor_pid) - known - spares(self.supervisor_pid))

    def spares(self) -> list[int]:
        """Return the PIDs of the processes that wait to replace a worker."""
        return sorted(spares(self.supervisor_pid))

    def worker_pids(self) -> set[int]:
        """Return the PIDs of all workers of this scene that run, whoever is their parent."""
        return self._pids_of_scene(b"aembus.worker")

    def _pids_of_scene(self, *words: bytes) -> set[int]:
        # Those that run with these words in their command line.
        mark = f"AEMBUS_SCENE={self.bus}".encode()
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_bytes().split(b"\0")
                if all(word in command for word in words):
                    if mark in (path / "environ").read_bytes().split(b"\0"):
                        found.add(int(path.name))
        return found

    # --- what was written down --------------------------------------------------------------------

    def take_logs(self) -> None:
        """Take in what the members have written down since the last time."""
        self.accounts.inboxes |= {n: m.inbox_id for n, m in self.receivers().items()}
        for name, entries in self._logs.new_entries():
            self.accounts.take(name, entries)
        for letter in self._new_letters():
            self.accounts.take_letter(letter)
        for pid, killed_at_ns in list(self._replaced_at_ns.items()):
            first_at_ns = self.accounts.first_by_pid.get(pid)
            if first_at_ns is not None:
                self.recoveries_ms.append((first_at_ns - killed_at_ns) / 1e6)
                del self._replaced_at_ns[pid]

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

    def rescued_now(self) -> int:
        """Return how often a worker was woken by the bound of its sleep, in this life."""
        return sum(
            self.view.word(member.inbox_id, layout.RESCUED_WAKEUPS)
            for member in self.receivers().values()
        )

    # --- failing ----------------------------------------------------------------------------------

    def _wait(self, what: str, timeout_s: float, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"not within {timeout_s} s: {what}")
            time.sleep(TICK_S)

    def fail(self, what: str) -> NoReturn:
        """Raise Violation, with all that may help; the bus's memory is copied to `directory`."""
        self._ask_for_stacks()
        self._copy_segments()
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

    def _ask_for_stacks(self) -> None:
        processes = [*self._clients.values(), *self._guests.values()]
        if self._supervisor is not None:
            processes.append(self._supervisor)
        for process in processes:
            if process.poll() is None:
                with (self.directory / "stderr").open("a") as file:
                    file.write(f"stacks of pid {process.pid}:\n")
                process.send_signal(signal.SIGQUIT)
                time.sleep(STACKS_S)  # no more than a courtesy

    def _copy_segments(self) -> None:
        copies = self.directory / "segments"
        copies.mkdir(exist_ok=True)
        for segment in Path("/dev/shm").glob(f"aembus.{self.bus}.*"):
            with contextlib.suppress(OSError):  # it may go while it is copied
                shutil.copy(segment, copies)

    def _last_words(self) -> list[str]:
        self._errors.flush()
        text = (self.directory / "stderr").read_text(errors="replace")
        return text.splitlines()[-WORDS_KEPT:]


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
