"""The turns of a host's event loop: take calls, let services work, flush, sleep.

Members' calls arrive in the host's own inbox, whose doorbell is a descriptor in the event loop.
When nothing is left a turn announces the sleep like any consumer.

Calls of numbers wait for nothing and come many together: after a turn that had nothing else to do,
what comes next of them is taken together, a millisecond later.  Any other call ends that pause.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from typing import Final, Protocol

from aembus.sender import Sender
from aembus.services.base import Caller
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from aembus.shm.lane import CorruptLane
from aembus.shm.lanes import LaneConsumer, Record
from aembus.shm.sleeper import SLEEP_S_MAX

log = logging.getLogger("aembus")

NS: Final = 1_000_000_000
COALESCE_NS: Final = 1_000_000  # for so long calls of numbers gather
NUMBERS_A_TURN: Final = 1024  # calls of numbers from one lane: they cost half a microsecond each


class Work(Protocol):
    """What is done in a turn."""

    def may_take(self) -> bool:
        """Say whether calls may be taken now; else they stay in their lanes."""

    def take(self, record: Record) -> None:
        """Take a call."""

    def take_one_way(self, lane: LaneConsumer, budget: int) -> int:
        """Take the calls that give no answer and are next in a lane; return how many."""

    def take_numbers(self, call_id: int, caller: Caller, numbers: array[int]) -> None:
        """Take calls of numbers."""

    def work(self, now_ns: int) -> int:
        """Do what is due, and flush; return how much was due."""

    def next_due_ns(self) -> int | None:
        """Return when a turn is wanted although nobody calls."""

    def waits(self) -> bool:
        """Say whether something waits for room in a lane."""


class Turns:
    """The event loop's side of one inbox.

    Args:
        inbox, sender: this process's two sides.
        work: what is done.
    """

    def __init__(self, inbox: Inbox, sender: Sender, work: Work) -> None:
        self._inbox = inbox
        self._sender = sender
        self._work = work
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._wake_ns = 0  # when that is due
        self._bound: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._coalescing = False
        self._stopped = False

    def start(self, descriptor: int) -> None:
        """Begin to take calls.

        Args:
            descriptor: of the inbox's doorbell.
        """
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._loop.add_reader(descriptor, self._on_bell)
        self.schedule()

    def schedule(self) -> None:
        """Have a turn soon."""
        if self._loop is not None and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run_scheduled)

    def _on_bell(self) -> None:
        self._inbox.end_sleep()
        self._run()

    def _run_scheduled(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        self._inbox.stay_awake()
        self._run()

    def _run(self) -> None:
        calls, numbers = self._take()
        self._coalescing = numbers > 0 and not calls and self._may_coalesce()
        worked = self._work.work(time.monotonic_ns())
        # What has come meanwhile is found when the sleep is announced: no turn is taken in vain.
        if worked or not (self._coalescing or self._inbox.announce_sleep(self._has_calls)):
            self._inbox.stay_awake()
            self.schedule()
        elif self._bound is None:
            self._sleep_bounded()
        self._set_wake()

    def _may_coalesce(self) -> bool:
        """Have no post made for calls of numbers; False if there is too much to do for that."""
        self._inbox.announce_sleep_without_numbers()
        calls, numbers = self._take()  # what came before that
        return not calls and numbers < NUMBERS_A_TURN

    def _has_calls(self) -> bool:
        return self._inbox.has_jobs() and self._work.may_take()

    def _sleep_bounded(self) -> None:
        assert self._loop is not None
        self._bound = self._loop.call_later(SLEEP_S_MAX, self._on_bound)

    def _on_bound(self) -> None:
        self._bound = None
        rescued = not self._scheduled and not self._coalescing and self._has_calls()
        self._inbox.watch_for_lost_posts(rescued)
        if rescued or self._work.waits():
            self.schedule()
        else:
            self._sleep_bounded()

    def _set_wake(self) -> None:
        assert self._loop is not None
        due_ns = self._work.next_due_ns()
        if self._coalescing:
            soon_ns = time.monotonic_ns() + COALESCE_NS
            due_ns = soon_ns if due_ns is None else min(due_ns, soon_ns)
        if self._wake is not None:
            if due_ns == self._wake_ns:
                return  # as in most turns
            self._wake.cancel()
            self._wake = None
        if due_ns is not None:
            delay_s = max(due_ns - time.monotonic_ns(), 0) / NS
            self._wake = self._loop.call_later(delay_s, self._on_wake)
            self._wake_ns = due_ns

    def _on_wake(self) -> None:
        self._wake = None
        self.schedule()

    def take_calls(self) -> int:
        """Take what the lanes hold, within their budgets; return how much that was."""
        return sum(self._take())

    def _take(self) -> tuple[int, int]:
        """Take what the lanes hold; return how many calls, and how many calls of numbers."""
        if not self._work.may_take():
            return 0, 0
        calls = all_numbers = 0
        for lane, budget in self._inbox.turn():
            if not lane.has_records():
                continue
            numbers = self._take_numbers(lane)
            all_numbers += numbers
            left = budget if numbers < NUMBERS_A_TURN else 0
            while left > 0:
                try:
                    one_way = self._work.take_one_way(lane, left)
                    calls += one_way
                    left -= one_way
                    record = lane.take() if left > 0 else None
                except CorruptLane as error:
                    self._inbox.give_up(lane, error)
                    break
                if record is None:
                    break
                left -= 1
                is_numbers = bool(record.flags & layout.FLAG_NUMBERS)
                calls += not is_numbers
                all_numbers += is_numbers
                lane.start(record)
                if record.kind == layout.KIND_CALL:
                    self._work.take(record)
                else:
                    log.error("this host got a record of kind %d", record.kind)
                lane.done(record)
                if is_numbers:  # more of them are likely behind it
                    all_numbers += self._take_numbers(lane)
        if calls or all_numbers:
            for slot in self._inbox.producers_wanting_room():
                self._sender.ring(slot)
        return calls, all_numbers

    def _take_numbers(self, lane: LaneConsumer) -> int:
        """Take the calls of numbers that are next in a lane; return how many."""
        taken = 0
        while taken < NUMBERS_A_TURN:
            batch = self._inbox.take_numbers(lane, NUMBERS_A_TURN - taken)
            if batch is None:
                break
            call_id, slot, incarnation, numbers = batch
            taken += len(numbers) // 2
            self._work.take_numbers(call_id, Caller(slot, incarnation), numbers)
        return taken

    def stop(self) -> None:
        """Take no more calls."""
        self._stopped = True
        if self._loop is None:  # not begun yet
            return
        self._loop.remove_reader(self._descriptor)
        for handle in (self._wake, self._bound):
            if handle is not None:
                handle.cancel()
