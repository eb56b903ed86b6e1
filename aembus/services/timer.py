"""The timer service: keeps every member's timers in one wheel and says when they are due.

Runs in the supervisor's event loop.  A timer with a handler belongs to one process (slot and
incarnation) and is dropped when that process is gone; its data stays there, so here it is one
small entry.  A timer with a point holds the encoded data and fires whoever lives then.  One with
a name exists once on the bus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aembus.routing import Target
from aembus.sender import Job
from aembus.services.base import Caller, Host, Service, call
from aembus.services.wheel import TimingWheel
from aembus.shm import layout

EXPIRIES_A_TURN: Final = 1000  # then the other work of the loop has its turn


@dataclass(frozen=True, slots=True)
class HandlerTimer:
    """Tells a process of its own timer's expiry."""

    slot: int
    incarnation: int
    period_ns: int


@dataclass(frozen=True, slots=True)
class PointTimer:
    """Activates a point."""

    point: str
    payload: bytes
    key_hash: int | None
    period_ns: int
    name: str | None


class TimerService(Service):
    """Service "timer", version 1."""

    name = "timer"
    version = "1"
    client = "aembus.services.timer_client:TimerClient"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._wheel: TimingWheel[HandlerTimer | PointTimer] = TimingWheel(host.now_ns())
        self._due_ns: dict[int, int] = {}  # of periodic ones: when the running period ends
        self._named: dict[str, int] = {}
        self._one_shots: dict[Caller, HandlerTimer] = {}
        self._closing = False
        self._expired = 0
        self._orphans = 0
        self._slip_ns_max = 0

    # --- calls ----------------------------------------------------------------------------------

    @call
    def start_handler(self, caller: Caller, timer_id: int, due_ns: int, period_ns: int) -> None:
        """Start a timer whose handler is in the caller's process."""
        if period_ns:
            entry = HandlerTimer(caller.slot, caller.incarnation, period_ns)
        else:  # one object for all of a process: there may be millions of them
            entry = self._one_shots.get(caller) or self._add_one_shot(caller)
        self._start(timer_id, due_ns, entry)

    def _add_one_shot(self, caller: Caller) -> HandlerTimer:
        entry = self._one_shots[caller] = HandlerTimer(caller.slot, caller.incarnation, 0)
        return entry

    @call
    def start_point(
        self,
        caller: Caller,
        timer_id: int,
        due_ns: int,
        period_ns: int,
        point: str,
        payload: bytes,
        key_hash: int | None,
        name: str | None,
    ) -> None:
        """Start a timer that activates a point; of one name only the first is started."""
        if name is not None:
            if name in self._named:
                return
            self._named[name] = timer_id
        self._start(timer_id, due_ns, PointTimer(point, payload, key_hash, period_ns, name))

    @call
    def cancel(self, caller: Caller, timer_id: int, name: str | None) -> None:
        """Stop a timer, if it still runs."""
        if name is not None:
            timer_id = self._named.pop(name, timer_id)
        self._wheel.cancel(timer_id)
        self._due_ns.pop(timer_id, None)

    def _start(self, timer_id: int, due_ns: int, entry: HandlerTimer | PointTimer) -> None:
        if entry.period_ns:
            self._due_ns[timer_id] = due_ns
        self._wheel.start(timer_id, due_ns, entry)
        self.host.work_is_due(self)

    # --- the host asks --------------------------------------------------------------------------

    def next_due_ns(self) -> int | None:
        """See Service."""
        return None if self._closing else self._wheel.next_due_ns()

    def do_work(self, now_ns: int) -> int:
        """Fire what is due."""
        if self._closing:
            return 0
        expired = self._wheel.advance(now_ns, limit=EXPIRIES_A_TURN)
        for timer_id, entry in expired:
            self._fire(timer_id, entry, now_ns)
        return len(expired)

    def _fire(self, timer_id: int, entry: HandlerTimer | PointTimer, now_ns: int) -> None:
        self._expired += 1
        if isinstance(entry, PointTimer):
            self.host.activate(entry.point, entry.payload, entry.key_hash)
        elif self.host.incarnation(entry.slot) != entry.incarnation:
            self._orphans += 1
            self._due_ns.pop(timer_id, None)
            return
        else:
            job = Job(b"", kind=layout.KIND_TIMER, reply_id=timer_id, addressee=entry.incarnation)
            self.host.send(Target(entry.slot, 0), job)
        if entry.period_ns:
            # From when it was due, not from now: no drift.  What was missed is not made up for.
            due_ns = self._due_ns[timer_id]
            self._slip_ns_max = max(self._slip_ns_max, now_ns - due_ns)
            due_ns += entry.period_ns * max(1, (now_ns - due_ns) // entry.period_ns + 1)
            self._due_ns[timer_id] = due_ns
            self._wheel.start(timer_id, due_ns, entry)
        elif isinstance(entry, PointTimer) and entry.name is not None:
            self._named.pop(entry.name, None)

    def on_member_gone(self, slot: int, incarnation: int) -> None:
        """Forget the process; its timers are dropped when they are due."""
        self._one_shots.pop(Caller(slot, incarnation), None)

    def close_intakes(self) -> None:
        """Fire nothing any more."""
        self._closing = True

    def statistics(self) -> dict[str, int]:
        """See Service."""
        return {
            "running": len(self._wheel),
            "expired": self._expired,
            "orphans": self._orphans,
            "period_slip_us_max": self._slip_ns_max // 1000,
        }
