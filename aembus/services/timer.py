"""The timer service: says when timers are due, to the processes that started them or at points.

Runs in the event loop of its host.  A timer with a handler belongs to one process (slot and
incarnation), where its handler and data stay, and is dropped at once when that process is gone.
The plain ones, that fire once and after a delay, are an id in a wheel of that process and nothing
more: there may be millions.  All others are entries of the book: a timer with a point holds the
encoded data and fires whoever lives then; one with a name exists once on the bus.

Starts and cancels of plain timers, and their expiries, are records of two numbers (`numbers_call`):
many of them are taken and sent in one step.  Where a process's inbox is full its expired ids wait
here.  One clock is CLOCK_MONOTONIC; `at` goes by the wall clock, which may be set at any time.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from aembus.errors import AembusError
from aembus.numbers_route import NumbersRoute
from aembus.sender import FULL
from aembus.services.base import Caller, HandOver, Host, Service, call, numbers_call
from aembus.shm import layout

from .gone import Gone
from .slip import SlipHistogram
from .timer_book import TICK_NS, Entry, TimerBook, tick_of
from .wheel import TimingWheel

log = logging.getLogger("aembus")

EXPIRIES_A_TURN: Final = 1000  # then the other work of the loop has its turn
NEVER: Final = 1 << 62  # a tick
OWED_AGAIN_NS: Final = 20_000_000  # after that, what found no room is tried again at the latest


class _Owner:
    """A process and its plain timers.

    owed: ids that have expired and found no room in its inbox.
    paid: how many it has been told of.
    wants_room: the flag in its lane is raised.
    next_due: a tick; nothing is due before.
    """

    __slots__ = ("caller", "next_due", "owed", "paid", "route", "wants_room", "wheel")

    def __init__(self, caller: Caller, route: NumbersRoute, wheel: TimingWheel) -> None:
        self.caller = caller
        self.route = route
        self.wheel = wheel
        self.owed: deque[int] = deque()
        self.paid = 0
        self.wants_room = False
        self.next_due: int | None = None


class TimerService(Service):
    """Service "timer", version 1."""

    name = "timer"
    version = "1"
    client = "aembus.services.timer_client:TimerClient"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._owners: dict[Caller, _Owner] = {}
        self._gone = Gone()
        self._book = TimerBook(*self._now())
        self._slip = SlipHistogram()
        self._closing = False
        self._expired = 0
        self._dropped = 0

    def _now(self) -> tuple[int, int]:
        return self.host.now_ns() // TICK_NS, self.host.wall_ns() // TICK_NS

    # --- calls ----------------------------------------------------------------------------------

    @numbers_call
    def set(self, caller: Caller, numbers: Sequence[int]) -> None:
        """Start and cancel plain timers with handlers in the caller's process.

        Args:
            numbers: pairs of a timer's id and the tick at which it is due, or 0 to cancel it.
        """
        owner = self._owners.get(caller) or self._add_owner(caller)
        if owner is None:
            return
        try:
            owner.wheel.set_all(numbers)
        except (OverflowError, ValueError):  # one is wrong: all others are seen to
            _set_one_by_one(owner.wheel, numbers)
        due_before, owner.next_due = owner.next_due, owner.wheel.next_due()
        if owner.next_due is not None and owner.next_due < (due_before or NEVER):
            self.host.work_is_due(self)

    @call
    def start_handler(
        self, caller: Caller, starter_id: int, due_ns: int, period_ns: int, wall: bool
    ) -> None:
        """Start another timer whose handler is in the caller's process."""
        if self._owners.get(caller) or self._add_owner(caller):
            self._add(Entry(*caller, starter_id, due_ns, period_ns, wall))

    @call
    def start_point(
        self,
        caller: Caller,
        starter_id: int,
        due_ns: int,
        period_ns: int,
        wall: bool,
        point: str,
        payload: bytes,
        key_hash: int | None,
        name: str | None,
    ) -> None:
        """Start a timer that activates a point; of one name only the first is started."""
        entry = Entry(*caller, starter_id, due_ns, period_ns, wall, point, payload, key_hash, name)
        self._add(entry)

    @call
    def cancel(self, caller: Caller, starter_id: int, name: str | None) -> None:
        """Stop a timer that is no plain one, if it still runs."""
        self._book.cancel(caller, starter_id, name)

    def _add(self, entry: Entry) -> None:
        if self._book.add(entry):
            self.host.work_is_due(self)

    def _add_owner(self, caller: Caller) -> _Owner | None:
        # What a process sent before it died may arrive after that.
        if caller in self._gone:
            self._dropped += 1
            return None
        owner = _Owner(caller, self._route(caller), TimingWheel(self._now()[0]))
        self._owners[caller] = owner
        return owner

    def _route(self, caller: Caller) -> NumbersRoute:
        return self.host.numbers_route(caller.slot, layout.KIND_TIMER, caller.incarnation)

    # --- the host asks --------------------------------------------------------------------------

    def next_due_ns(self) -> int | None:
        """See Service."""
        if self._closing:
            return None
        due = NEVER
        for owner in self._owners.values():
            if owner.owed:  # and nothing else of it before there is room
                due = min(due, (self.host.now_ns() + OWED_AGAIN_NS) // TICK_NS)
            elif owner.next_due is not None and owner.next_due < due:
                due = owner.next_due
        if len(self._book):
            if (book_due := self._book.next_due()) is not None:
                due = min(due, book_due)
            if (wall_due := self._book.next_wall_due()) is not None:
                ahead_ns = wall_due * TICK_NS - self.host.wall_ns()
                due = min(due, tick_of(self.host.now_ns() + ahead_ns))
        return None if due == NEVER else due * TICK_NS

    def do_work(self, now_ns: int) -> int:
        """Fire what is due."""
        if self._closing:
            return 0
        worked = 0
        now = now_ns // TICK_NS
        limit = max(EXPIRIES_A_TURN // (len(self._owners) or 1), 1)
        for owner in self._owners.values():
            if owner.owed or (owner.next_due is not None and owner.next_due <= now):
                worked += self._expire(owner, now, limit)
        if len(self._book):
            wall_now = self.host.wall_ns() // TICK_NS
            for tick, entry in self._book.expire(now, wall_now, limit):
                worked += 1
                self._slip.add(((wall_now if entry.wall else now) - tick) * (TICK_NS // 1000))
                self._fire(entry)
        return worked

    def _expire(self, owner: _Owner, now: int, limit: int) -> int:
        worked = self._pay(owner)
        if owner.owed:
            return worked  # and what else is due waits in the wheel
        batches = owner.wheel.advance(now, limit)
        for _, ids in batches:
            owner.owed += ids
        fired = self._pay(owner)
        slipped_ns = self.host.now_ns()
        for tick, ids in batches:
            self._slip.add((slipped_ns - tick * TICK_NS) // 1000, len(ids))
            self._expired += len(ids)
        owner.next_due = owner.wheel.next_due()
        return worked + fired

    def _pay(self, owner: _Owner) -> int:
        """Tell the owner of its expired timers, as many as there is room for; return how many."""
        owed, route = owner.owed, owner.route
        paid = 0
        publisher = route.publisher
        while owed:
            if publisher is None or not publisher.publish_numbers(owed[0], 0):
                if self._try_send(owner, owed[0]) == FULL:
                    break
                publisher = route.publisher
            owed.popleft()
            paid += 1
        owner.paid += paid
        if owner.wants_room and not owed:
            owner.wants_room = False
            self.host.want_room(owner.caller.slot, False)
        return paid

    def _try_send(self, owner: _Owner, starter_id: int) -> int:
        slot = owner.caller.slot
        try:
            sent = owner.route.try_send(starter_id, 0)
            if sent == FULL and not owner.wants_room:
                owner.wants_room = True
                self.host.want_room(slot, True)
                sent = owner.route.try_send(starter_id, 0)  # room that came meanwhile
            return sent
        except AembusError as error:  # no lane there can be opened
            log.error("an expiry for slot %d is dropped: %s", slot, error)
            self._dropped += 1
            return 0

    def _fire(self, entry: Entry) -> None:
        repeats = entry.period_ns > 0
        if entry.point is not None:
            if repeats and not entry.source:
                entry.source = self.host.new_source()
            self._expired += 1
            self.host.activate(
                entry.point, entry.payload, entry.key_hash, entry.source, repeats=repeats
            )
            return
        owner = self._owners[entry.starter]
        if repeats and owner.paid < entry.owed_until:
            return  # a period that was missed, as those are that come while the machine sleeps
        self._expired += 1
        owner.owed.append(entry.starter_id)
        entry.owed_until = owner.paid + len(owner.owed)
        self._pay(owner)

    def on_clock_step(self) -> None:
        """See Service."""
        self.host.work_is_due(self)  # what is due on the wall clock is due at another time

    def on_member_gone(self, slot: int, incarnation: int) -> None:
        """Drop the timers that name handlers of that process."""
        self._gone.add(Caller(slot, incarnation))
        owner = self._owners.pop(Caller(slot, incarnation), None)
        if owner is not None:
            owner.route.close()
            self._dropped += len(owner.wheel) + len(owner.owed)
            self._dropped += self._book.drop_handlers(owner.caller)

    @property
    def in_use(self) -> bool:
        """See Service: timers at points outlive who started them, and run on here."""
        return len(self._book) > 0

    def close_intakes(self) -> None:
        """Fire nothing any more."""
        self._closing = True

    def statistics(self) -> dict[str, int]:
        """See Service."""
        plain = sum(len(owner.wheel) for owner in self._owners.values())
        return {
            "running": plain + len(self._book),
            "expired": self._expired,
            "owed": sum(len(owner.owed) for owner in self._owners.values()),
            "dropped": self._dropped,
            "slip_us_p50": self._slip.percentile_us(50),
            "slip_us_p99": self._slip.percentile_us(99),
            "slip_us_max": self._slip.max_us,
        }

    # --- another version takes over ---------------------------------------------------------------

    def hand_over(self) -> HandOver:
        """Give every timer away, as it runs; the arrays of ids go as they are."""
        owners = [
            [*owner.caller, owner.wheel.to_data(), array("Q", owner.owed).tobytes()]
            for owner in self._owners.values()
        ]
        data: dict[str, Any] = {
            "owners": owners,
            "book": self._book.to_data(),
            "gone": self._gone.to_data(),
            "slip": [list(self._slip.counts.items()), self._slip.max_us],
            "expired": self._expired,
            "dropped": self._dropped,
        }
        self._let_go()
        return HandOver(data)

    async def take_over(self, handed: HandOver) -> None:
        """Go on with the timers of another version: none is lost, doubled or early."""
        self._take(handed.data)

    def resume(self, handed: HandOver) -> None:
        """Go on with what was handed over."""
        self._take(handed.data)

    async def stop(self) -> None:
        """See Service."""
        self._let_go()

    def _let_go(self) -> None:
        self._closing = True
        for owner in self._owners.values():
            owner.route.close()
        self._owners = {}
        self._book = TimerBook(*self._now())

    def _take(self, data: dict[str, Any]) -> None:
        self._gone = Gone(data["gone"])
        for slot, incarnation, wheel, owed in data["owners"]:
            caller = Caller(slot, incarnation)
            owner = _Owner(caller, self._route(caller), TimingWheel.from_data(wheel))
            owner.owed.extend(array("Q", owed))
            owner.next_due = owner.wheel.next_due()
            self._owners[caller] = owner
        self._book = TimerBook.from_data(*self._now(), data["book"])
        self._slip = SlipHistogram(dict(data["slip"][0]), data["slip"][1])
        self._expired = data["expired"]
        self._dropped = data["dropped"]
        self._closing = False
        self.host.work_is_due(self)


def _set_one_by_one(wheel: TimingWheel, numbers: Sequence[int]) -> None:
    # Those that were set already are set again, to the same.
    for at in range(0, len(numbers), 2):
        try:
            wheel.set_all(numbers[at : at + 2])
        except (OverflowError, ValueError) as error:
            log.error("a timer was not started: %s, id=%#x", error, numbers[at])
