"""The event_struct: what a member runs when a job arrives.

The event_struct takes jobs from the inbox and runs their handlers one at a time, in the thread
that called `deliver`.  A job is STARTED before its handler and DONE after it, in shared memory, so
that a replacement of this process knows what was in hand.  A handler's exception is logged and
counted; its job is FAILED, and STARTED again after a pause as often as the event's `retries` say,
then a dead letter; the loop goes on.  What is no Exception (SystemExit, KeyboardInterrupt) is not
swallowed and leaves the job in hand.  A handler may hold its job (`aembus.held`): it stays STARTED.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from aembus.answers import Answers, Failure, failure_of
from aembus.callchain import Chain, unwrap
from aembus.codec import decode
from aembus.errors import AembusError, ControlError, JobFailed, JobNotInHand, Refused, text_of
from aembus.event import Event, awaited
from aembus.held import HeldJobs
from aembus.job import Job
from aembus.misfit import add_what_came
from aembus.postponed import Postponed, pause
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from aembus.shm.lane import CorruptLane
from aembus.shm.lanes import LaneConsumer, Record
from aembus.statistics import EventStructStatistics

log = logging.getLogger("aembus")

DEATHS_MAX: Final = 3  # a job that was in hand at so many deaths is not tried again
HANDLER_RAISED: Final = "its handler raised"
TOO_OLD: Final = "its ttl ended before its turn came"
BACKOFF_S_MAX: Final = 3600.0
NS: Final = 1_000_000_000
KEEP_AGAIN_S: Final = 1.0  # after that, what could not be kept as a dead letter is tried again


class Undeliverable(Protocol):
    """Where a job goes that cannot be delivered here."""

    def __call__(self, record: Record, reason: str, *, try_group: bool, detail: str = "") -> bool:
        """Keep the job; return True if it went to a sibling of its group.

        Raises BusBroken if it could not be kept: the job stays in hand then.
        """


class EventStruct:
    """The one event_struct of a member.

    Args:
        slot: whose.
        inbox: where its jobs arrive.
        undeliverable: keeps what cannot be delivered.
        give_room: told the slot of a producer that waits for room and has it now.
        check: raises if the bus is closed, broken, or the parent process's.
        answers: by which callers get theirs.
        clock: says what is due.
    """

    def __init__(
        self,
        slot: int,
        inbox: Inbox,
        undeliverable: Undeliverable,
        give_room: Callable[[int], None],
        check: Callable[[], object],
        answers: Answers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._slot = slot
        self._give_room = give_room
        self._inbox = inbox
        self._undeliverable = undeliverable
        self._answers = answers
        # Looked up once: each turn of each lane gets them.
        self._publishers, self._answer_call = answers.publishers, self._answer
        self._chain: Chain = ()  # who waits for the call in hand
        self._events: dict[int, Event] = {}
        self._removed: list[Event] = []  # whose last job may not be counted yet
        self._events_here: dict[int, Event] = {}  # those whose handlers run in this process
        self._other_kinds: dict[int, Callable[[Record], None]] = {}
        self._held: HeldJobs[Event] = HeldJobs(check, inbox.wake)
        self._elsewhere = 0  # jobs whose handlers run in processes of their own: see `spawning`
        self._postponed = Postponed()
        self._delivering = 0  # the thread that delivers now
        self._stopping = bytearray(1)  # one byte, so that a lane can look at it between two jobs
        self._delivered = 0  # of other kinds, and by events that were closed
        self._failed = self._refused = self._expired = self._dead_lettered = 0
        self._show_unfinished()  # a predecessor may have left other numbers

    def add(self, event: Event) -> None:
        """Own an event; from now on jobs with its id are delivered to it."""
        event._owner = self
        self._events[event.id] = event
        if event.launcher is None:
            self._events_here[event.id] = event

    def remove(self, event: Event) -> None:
        """Own the event no longer.  Idempotent."""
        self._events_here.pop(event.id, None)
        if self._events.pop(event.id, None) is not None:
            self._removed.append(event)  # whose handler may be at work, and closes it
        for removed in tuple(self._removed):
            if removed.lane is None or removed.lane.in_hand is None:
                self._removed.remove(removed)
                self._delivered += removed.delivered

    @property
    def events(self) -> list[Event]:
        """All events owned now."""
        return list(self._events.values())

    @property
    def active_events(self) -> list[Event]:
        """Those whose handler is at work, and those that hold jobs."""
        held = self._held.events
        return [e for e in self.events if e.record is not None or e in held]

    def on_kind(self, kind: int, callback: Callable[[Record], None]) -> None:
        """Deliver records of another kind (timer expiries) to `callback`, as if to a handler."""
        self._other_kinds[kind] = callback

    def stop(self) -> None:
        """Make `deliver` return after the job in hand."""
        self._stopping[0] = 1

    def go_on(self) -> None:
        """Take `stop` back."""
        self._stopping[0] = 0

    def deliver(self) -> int:
        """Give every lane its turn and return how many jobs were handled.

        Raises AembusError if called by a handler: handlers never nest.
        """
        if self._delivering:
            raise AembusError("a handler asked for more jobs; handlers never nest: return instead")
        self._delivering = threading.get_ident()
        handled = 0
        try:
            if self._held.completed or self._postponed.entries:
                handled = self._attend()
            for lane, budget in self._inbox.turn():
                if lane.has_records():
                    handled += self._deliver_from(lane, budget)
                    # Now and not after the turn: among many lanes that may be a second later.
                    producer = self._inbox.producer_wanting_room(lane)
                    if producer is not None:
                        self._give_room(producer)
                if self._stopping[0]:
                    break
            if handled:
                for slot in self._inbox.producers_wanting_room():
                    self._give_room(slot)
        finally:
            self._delivering = 0
        return handled

    def in_handler(self) -> bool:
        """Say whether this is called by a handler."""
        return self._delivering == threading.get_ident()

    def call_waiters(self) -> tuple[Chain, bool]:
        """Return who waits for the handler that calls this, and whether this member waits with it.

        It does if it delivers nothing before that handler has ended.
        """
        if self._delivering and self.in_handler():
            return self._chain, True
        work = awaited.get()
        return (work.chain, work.alone) if work is not None and not work.ended else ((), False)

    # --- what is not finished when its handler has returned --------------------------------------

    def is_due(self) -> bool:
        """Say whether a failed job is due for its next attempt."""
        return self._postponed.is_due(self._clock())

    def has_completed(self) -> bool:
        """Say whether held jobs were completed, and wait for `deliver`."""
        return bool(self._held.completed)

    def due_in_s(self) -> float:
        """Return in how many seconds something is due: infinity if nothing waits."""
        return self._postponed.due_in(self._clock())

    def settle(self) -> int:
        """Finish held jobs that were completed; return how many.

        Call it in the thread that delivers, or when none does.
        """
        settled = 0
        completed = self._held.completed
        while completed:
            record, event, failed = completed.popleft()
            settled += 1
            if failed is None:
                record.lane.done(record)
                self._count_delivered(event)
            elif isinstance(failed, JobFailed):
                text = text_of(failed)
                log.error("held job of %r failed: %s", event, text)
                self._fail(record, event, f"failed: {text}", Failure("JobFailed", text))
            else:  # what an `async def` handler has raised
                self._raised(record, event, failed)
        if settled:
            self._show_unfinished()
        return settled

    def settle_held(self) -> int:
        """Finish held jobs that were completed, and return how many are still held; as `settle`."""
        self.settle()
        return len(self._held)

    def _attend(self) -> int:
        attended = self.settle()
        now = self._clock()
        while not self._stopping[0] and (action := self._postponed.pop_due(now)) is not None:
            action()
            attended += 1
        if attended:
            self._show_unfinished()
        return attended

    def _show_unfinished(self) -> None:
        self._inbox.show_unfinished(len(self._held) + self._elsewhere, len(self._postponed))

    def job(self, record: Record, event: Event | None) -> Job:
        """Return the job that `record`, in hand here, carries."""
        return Job(record, self._slot, self._inbox.lane_class(record.lane), event, self)

    def hold(self, record: Record, event: Event) -> None:
        """See Job.hold."""
        in_hand = event.record
        if not self.in_handler() or in_hand is None or in_hand.begin != record.begin:
            raise JobNotInHand(
                "a job can be held by its handler alone, before that returns, "
                f"event={event!r}, sequence={record.sequence}"
            )
        self._held.hold(record, event)
        self._show_unfinished()

    def complete(
        self, record: Record, attempt: int, failed: BaseException | None, result: Any = None
    ) -> None:
        """See Job.done and Job.fail; or take what an awaited handler has raised."""
        is_call = record.kind == layout.KIND_CALL
        answer = functools.partial(self._answer, record, result) if is_call else None
        self._held.complete(record, attempt, failed, answer)

    def _answer(self, record: Record, result: Any, event: Event) -> bool:
        return self._answers.result(record.header, result, event.name)

    # --- one by one -------------------------------------------------------------------------------

    def _deliver_from(self, lane: LaneConsumer, budget: int) -> int:
        # The lane runs what is plain by itself; one by one the rest is dealt with here.
        handled = 0
        while handled < budget and not self._stopping[0]:
            before = lane.delivered
            try:
                lane.deliver(
                    self._events_here, decode, budget - handled, self._stopping,
                    self._publishers, self._answer_call,
                )  # fmt: skip
            except Exception as error:
                record = lane.in_hand
                if record is not None:  # its handler raised, whatever that was
                    handled += 1
                    self._handler_raised(record, self._events.get(record.event_id), error)
                elif isinstance(error, CorruptLane):
                    self._inbox.give_up(lane, error)
                else:
                    raise
            handled += lane.delivered - before
            if handled >= budget or self._stopping[0]:
                break
            special = self._inbox.take(lane)
            if special is None:
                break
            handled += 1
            self._deliver_special(special)
        return handled

    def _deliver_special(self, record: Record) -> None:
        if record.kind not in layout.KINDS_FOR_EVENTS:
            self._deliver_other(record.lane, record)
            return
        event = self._events.get(record.event_id)
        if event is None:
            # What was in hand may fell its next member, fail there, or have gone to its group when
            # somebody died: that is not passed on.
            fresh = not record.attempts
            self._give_back(record, "its event was closed", try_group=fresh)
            return
        if self._given_up_at_death(record, event, "its worker died"):
            return
        if is_too_old(record, self._clock()):
            self._expire(record, event)
            return
        if record.header[4] & layout.STATE_MASK == layout.STATE_FAILED:
            self._try_again(record, event, HANDLER_RAISED, None)  # its worker died in the pause
        else:
            self._run(record, event)
        if event.once:
            try:
                event.close()
            except AembusError as error:  # what comes for it all the same is given back
                log.warning("%r was not taken off its wait queue: %s", event, error)

    def _given_up_at_death(
        self, record: Record, event: Event, death: str, failure: Failure | None = None
    ) -> bool:
        deaths = layout.state_deaths(record.header[4])
        if deaths - layout.state_spared(record.header[4]) >= DEATHS_MAX:
            self._give_back(record, f"in hand at {deaths} deaths", failure=failure)
        elif deaths > 0 and not (event.options.redeliver and _may_come_again(record)):
            self._give_back(record, f"in hand when {death}", failure=failure)
        else:
            return False
        return True

    def _run(self, record: Record, event: Event) -> None:
        if event.launcher is not None:
            event.launcher.launch(record, event)
            return
        record.lane.start(record)
        self._held.begin()
        event._special = record
        try:
            data = record.payload
            if record.kind == layout.KIND_CALL:
                self._chain, data = unwrap(data)
            result = event.handler(event, *decode(data))
        except Exception as error:
            self._handler_raised(record, event, error)
        else:
            event._special = None
            if not self._held.was_held(record):
                # Answered first: a kill in between makes a dead letter, and nobody wait in vain.
                if record.kind == layout.KIND_CALL and not self._answer(record, result, event):
                    return
                record.lane.done(record)
                self._count_delivered(event)
        finally:
            self._chain = ()

    def _run_again(self, record: Record, event: Event) -> None:
        if self._events.get(event.id) is not event and not event.once:
            self._give_back(record, "its event was closed")
        elif is_too_old(record, self._clock()):
            self._expire(record, event)
        else:
            self._run(record, event)

    def _expire(self, record: Record, event: Event) -> None:
        self._give_back(record, TOO_OLD)
        self._expired += 1
        self._inbox.count_expired()
        event.count_expired()

    def _count_delivered(self, event: Event) -> None:
        if self._events.get(event.id) is event:
            event.delivered += 1
        else:
            self._delivered += 1

    def _deliver_other(self, lane: LaneConsumer, record: Record) -> None:
        callback = self._other_kinds.get(record.kind)
        if callback is None:
            self._give_back(record, f"kind {record.kind} is unknown")
            return
        lane.start(record)
        try:
            callback(record)
        except Exception:
            self._failed += 1
            self._inbox.count_failed()
            log.exception("a handler failed, kind=%d, id=%#x", record.kind, record.reply_id)
        lane.done(record)
        self._delivered += 1

    def _handler_raised(self, record: Record, event: Event | None, error: Exception) -> None:
        if event is not None:  # else its handler has closed it
            event.lane = event._special = None
        if self._held.release(record):
            self._raised(record, event, error)
        else:  # the job itself was completed before
            log.error("handler of %r failed", event, exc_info=error)
            self._count_failed(event)

    def _raised(self, record: Record, event: Event | None, error: BaseException) -> None:
        if isinstance(error, Refused):
            self._refuse(record, event, failure_of(error))
            return
        add_what_came(error, record.header, record.payload)
        log.error("handler of %r failed, job=%s", event, self.job(record, event), exc_info=error)
        self._fail(record, event, HANDLER_RAISED, failure_of(error))

    def _refuse(self, record: Record, event: Event | None, failure: Failure) -> None:
        self._refused += 1
        if event is not None:
            event.count_refused()
        if self._answer_failed(record, event, failure):
            record.lane.done(record)

    def _answer_failed(self, record: Record, event: Event | None, failure: Failure) -> bool:
        # Returns False if the job is a call, and its answer cannot be sent any more.
        name = event.name if event is not None else ""
        return record.kind != layout.KIND_CALL or self._answers.failed(record.header, failure, name)

    def _fail(self, record: Record, event: Event | None, reason: str, failure: Failure) -> None:
        self._count_failed(event)
        record.lane.fail(record)
        self._try_again(record, event, reason, failure)

    def _count_failed(self, event: Event | None) -> None:
        self._failed += 1
        self._inbox.count_failed()
        if event is not None:
            event.count_failed()

    def _try_again(
        self, record: Record, event: Event | None, reason: str, failure: Failure | None
    ) -> None:
        # The record is FAILED.  If it becomes a dead letter and this process is killed before it is
        # marked as dead, its replacement comes here again, and no handler does.
        if event is None or record.failures > event.options.retries:
            self._give_back(record, reason, failure=failure)
            return
        due = self._clock() + pause(event.options.backoff, record.failures, BACKOFF_S_MAX)
        self._postponed.add(due, functools.partial(self._run_again, record, event))
        self._show_unfinished()

    def _give_back(
        self,
        record: Record,
        reason: str,
        *,
        try_group: bool = False,
        failure: Failure | None = None,
    ) -> None:
        lane = record.lane
        if try_group:
            lane.start(record)  # whoever finds it so, if we die here, does not send it on again
            if record.kind == layout.KIND_CALL:  # its caller knows best who else is there
                if self._answers.returned(record.header):
                    lane.forwarded(record)
                return
        detail = failure.traceback_text if failure is not None else ""
        try:
            forwarded = self._undeliverable(record, reason, try_group=try_group, detail=detail)
        except AembusError as error:
            log.error("job could not be kept and stays in hand: %s, reason=%s", error, reason)
            if isinstance(error, ControlError):
                again = functools.partial(
                    self._give_back, record, reason, try_group=try_group, failure=failure
                )
                self._postponed.add(self._clock() + KEEP_AGAIN_S, again)
            return
        if forwarded:
            lane.forwarded(record)
            return
        failure = failure or Failure("DeadLetter", reason)
        if self._answer_failed(record, self._events.get(record.event_id), failure):
            lane.dead(record)
            self._dead_lettered += 1

    def statistics(self) -> EventStructStatistics:
        """Return what was done so far in this process."""
        events = (*self._events.values(), *self._removed)
        delivered = self._delivered + sum(event.delivered for event in events)
        return EventStructStatistics(
            len(self._events),
            delivered,
            self._failed,
            self._dead_lettered,
            len(self._held) + self._elsewhere,
            len(self._postponed),
            self._refused,
            self._expired,
        )


def _may_come_again(record: Record) -> bool:
    return record.kind != layout.KIND_CALL or bool(record.flags & layout.FLAG_REDELIVER)


def is_too_old(record: Record, now_s: float) -> bool:
    """Say whether a job's ttl has ended."""
    return record.kind == layout.KIND_JOB_WITH_TTL and now_s * NS > record.deadline_ns
