"""One case: a victim, a point, a fault, and what must be true afterwards.

The checks know the promises and nothing of any particular fault: the others exchange jobs, all of
them; what is accounted for by the lanes' own words is what receivers have seen, in order, whole,
and twice only where it is marked; an activation wakes all or none, unless its process was killed;
whoever only starts has taken nothing in hand.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from aembus.shm import layout
from aembus.shm.lane import LaneCounts
from tests.crash.parent_death import die_with_parent
from tests.crash.points.ledger import BEGAN, BURIED, ENDED, SENT, Entry
from tests.crash.points.scenarios import DRAINED, SCENARIOS, Members, boot, own_bus
from tests.crash.points.steps import KILL, STOP, Bytecodes, Layer
from tests.crash.points.world import (
    BYSTANDER,
    CONSUMER,
    LAST,
    PRODUCER,
    SECOND,
    World,
)
from tests.support import interruption

Fault = Literal["none", "kill", "stop", "interrupt"]

PROGRESS_S: Final = 5.0  # the promise is one second; what hangs here hangs for ever
ORIGINS: Final = (PRODUCER, BYSTANDER)
CONSUMERS: Final = (CONSUMER, SECOND)


class Case(NamedTuple):
    """What happens: a fault at a point of the act; and more, if the victim's replacement dies too.

    points: the number of the victim's point, then of its replacement's, and so on.
    """

    fault: Fault
    points: tuple[int, ...]


class Walk(NamedTuple):
    """All points of one act.

    total: how many there are.
    changes: the points at which the shared memory is not what it was at the one before.
    """

    total: int
    changes: dict[int, str]

    def chosen(self, every: int) -> list[int]:
        """Return the points around each change, and every n-th of all."""
        around = {place for n in self.changes for place in (n - 1, n)}
        return sorted({*around, *range(1, self.total + 1, every), self.total} - {0})


_living: Final[set[int]] = set()


def end_children() -> None:
    """Kill the forked processes that a broken promise has left, stopped ones above all."""
    for pid in tuple(_living):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _living.discard(pid)


class Child:
    """A forked process; ends by itself, or by SIGALRM when it has waited for too long."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.pid = os.fork()
        _living.add(self.pid)
        if not self.pid:
            status = 1
            try:
                die_with_parent()
                signal.setitimer(signal.ITIMER_REAL, PROGRESS_S)
                run()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

    def wait(self) -> int:
        """Wait for its end, or until it is stopped; return the exit code, or minus the signal."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return -os.WSTOPSIG(status)
        _living.discard(self.pid)
        return os.waitstatus_to_exitcode(status)

    def expect(self, code: int, who: str) -> None:
        """Wait for a certain end or stop."""
        ended = self.wait()
        if ended == -signal.SIGALRM:
            raise AssertionError(f"no progress within {PROGRESS_S} s: {who}")
        assert ended == code, f"{who} ended with {ended}, not {code}"


class Stage:
    """One scenario in one state of the lane: everything that its cases have in common."""

    def __init__(self, world: World, scenario: str, state: str, layer: Layer | None = None) -> None:
        self._world = world
        self._layer = layer or Bytecodes()
        self.scenario = SCENARIOS[scenario]
        world.restore(world.blank)
        world.ledger.clear()
        self._members = Members(world, state)
        self.scenario.prepare(self._members)
        if self.scenario.sleeps and state in DRAINED:
            self._members.fall_asleep()
        self._intended = {slot: world.ledger.intended(slot) for slot in ORIGINS}
        self._image = world.image()
        gc.collect()

    def close(self) -> None:
        """Let go of the members."""
        self._members.close()
        self._world.ledger.clear()

    def _begin(self) -> None:
        self._world.restore(self._image)
        self._world.ledger.clear()
        for slot, number in self._intended.items():
            self._world.ledger.set_intended(slot, number)

    # --- the points -----------------------------------------------------------------------------

    def walk(self, killed_at: tuple[int, ...] = ()) -> Walk:
        """Run the act without a fault and return its points.

        Args:
            killed_at: first kill the victim, and its replacements, there; the act is then the
                next replacement's.
        """
        self._begin()
        for generation, point in enumerate(killed_at):
            self._kill(generation, point)
        begin, end = os.pipe()
        child = Child(functools.partial(self._record, len(killed_at), end))
        os.close(end)
        with open(begin) as lines:
            found = [line.rstrip("\n").partition(" ") for line in lines]
        child.expect(0, "the walk")
        (total, _, _), changes = found[-1], found[:-1]
        return Walk(int(total), {int(number): where for number, _, where in changes})

    def _record(self, generation: int, pipe: int) -> None:
        gc.disable()
        world, last = self._world, self._world.image()

        def at(number: int, where: str) -> None:
            nonlocal last
            if world.differs(last):
                last = world.image()
                os.write(pipe, f"{number} {where}\n".encode())

        total = self._layer.run(self._act(generation), at)
        os.write(pipe, f"{total}\n".encode())

    def _act(self, generation: int) -> Callable[[], object]:
        act = boot if generation else self.scenario.act
        return functools.partial(act, self._members)

    # --- the faults -----------------------------------------------------------------------------

    def run(self, case: Case) -> None:
        """Run one case.  Raises AssertionError for a promise that was not kept."""
        try:
            self._run(case)
        except AssertionError:
            self._check_inboxes()  # says more than that somebody has got nowhere because of it
            raise
        finally:
            end_children()

    def _run(self, case: Case) -> None:
        self._begin()
        before = {lane: self._world.counts(*lane) for lane in _lanes()}
        deaths = 0
        if case.fault == "kill":
            for generation, point in enumerate(case.points):
                self._kill(generation, point)
            deaths = len(case.points)
            self._survive(killed=True)
        else:
            self._hurt(case, before)
        self._check(before, deaths if self.scenario.victim == CONSUMER else 0, case.fault)

    def _kill(self, generation: int, point: int) -> None:
        world = self._world
        world.ledger.taking = False
        before = world.image()
        act = self._act(generation)

        def run() -> None:
            gc.disable()
            self._layer.run_to(act, point, KILL)

        Child(run).expect(-signal.SIGKILL, f"the victim at point {point}")
        if (generation or self.scenario.boots) and not world.ledger.taking:
            untouched = world.lanes_alone(before) == world.lanes_alone(world.image())
            assert untouched, "a process that has not asked for jobs has changed its lanes"

    def _hurt(self, case: Case, before: dict[tuple[int, int], LaneCounts]) -> None:
        # The victim lives on: it is stopped for a while, or interrupted, or nothing happens to it.
        world, members = self._world, self._members
        point = case.points[0] if case.points else 0
        is_producer = self.scenario.victim == PRODUCER
        act = self._act(0)

        def run() -> None:
            gc.disable()
            if case.fault == "interrupt":
                _interrupted(act, point)
            else:
                self._layer.run_to(act, point if case.fault == "stop" else 0, STOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            if is_producer:
                self._send_last(members, PRODUCER)
            else:
                self._receive(members, CONSUMER, set(ORIGINS))

        victim = Child(run)
        others: list[tuple[str, Child]] = []
        if case.fault == "stop":
            victim.expect(-signal.SIGSTOP, f"the victim at point {point}")
            others = self._others(is_producer)
            self._progress_beside(is_producer)
            os.kill(victim.pid, signal.SIGCONT)
        victim.expect(-signal.SIGSTOP, "the victim after its act")
        if members.asleep and case.fault in ("none", "interrupt"):
            for consumer in CONSUMERS:
                news = world.counts(consumer, PRODUCER).sent - before[consumer, PRODUCER].sent
                asleep = world.word(consumer, layout.SLEEPING)
                if news and asleep:
                    assert world.posts(consumer), f"nobody woke slot {consumer} for {news} jobs"
        os.kill(victim.pid, signal.SIGCONT)
        for who, child in [*(others or self._others(is_producer)), ("the victim", victim)]:
            child.expect(0, who)

    def _progress_beside(self, is_producer: bool) -> None:
        # While the victim is stopped the bystander's jobs are accepted, and delivered if they can.
        deadline = time.monotonic() + PROGRESS_S
        world = self._world
        while True:
            done = (
                world.finished_last({BYSTANDER}, CONSUMER)
                if is_producer
                else sum(e.what == SENT and e.origin == BYSTANDER for e in world.ledger.entries())
                >= 2
            )
            if done:
                return
            assert time.monotonic() < deadline, "no progress beside a stopped process"
            time.sleep(0.0005)

    # --- the survivors --------------------------------------------------------------------------

    def _survive(self, *, killed: bool) -> None:
        for who, child in self._others(None if killed else self.scenario.victim == PRODUCER):
            child.expect(0, who)

    def _others(self, victim_lives_as_producer: bool | None) -> list[tuple[str, Child]]:
        members, scenario = self._members, self.scenario
        consumer_dead = victim_lives_as_producer is None and scenario.victim == CONSUMER
        producer_dead = victim_lives_as_producer is None and scenario.victim == PRODUCER
        children = []

        def produce() -> None:
            self._send_last(members, BYSTANDER)
            if victim_lives_as_producer is True:
                return
            if producer_dead:
                members.producer = self._world.member(PRODUCER)
            self._send_last(members, PRODUCER)

        def consume() -> None:
            if consumer_dead:
                members.consumer = self._world.member(CONSUMER)
            self._receive(members, CONSUMER, set(ORIGINS))

        if victim_lives_as_producer is not False:
            children.append(("the consumer", Child(consume)))
        if scenario.jobs > 1:
            second = functools.partial(self._receive, members, SECOND, set(ORIGINS))
            children.append(("the second consumer", Child(second)))
        children.append(("the producers", Child(produce)))
        return children

    def _send_last(self, members: Members, slot: int) -> None:
        bus = own_bus(members, slot)
        self._world.send(bus, self.scenario.point)
        made = self._world.send(bus, self.scenario.point, LAST)
        assert made == self.scenario.jobs, f"slot {slot} woke {made}"

    def _receive(self, members: Members, slot: int, origins: set[int]) -> None:
        bus = own_bus(members, slot)
        while not self._world.finished_last(origins, slot):
            bus.poll(0.1)

    # --- the promises ---------------------------------------------------------------------------

    def _check_inboxes(self) -> None:
        for consumer in CONSUMERS:
            assert self._world.word(consumer, layout.CORRUPTED) == 0, "a lane was corrupt"
            assert self._world.word(consumer, layout.FAILED) == 0, "a handler failed"

    def _check(self, before: dict[tuple[int, int], LaneCounts], deaths: int, fault: Fault) -> None:
        self._check_inboxes()
        world = self._world
        entries = world.ledger.entries()
        arrived: dict[tuple[int, int], set[int]] = {}
        retried = set()
        for lane in _lanes():
            own = [e for e in entries if (e.consumer, e.origin) == lane and e.what != SENT]
            if lane[0] == SECOND and self.scenario.jobs == 1:
                continue
            _check_accounts(lane, own, before[lane], world.counts(*lane))
            _check_order(lane, own)
            retried |= {(lane, e.sequence) for e in own if e.attempt > 1}
            worst = max((e.attempt for e in own), default=1)
            assert worst <= 1 + deaths, f"{worst} attempts after {deaths} deaths, lane={lane}"
            for entry in own:
                if entry.what in (ENDED, BURIED):
                    arrived.setdefault((entry.origin, entry.number), set()).add(entry.consumer)
        assert len(retried) <= deaths, f"in hand at {deaths} deaths: {retried}"
        self._check_sent(entries, arrived, fault)

    def _check_sent(
        self, entries: list[Entry], arrived: dict[tuple[int, int], set[int]], fault: Fault
    ) -> None:
        sent = {(e.origin, e.number): e.attempt for e in entries if e.what == SENT}
        floors = {slot: self._intended[slot] for slot in ORIGINS}
        for job, jobs in sent.items():
            reached = len(arrived.get(job, ()))
            assert reached == jobs, f"job {job} made {jobs} and reached {reached}"
        for (slot, number), consumers in arrived.items():
            assert number <= self._world.ledger.intended(slot), "a job that nobody sent"
            new = number > floors[slot]
            if new and (slot, number) not in sent:  # its activation did not return
                whole = len(consumers) == self.scenario.jobs
                assert whole or fault == "kill", f"half of activation {number} was published"
        for slot in ORIGINS:
            delivered = sum(1 for s, number in sent if s == slot)
            assert delivered >= 2, f"slot {slot} has sent {delivered} jobs only"


def _lanes() -> list[tuple[int, int]]:
    return [(consumer, origin) for consumer in CONSUMERS for origin in ORIGINS]


def _check_accounts(
    lane: tuple[int, int], own: list[Entry], before: LaneCounts, now: LaneCounts
) -> None:
    # Sent is delivered and dead-lettered and queued: by the lane's words, and by its receivers.
    assert now.queued == 0, f"{now.queued} jobs are left, lane={lane}"
    ended = {e.sequence for e in own if e.what == ENDED}
    buried = {e.sequence for e in own if e.what == BURIED}
    due = set(range(before.finished + 1, now.sent + 1))
    # What was ended before its owner died between the handler's end and DONE may come once more.
    assert ended | buried == due, (
        f"lost={sorted(due - ended - buried)}, invented={sorted((ended | buried) - due)}, "
        f"lane={lane}, sent={now.sent}"
    )
    assert now.dead_lettered - before.dead_lettered == len(buried), f"dead letters, lane={lane}"
    assert now.sent == now.delivered + now.dead_lettered + now.forwarded
    damaged = [e.number for e in own if not e.whole]
    assert not damaged, f"damaged={damaged}, lane={lane}"


def _check_order(lane: tuple[int, int], own: list[Entry]) -> None:
    last = (0, 0)
    numbers: dict[int, int] = {}
    for entry in own:
        if entry.what == BEGAN:
            this = (entry.sequence, entry.attempt)
            is_next = this[0] > last[0] or (this[0] == last[0] and this[1] > last[1])
            assert is_next, f"{this} (sequence, attempt) after {last}, lane={lane}"
            last = this
        if entry.what != BURIED:
            numbers[entry.sequence] = entry.number
    in_order = [number for _, number in sorted(numbers.items())]
    rising = all(a < b for a, b in itertools.pairwise(in_order))
    assert rising, f"numbers={in_order}, lane={lane}"


def _interrupted(act: Callable[[], object], point: int) -> None:
    with interruption.handler(signal.SIGUSR1, interruption.interrupt):
        try:
            with interruption.At({point: interruption.Arrival(signal.SIGUSR1)}):
                act()
        except KeyboardInterrupt:
            pass
