"""The whole life of a bus, in which somebody is killed, and what must be true afterwards.

A supervisor starts; a survivor joins and registers; a visitor joins, registers, sends, receives,
closes events and leaves with jobs queued; the supervisor is stopped.  All are forked from a warm
helper.  Killed is the visitor or the supervisor, before any line of aembus that it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgpack

import aembus
from aembus.control import ControlClient
from aembus.errors import AembusError
from aembus.shm import names
from aembus.supervisor.configuration import Configuration
from aembus.supervisor.core import run_supervisor
from aembus.supervisor.dead_letters import DeadLetters
from tests.crash.parent_death import die_with_parent
from tests.crash.points import lines
from tests.crash.points.board import Board

Role = Literal["visitor", "worker", "supervisor", "nobody"]

SECONDS_MAX: Final = 15.0
LANE_BYTES: Final = 4096
BATCH: Final = 4
SURVIVOR, VISITOR = 0, 1
ORPHANED: Final = 3  # exit code of a client whose supervisor is gone


class Victim(NamedTuple):
    """Who is killed before which line: `place` as lines.Lines names it, passed for the n-th time.

    file: nobody is killed, but the places that `role` comes by are written there.
    """

    role: Role
    place: str = ""
    passing: int = 1
    file: Path | None = None

    def trace(self, role: Role) -> None:
        """Begin to trace this process if it is the one."""
        if role != self.role:
            return
        if self.file is not None:
            lines.record(self.file)
        else:
            lines.kill_at(self.place, self.passing)


class Process:
    """A forked process; SIGALRM ends it if it takes too long."""

    def __init__(self, who: str, run: Callable[[], object]) -> None:
        self.who = who
        self.pid = os.fork()
        self.code: int | None = None
        if not self.pid:
            code = 1
            try:
                die_with_parent()
                signal.setitimer(signal.ITIMER_REAL, SECONDS_MAX)
                run()
                code = 0
            except (aembus.BusBroken, aembus.BusNotFound):
                code = ORPHANED
            except SystemExit as error:
                code = int(str(error.code))
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)

    def ended(self) -> bool:
        """Say whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self) -> int:
        """Wait for its end; return the exit code, or minus the signal."""
        if self.code is None:
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def expect(self, *codes: int) -> None:
        """Wait for one of these ends."""
        code = self.wait()
        assert code != -signal.SIGALRM, f"{self.who} has hung for {SECONDS_MAX} s"
        assert code in codes, f"{self.who} ended with {code}, not one of {codes}"

    def kill(self) -> None:
        """Make sure that it has ended."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


class Life:
    """Lives of one bus, one after the other.

    Args:
        bus: its name.
    """

    def __init__(self, bus: str) -> None:
        self._bus = bus
        self._board = Board()
        self._processes: list[Process] = []
        self._deaths = False  # of those who have jobs in hand

    def places(self, role: Role) -> list[str]:
        """Return the lines of aembus that a process comes by, in their order."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "places"
            self.run(Victim(role, file=file))
            return file.read_text().splitlines()

    def run(self, victim: Victim) -> bool:
        """Live one life; return whether somebody was killed.

        Raises AssertionError for a promise that was not kept.
        """
        self._board.clear()
        self._deaths = victim.role == "visitor"
        directory = Path(tempfile.mkdtemp())
        try:
            killed = self._run(victim, directory)
            left = names.leftovers(self._bus)
            files = [names.lock_path(self._bus), names.control_path(self._bus)]
            left += [path for path in files if path.exists()]
            assert not left, f"names left: {left}"
            return killed
        finally:
            for process in self._processes:
                process.kill()
            self._processes.clear()
            shutil.rmtree(directory)

    def _start(self, who: str, run: Callable[[], object]) -> Process:
        process = Process(who, run)
        self._processes.append(process)
        return process

    def _run(self, victim: Victim, directory: Path) -> bool:
        supervisor, ready = self._start_supervisor(victim, directory)
        if not ready:
            self._begin_again(supervisor, directory)
            return True
        survivor = self._start("the survivor", functools.partial(self._survive, victim))
        self._wait_until(lambda: self._board.up or supervisor.ended() or survivor.ended())
        visitor = self._start("the visitor", functools.partial(self._visit, victim))
        code = visitor.wait()
        if victim.role == "supervisor" and code == ORPHANED:
            survivor.expect(ORPHANED)
            self._begin_again(supervisor, directory)
            return True
        visitor.expect(0, *([-signal.SIGKILL] if victim.role == "visitor" else []))
        if not supervisor.ended():
            checker = self._start("the next client", functools.partial(self._check, directory))
            if victim.role == "supervisor":  # it may be killed while it serves this one
                checker.expect(0, ORPHANED)
            else:
                checker.expect(0)
        self._board.over = True
        survivor.expect(0, *([ORPHANED] if victim.role == "supervisor" else []))
        if not supervisor.ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor.pid, signal.SIGTERM)
        if victim.role == "supervisor" and supervisor.wait() == -signal.SIGKILL:
            self._begin_again(supervisor, directory)
            return True
        supervisor.expect(0)
        return code == -signal.SIGKILL

    def _begin_again(self, dead: Process, directory: Path) -> None:
        # The next supervisor starts at the first try, serves, and leaves nothing.
        dead.expect(-signal.SIGKILL)
        supervisor, ready = self._start_supervisor(Victim("nobody"), directory)
        assert ready, "the next supervisor did not start"
        self._board.clear()
        survivor = self._start("a new client", functools.partial(self._survive, Victim("nobody")))
        self._wait_until(lambda: self._board.up or survivor.ended())
        self._start("another client", functools.partial(self._check, directory)).expect(0)
        self._board.over = True
        survivor.expect(0)
        os.kill(supervisor.pid, signal.SIGTERM)
        supervisor.expect(0)

    @staticmethod
    def _wait_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not condition():
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.0005)

    # --- who is there ---------------------------------------------------------------------------

    def _start_supervisor(self, victim: Victim, directory: Path) -> tuple[Process, bool]:
        begin, end = os.pipe()
        configuration = Configuration(
            bus=self._bus,
            slots=8,
            lane_bytes=LANE_BYTES,
            registry_bytes=8192,
            stop_timeout_s=1.0,
            state_directory=str(directory),
        )

        def run() -> None:
            victim.trace("supervisor")
            asyncio.run(run_supervisor(configuration, lambda: void(os.write(end, b"r"))))

        process = self._start("the supervisor", run)
        os.close(end)
        ready = os.read(begin, 1) == b"r"
        os.close(begin)
        return process, ready

    def _survive(self, victim: Victim) -> None:
        with aembus.connect(self._bus) as bus:
            bus.register("ping", lambda event, number: bus.activate("pong", number))
            self._register_shared(bus, SURVIVOR)
            self._board.up = True
            while not self._board.over:
                bus.poll(0.05)

    def _register_shared(self, bus: aembus.Bus, who: int) -> aembus.Event:
        def shared(event: aembus.Event, number: int) -> None:
            self._board.mark(who, number)

        return bus.register("shared", shared, group="all", name="shared")

    def _visit(self, victim: Victim) -> None:
        victim.trace("visitor")
        bus = aembus.connect(self._bus)
        pongs: list[int] = []
        bus.register("pong", lambda event, number: pongs.append(number))
        shared = self._register_shared(bus, VISITOR)
        bus.register("once", lambda event: pongs.append(-1), once=True)
        self._send(bus)
        bus.activate("ping", 1)
        bus.activate("once")
        while len(pongs) < 2:
            bus.poll(0.05)
        bus.register("fail", _fail)
        bus.activate("fail")
        bus.poll(0.05)
        aembus.connect(self._bus).close()  # everybody has to acknowledge that this one goes
        self._send(bus)  # some of these wait here when the event is closed
        shared.close()
        bus.counter("calls").add()
        bus.poll(0)
        self._register_shared(bus, VISITOR)
        self._send(bus)  # and some when the bus is
        bus.close()

    def _send(self, bus: aembus.Bus) -> None:
        for _ in range(BATCH):
            assert bus.activate("shared", self._board.sent) == 1
            self._board.sent += 1

    def _check(self, directory: Path) -> None:
        # The others go on: a client joins, and is answered by the survivor.
        pongs: list[int] = []
        with aembus.connect(self._bus) as bus:
            bus.register("pong", lambda event, number: pongs.append(number))
            bus.activate("ping", 2)
            while 2 not in pongs:  # the visitor's may still come, if it has died
                bus.poll(0.05)
        # The visitor's slot is free again, and nothing is unaccounted for.
        control = ControlClient(self._bus)
        try:
            while not self._is_settled(control.request("statistics"), directory):
                time.sleep(0.002)
        finally:
            control.close()

    def _is_settled(self, statistics: dict[str, Any], directory: Path) -> bool:
        totals = statistics["totals"]
        if len(statistics["members"]) > 2 or totals["queued"]:
            return False
        assert totals["sent"] == totals["delivered"] + totals["dead_lettered"], totals
        shared = [x for x in DeadLetters(directory).read() if x["point"] == "shared"]
        buried = [msgpack.unpackb(letter["payload"])[0] for letter in shared]
        twice = []
        for number in range(self._board.sent):
            by_survivor, by_visitor = self._board.handled()[number]
            reached = by_survivor + by_visitor + buried.count(number)
            assert reached, f"job {number} of {self._board.sent} is lost"
            if reached > 1:
                twice.append((number, by_survivor, by_visitor, buried.count(number)))
        # Handled, or sent on to the survivor, and not marked so when the visitor died: for all that
        # anybody knows in hand, and so a dead letter.
        in_hand = all((first + second, letters) == (1, 1) for _, first, second, letters in twice)
        assert in_hand, f"had twice: {twice}"
        assert len(twice) <= self._deaths, f"had twice: {twice}"
        return True


def _fail(event: aembus.Event) -> None:
    raise RuntimeError("on purpose")


def void(_: object) -> None:
    """Return nothing."""


def try_places(
    run: Callable[[Victim], bool], role: Role, places: list[str]
) -> tuple[int, list[str]]:
    """Kill one role at each of these lines; return the number of kills, and what went wrong."""
    kills, wrong = 0, []
    for place in places:
        try:
            kills += run(Victim(role, place))
        except (AssertionError, AembusError, OSError) as error:
            wrong.append(f"{role} killed at {place!r}: {type(error).__name__}: {error}")
    return kills, wrong
