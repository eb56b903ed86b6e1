"""Calls that wait for an answer: a request in the callee's inbox, the reply in ours.

Replies come by lanes of their own and are taken without running any handler, so a thread may wait
for one while jobs queue behind it, and a handler may call.  A reply that nobody waits for any more
is dropped and counted.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aembus import callchain
from aembus.callchain import Chain
from aembus.codec import decode, encode
from aembus.errors import AembusError, CallFailed, CallTimeout
from aembus.kept import Recent
from aembus.looking import WAKE_UP_S, Looking
from aembus.masking import masked
from aembus.picking import IN_TURN
from aembus.refusals import deadline_after
from aembus.routes import CallWay
from aembus.routing import SUPERVISOR_SLOT, Target
from aembus.sender import Job, Sender
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from aembus.shm.lanes import Record

NS: Final = 1_000_000_000
DEADLINE_S_MAX: Final = 1e10  # on CLOCK_MONOTONIC, three centuries; what is later is never
WAKE_UP_NS: Final = int(WAKE_UP_S * NS)

NOBODY_WAITS: Final[tuple[Chain, bool]] = ((), False)

# The error types of CallFailed where it was not the callee that raised.
NOBODY_REGISTERED: Final = "NobodyRegistered"
SEVERAL_REGISTERED: Final = "SeveralRegistered"
CALL_CYCLE: Final = "CallCycle"
MEMBER_GONE: Final = "MemberGone"


@dataclass(frozen=True, slots=True)
class Answer:
    """One member's answer to `ActivationPoint.call_all`.

    member: the name of the member that was called.
    event: the name of its event; empty where no handler answered.
    value: what its handler returned; None if it failed.
    error: why there is no value; None if there is one.
    """

    member: str
    event: str
    value: Any = None
    error: AembusError | None = None


class Waiting:
    """One call that is under way.

    answer: flags and payload of the reply, once it is there.
    arrived: called then, by whichever thread takes it; None: whoever waits looks for itself.
    """

    __slots__ = ("answer", "arrived", "reply_id")

    def __init__(self, reply_id: int, arrived: Callable[[], None] | None) -> None:
        self.reply_id = reply_id
        self.arrived = arrived
        self.answer: tuple[int, bytes] | None = None

    @property
    def failed(self) -> bool:
        """Whether the answer, if there is one, is a failure."""
        return self.answer is not None and bool(self.answer[0] & layout.FLAG_FAILED)

    @property
    def returned(self) -> bool:
        """Whether nobody has begun the call."""
        return self.answer is not None and bool(self.answer[0] & layout.FLAG_RETURNED)

    def result(self) -> tuple[Any, str]:
        """Return value and event's name; raises CallFailed."""
        assert self.answer is not None
        flags, payload = self.answer
        answer = decode(payload)
        if flags & layout.FLAG_RETURNED:
            raise CallFailed(MEMBER_GONE, "its member went before it began the call")
        if flags & layout.FLAG_FAILED:
            raise CallFailed(*answer)
        value, *event = answer
        return value, event[0] if event else ""


class Calls:
    """The calls of one member that are under way.

    Args:
        sender, inbox: the member's two sides.
        incarnation: makes the reply ids of this process unlike those of any before it.
        waiters: returns who waits for the handler that calls this, and whether this member waits
            with it, so that it delivers nothing meanwhile.
    """

    def __init__(
        self,
        sender: Sender,
        inbox: Inbox,
        incarnation: int,
        waiters: Callable[[], tuple[Chain, bool]],
    ) -> None:
        self._sender = sender
        self._clock = sender.clock
        self._inbox = inbox
        self._incarnation = incarnation
        self._waiters = waiters
        self._reply_ids = itertools.count(incarnation << 32 | 1)
        self._ways: Recent[CallWay] = Recent()
        self._waiting: dict[int, Waiting] = {}
        self._may_answer: set[int] = set()  # slots with memory for their answers
        self._draining = threading.RLock()
        self._handing_over = False
        self._cut_off = False  # a signal handler has raised in the middle of that
        self._looking = Looking(WAKE_UP_S)
        self.late_replies = 0

    # --- calling a service ------------------------------------------------------------------------

    def call_service(
        self, target: Target, data: tuple[Any, ...], timeout_s: float, what: str
    ) -> Any:
        """Send a request to a service, block until its answer, and return the result.

        Raises: CallTimeout, CallFailed with what the other side raised, InboxFull, BusBroken,
        OutOfSharedMemory.
        """
        deadline = deadline_after(self._clock(), timeout_s)
        waiting = self.begin()
        try:
            job = self._job(waiting, target, encode(data), IN_TURN, 0, deadline)
            if not self._sender.send(target, job, timeout_s, what):
                raise CallFailed(MEMBER_GONE, f"nobody to call, call={what!r}, target={target}")
            self._await([waiting], deadline)
        finally:
            del self._waiting[waiting.reply_id]  # as `end`; Ctrl-C does not come before this
        if waiting.answer is None:
            raise CallTimeout(f"no answer in time, call={what!r}, timeout_s={timeout_s}")
        return waiting.result()[0]

    # --- calling handlers -------------------------------------------------------------------------

    def call(
        self,
        point: str,
        arguments: tuple[Any, ...],
        key_hash: int,
        timeout_s: float,
        redeliver: bool,
    ) -> Any:
        """See ActivationPoint.call."""
        deadline = deadline_after(self._clock(), timeout_s)
        way = self._ways.get(point)
        if (
            way is not None
            and not redeliver
            and self._waiters() == NOBODY_WAITS
            and (publisher := way.publisher) is not None
        ):
            targets, lanes = way.targets, way.reply_lanes
            reply_id = next(self._reply_ids)
            self._waiting[reply_id] = waiting = Waiting(reply_id, None)
            try:
                # As in `_await`: one thread at a time may look.
                looks = len(self._waiting) == 1 and self._looking.may_look()
                outcome = publisher.call(
                    arguments,
                    key_hash,
                    _nanoseconds(deadline),
                    reply_id,
                    waiting,
                    lanes,
                    WAKE_UP_NS if looks else 0,
                )
                if outcome == 0:
                    pass
                elif isinstance(outcome, int):
                    has_looked = looks and lanes[outcome - 1] is not None
                    self._await_unanswered(waiting, looks, has_looked, deadline)
                    lanes[outcome - 1] = self._inbox.reply_lanes.get(targets[outcome - 1].slot)
                elif len(outcome) == 1:
                    self._looking.was_worth()
                    return outcome[0]
                else:
                    waiting.answer = outcome
            finally:
                del self._waiting[reply_id]
                del publisher  # a traceback would keep it, and it the memory of the bus
            if outcome and not waiting.returned:
                target = targets[outcome - 1 if isinstance(outcome, int) else 0]
                return self.result(waiting, target, point, timeout_s)
        return self._call_at_length(
            point, encode(arguments), key_hash, timeout_s, deadline, redeliver
        )

    def _call_at_length(
        self,
        point: str,
        data: bytes,
        key_hash: int,
        timeout_s: float,
        deadline: float,
        redeliver: bool,
    ) -> Any:
        flags = layout.FLAG_REDELIVER if redeliver else 0
        while True:
            target = self.the_one(point, key_hash)
            waiting = self.begin()
            try:
                job = self.request(waiting, target, point, data, key_hash, flags, deadline)
                if self._sender.send(target, job, deadline - self._sender.clock(), point):
                    self.copy(point, data, key_hash)
                    self._make_way(point)
                    self._await([waiting], deadline)
                    if not waiting.returned:
                        return self.result(waiting, target, point, timeout_s)
                elif self._sender.clock() >= deadline:
                    raise CallTimeout(f"nobody stayed, point={point!r}, timeout_s={timeout_s}")
            finally:
                del self._waiting[waiting.reply_id]  # as above

    def _await_unanswered(
        self, waiting: Waiting, may_look: bool, has_looked: bool, deadline: float
    ) -> None:
        if has_looked:
            self._looking.was_in_vain()
        elif may_look:  # but it was not known where
            self._await([waiting], deadline)
        self._await_by_bell([waiting], deadline)

    def _make_way(self, point: str) -> None:
        way = self._way(point)
        self._sender.routes.make_call_publisher(way, self._may_answer, len(self._may_answer))

    def copy(self, point: str, data: bytes, key_hash: int) -> None:
        """Give the taps of a point a copy of a call's data."""
        route = self._way(point).route
        if route.queue.taps:
            self._sender.send_copies(route, Job(data, key_hash))

    def result(self, waiting: Waiting, target: Target, point: str, timeout_s: float) -> Any:
        """Return what `target` has answered.  Raises CallFailed, and CallTimeout if it has not."""
        if waiting.answer is None:
            member = self._sender.routing.members.get(target.slot)
            name = member.name if member is not None else None
            own = member is not None and member.pid == os.getpid()
            hint = "; it is one of this process, so a thread must run its bus" if own else ""
            raise CallTimeout(
                f"no answer in time; the handler may run all the same{hint}, "
                f"point={point!r}, timeout_s={timeout_s}, member={name!r}"
            )
        return waiting.result()[0]

    def call_all(self, point: str, data: bytes, timeout_s: float) -> list[Answer]:
        """See ActivationPoint.call_all."""
        deadline = deadline_after(self._clock(), timeout_s)
        targets, names = self.everyone(point)
        calls: list[Waiting] = []
        errors: list[AembusError | None] = [None] * len(targets)
        try:
            for _ in targets:
                calls.append(self.begin())  # noqa: PERF401  # Ctrl-C finds each one in the list
            for number, (waiting, target) in enumerate(zip(calls, targets, strict=True)):
                try:
                    job = self.request(waiting, target, point, data, IN_TURN, 0, deadline)
                    if not self._sender.send(target, job, deadline - self._sender.clock(), point):
                        raise CallFailed(MEMBER_GONE, f"it went just now, point={point!r}")
                except AembusError as error:
                    self._sender.refresh()  # raises if nothing can be called any more
                    errors[number] = error
            asked = [w for w, error in zip(calls, errors, strict=True) if error is None]
            self._await(asked, deadline)
        finally:
            try:
                self._end_all(calls)
            finally:  # again, if a signal handler raised in the middle
                self._end_all(calls)
        timed_out = f"no answer in time, point={point!r}, timeout_s={timeout_s}"
        return [
            answer_of(name, waiting, error, timed_out)
            for name, waiting, error in zip(names, calls, errors, strict=True)
        ]

    def _pick(self, point: str, key_hash: int) -> Sequence[Target]:
        return self._sender.pick(self._way(point).route, Job(b"", key_hash))

    def _way(self, point: str) -> CallWay:
        way = self._ways.get(point)
        if way is None:
            way = CallWay(self._sender.route(point))
            self._sender.routes.add_short_way(way)
            way = self._ways.keep(point, way)
        return way

    def everyone(self, point: str) -> tuple[Sequence[Target], list[str]]:
        """Return the concerned events, of each group one, and the names of their members."""
        targets = self._pick(point, IN_TURN)
        return targets, self._names(targets)

    def _names(self, targets: Sequence[Target]) -> list[str]:
        # Another thread may know by now that one of them has gone.
        found = self._sender.routing.members
        return [found[t.slot].name if t.slot in found else f"slot {t.slot}" for t in targets]

    def the_one(self, point: str, key_hash: int) -> Target:
        """Return the one concerned event.  Raises CallFailed if there are none, or several."""
        targets = self._pick(point, key_hash)
        if len(targets) == 1:
            return targets[0]
        if not targets:
            raise CallFailed(NOBODY_REGISTERED, f"there is nobody to call, point={point!r}")
        members = self._names(targets)
        raise CallFailed(
            SEVERAL_REGISTERED,
            "a call has one answer, and several events are concerned; use call_all, or register "
            f"them in one group, point={point!r}, members={members}",
        )

    def request(
        self,
        waiting: Waiting,
        target: Target,
        point: str,
        data: bytes,
        key_hash: int,
        flags: int,
        deadline: float,
    ) -> Job:
        """Return what to send to `target`.  Raises CallFailed if it waits for this very call."""
        chain, waits = self._waiters()
        if waits:
            chain = (*chain, self._incarnation)
        if chain:
            member = self._sender.routing.members.get(target.slot)
            if member is not None and member.incarnation in chain:
                raise CallFailed(
                    CALL_CYCLE,
                    "the member to call waits for this very call and delivers nothing meanwhile; "
                    f"activate, or call a plain function, point={point!r}, "
                    f"member={member.name!r}, incarnations waiting={chain}",
                )
        payload = callchain.wrap(chain, data)
        return self._job(waiting, target, payload, key_hash, flags, deadline)

    # --- requests and replies ---------------------------------------------------------------------

    def begin(self, arrived: Callable[[], None] | None = None) -> Waiting:
        """Begin to wait for an answer; `end` has to follow."""
        waiting = Waiting(next(self._reply_ids), arrived)
        self._waiting[waiting.reply_id] = waiting
        return waiting

    def end(self, waiting: Waiting) -> None:
        """Wait no longer: an answer that comes now is late."""
        del self._waiting[waiting.reply_id]

    def _end_all(self, calls: Sequence[Waiting]) -> None:
        for waiting in calls:
            self._waiting.pop(waiting.reply_id, None)

    def _job(
        self,
        waiting: Waiting,
        target: Target,
        payload: bytes,
        key_hash: int,
        flags: int,
        deadline: float,
    ) -> Job:
        if target.slot not in self._may_answer:
            # Too little memory for the answer is better told here than found out by who answers.
            self._inbox.reserve_reply_lane(target.slot)
            self._inbox.reserve_reply_lane(SUPERVISOR_SLOT)
            self._may_answer.add(target.slot)
        return Job(
            payload,
            key_hash,
            kind=layout.KIND_CALL,
            flags=layout.FLAG_WANTS_REPLY | flags,
            deadline_ns=_nanoseconds(deadline),
            reply_id=waiting.reply_id,
        )

    def _await(self, calls: Sequence[Waiting], deadline: float) -> None:
        # Who begins to wait while others do does not look: one thread at a time may.
        try:
            if len(self._waiting) == len(calls) and self._looking.look(self._inbox.has_replies):
                self.take_replies()
        except ValueError:
            self._raise_if_closed()
            raise
        self._await_by_bell(calls, deadline)

    def _await_by_bell(self, calls: Sequence[Waiting], deadline: float) -> None:
        while any(waiting.answer is None for waiting in calls):
            left_s = deadline - self._sender.clock()
            if left_s <= 0:
                return
            self._inbox.wait(lambda: self._may_go_on(calls), left_s)
            self._raise_if_closed()
            try:
                self.take_replies()
            except ValueError:
                self._raise_if_closed()
                raise

    def _raise_if_closed(self) -> None:
        # By another thread, or a signal handler, meanwhile; or the supervisor has died.
        self._sender.refresh()

    def _may_go_on(self, calls: Sequence[Waiting]) -> bool:
        return (
            # What another thread takes is handed over soon; then nobody posts for it any more.
            self._handing_over
            or self._inbox.has_replies()
            or self._sender.refuses
            or all(waiting.answer is not None for waiting in calls)
        )

    def take_replies(self) -> None:
        """Hand the replies that have arrived to those who wait for them."""
        with masked, self._draining:
            outermost = not self._handing_over  # else a signal handler is, in the middle of it
            self._handing_over = True
            try:
                for record in self._inbox.take_replies():
                    self._hand_over(record)
            except BaseException:
                self._cut_off = True
                raise
            finally:
                if outermost:
                    self._handing_over = False
                    if self._cut_off:  # the reply in hand then is for somebody, or to be dropped
                        self._inbox.take_replies_again()
                        self._cut_off = False
        for lane in self._inbox.lanes[layout.CLASS_REPLY]:
            producer = self._inbox.producer_wanting_room(lane)
            if producer is not None:
                self._sender.ring(producer)

    def _hand_over(self, record: Record) -> None:
        waiting = self._waiting.get(record.reply_id)
        # A callee may die right after its answer: then the supervisor's is there too.
        if waiting is None or (waiting.answer is not None and not waiting.failed):
            self.late_replies += 1
            return
        waiting.answer = record.flags, record.payload
        if waiting.arrived is not None:
            waiting.arrived()


def _nanoseconds(deadline: float) -> int:
    # What a record's header has room for: callers may wait for ever, or not at all.
    if not 0.0 <= deadline <= DEADLINE_S_MAX:
        deadline = min(max(deadline, 0.0), DEADLINE_S_MAX)
    return int(deadline * NS)


def answer_of(member: str, waiting: Waiting, error: AembusError | None, timed_out: str) -> Answer:
    """Return one answer to `call_all`, whatever has become of it."""
    if error is None and waiting.answer is None:
        error = CallTimeout(timed_out)
    if error is not None:
        return Answer(member, "", None, error)
    try:
        value, event = waiting.result()
    except CallFailed as failed:
        return Answer(member, failed.event, None, failed)
    return Answer(member, event, value, None)
