"""A bus in one process and one thread, for tests of handlers: no supervisor, no waiting.

Members are real `aembus.Bus` objects, with real lanes between them over memory of this process.
Only what the supervisor does is done here: it is asked by calls in place of a socket.  Nothing is
delivered by itself, and no time passes: `deliver` and `advance` do that, so that a test sees the
same each time.  A handler that waits (for an answer, for room) lets the other members go on, and
if none has anything to do, the clock is moved to what is due next.

Not here: processes and their deaths, other threads' deliveries, the tcp service.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import os
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

from aembus import callchain
from aembus.answers import Answers, Failure
from aembus.bus import Bus
from aembus.calls import MEMBER_GONE
from aembus.codec import decode
from aembus.coroutines import Begun
from aembus.errors import AembusError, ControlError, JobNotInHand
from aembus.event import Awaited, awaited
from aembus.membership import Membership
from aembus.routing import SUPERVISOR_SLOT, Routing
from aembus.sender import FULL, Job, Sender
from aembus.services.base import Service
from aembus.services.timer import TimerService
from aembus.shm import layout, names, registry
from aembus.shm.inbox import Inbox, inbox_role
from aembus.shm.lanes import Record
from aembus.shm.registry import RegistryReader, RegistryWriter
from aembus.shm.segment import Segment
from aembus.supervisor.departures import WENT_BEFORE_RETRY
from aembus.supervisor.members import KIND_CLIENT, KIND_SUPERVISOR, Member, Members
from aembus.testing.clock import FakeClock
from aembus.testing.services import ServiceHost

SLOTS: Final = 16
LANE_BYTES: Final = 64 * 1024
TURNS_MAX: Final = 100_000  # of one `deliver`: then handlers activate one another for ever

_numbers = itertools.count(1)


class DeadJob(NamedTuple):
    """A dead letter: where it was to go, its data, and why it was not delivered there."""

    point: str
    event: str
    data: tuple[Any, ...]
    reason: str


class InProcessBus:
    """A bus without processes; use it as a context manager.

    Args:
        services: classes to host, beside the timer.

    clock: stands still but for `advance`, and where a handler waits for what is due later.
    dead_letters: every job that could not be delivered, oldest first.
    """

    def __init__(self, services: tuple[type[Service], ...] = ()) -> None:
        self.name = f"in-process-{os.getpid()}-{next(_numbers)}"
        self.clock = FakeClock()
        self.dead_letters: list[DeadJob] = []
        self.thread = threading.get_ident()
        self._nonce = "test"
        self._members = Members(SLOTS)
        self._writer = RegistryWriter(
            names.shared_name(self.name, self._nonce, registry.ROLE), private=True
        )
        self._segments: list[Segment] = []
        self._buses: dict[int, Bus] = {}  # by slot
        own = self._members.add(KIND_SUPERVISOR, "supervisor", os.getpid(), "running")
        self._create_inbox(own)
        self._publish([])
        self._inbox = Inbox(self._open(own.inbox_id), _NoBell())
        self._reader = RegistryReader.open(self._writer.name)
        self._sender = Sender(
            self.name,
            self._nonce,
            SUPERVISOR_SLOT,
            own.incarnation,
            self._reader,
            self._wait,
            self.clock,
        )
        self._answers = Answers(self._sender, waits=False)
        self._host = ServiceHost(self._inbox, self._sender, self._answers, self.clock)
        hosted: tuple[type[Service], ...] = (TimerService, *services)
        for service in hosted:
            self._host.load(service)
        self._publish(self._host.documents)

    # --- members ----------------------------------------------------------------------------------

    def connect(self, name: str = "") -> Bus:
        """Return a new member: what `aembus.connect` would, or what a worker's `main` gets.

        Its handlers run when the test calls `deliver`; it need not be closed.
        """

        def join(bus: str, wanted: dict[str, Any], on_order: Any, on_broken: Any) -> Membership:
            return _InProcessMembership(self, bus, wanted, on_order, on_broken)

        bus = Bus(self.name, name=name, join=join)
        bus.coroutines.start = self._run_to_its_end
        self._buses[bus.slot] = bus
        return bus

    def start(self, main: Callable[[Bus], object], name: str = "worker") -> Bus:
        """Call a worker's entry point with a member of that name, and return the member."""
        bus = self.connect(name)
        main(bus)
        bus.publish_registrations()
        return bus

    # --- driving ----------------------------------------------------------------------------------

    def deliver(self) -> int:
        """Deliver all jobs that can be delivered at this time; return how many were.

        Raises: AembusError if it does not end, what handlers raise that is no Exception.
        """
        delivered = 0
        for _ in range(TURNS_MAX):
            worked = self._turn()
            if not worked:
                return delivered
            delivered += worked
        raise AembusError(f"handlers activate one another without an end, turns={TURNS_MAX}")

    def advance(self, seconds: float) -> int:
        """Let time pass, and deliver what gets due, each at its time; return how many jobs."""
        until = self.clock() + seconds
        delivered = self.deliver()
        while (due := self._next_due_s()) <= until:
            self.clock.set(max(due, self.clock()))
            delivered += self.deliver()
        self.clock.set(until)
        return delivered + self.deliver()

    def _turn(self) -> int:
        worked = self._host.run_turn()
        for bus in list(self._buses.values()):
            # Not who waits, in a handler, in `poll` or in `run`: its jobs come after that.
            if bus.slot in self._buses and not bus._runner.runs_here:
                worked += bus._runner.poll(0.0)
        return worked

    def _next_due_s(self) -> float:
        # Of who waits, or was stopped, nothing is delivered, however late it gets.
        runners = [bus._runner for bus in self._buses.values()]
        due_in_s = [r.due_in_s() for r in runners if not (r.runs_here or r.is_stopping)]
        return min(self.clock() + min(due_in_s, default=math.inf), self._host.next_due_s())

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        # In place of sleeping: the others go on, and then time does.
        until = self.clock() + timeout_s
        while not ready():
            if self._turn():
                continue
            if self.clock() >= until:
                return ready()
            until_due = min(self._next_due_s(), until)
            if math.isinf(until_due):
                raise AembusError("this waits for ever: no member has anything to do, now or later")
            self.clock.set(max(until_due, self.clock()))
        return True

    wait = _wait  # as shm.sleeper.Listener

    def _run_to_its_end(self, begun: Begun) -> None:
        async def run() -> None:
            awaited.set(Awaited(begun.event, begun.record, begun.chain, True))
            try:
                result = await begun.coroutine
            except (Exception, asyncio.CancelledError) as error:
                complete = functools.partial(begun.job.raised, error)
            else:
                complete = functools.partial(begun.job.done, result)
            with contextlib.suppress(JobNotInHand):  # the handler has completed it itself
                complete()

        # In a test that is an `async def`, and where such a handler calls another one, too.
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            asyncio.run(run())
        finally:
            asyncio._set_running_loop(outer)

    # --- what a supervisor does -------------------------------------------------------------------

    def _create_inbox(self, member: Member) -> None:
        name = names.shared_name(self.name, self._nonce, inbox_role(member.inbox_id))
        size = layout.inbox_bytes(SLOTS, LANE_BYTES)
        segment = Segment.create_private(
            name, layout.INBOX_MAGIC, size, slots=SLOTS, lane_bytes=LANE_BYTES
        )
        segment.publish()
        self._segments.append(segment)

    def _open(self, inbox_id: int) -> Segment:
        name = names.shared_name(self.name, self._nonce, inbox_role(inbox_id))
        return Segment.open(name, layout.INBOX_MAGIC)

    def _publish(self, services: list[list[Any]]) -> None:
        self._writer.publish(self._members.document(self.name, self._nonce, services))

    def request(self, membership: _InProcessMembership, op: str, fields: dict[str, Any]) -> Any:
        """Do what a member asks of its supervisor; see supervisor.operations."""
        if op == "join":
            return self._join(membership, fields)
        member = membership.member
        match op:
            case "register":
                return {"ids": self._members.register(member, fields["events"])}
            case "publish":
                self._members.publish(member, fields["stopped"])
            case "ready":
                self._members.publish_all(member, fields["stopped"])
            case "stop_event":
                self._members.stop(member, fields["ids"])
            case "start_event":
                self._members.start(member, fields["ids"])
            case "unregister":
                self._members.unregister(member, fields["ids"])
            case "counter":
                return {"index": self._members.counter(member, fields["name"])}
            case "bind":
                found = self._host.find(fields["name"], fields["version"])
                return {"service": found.to_document()}
            case "release":
                return {}
            case "undeliverable":
                return {"forwarded": self._take_undeliverable(fields)}
            case "pipe_bell":
                raise AembusError(
                    "a bus without processes has nothing that an event loop could watch; serve(), "
                    "subscribe() and the awaitable activations and calls need a real one"
                )
            case "leave":
                self._leave(membership)
            case _:
                raise ControlError(f"a bus without processes does not know this, operation={op!r}")
        self._publish(self._host.documents)
        return {}

    def _join(self, membership: _InProcessMembership, fields: dict[str, Any]) -> dict[str, Any]:
        name = fields["name"]
        if name and self._members.named(name) is not None:
            raise ControlError(f"this bus has such a member already, name={name!r}")
        state = "starting" if name else "running"
        member = self._members.add(KIND_CLIENT, name, os.getpid(), state)
        membership.member = member
        self._create_inbox(member)
        self._publish(self._host.documents)
        return {
            "nonce": self._nonce,
            "slot": member.slot,
            "incarnation": member.incarnation,
            "inbox_id": member.inbox_id,
            "name": member.name,
        }

    def _leave(self, membership: _InProcessMembership) -> None:
        member = membership.member
        self._buses.pop(member.slot, None)
        member.state = "leaving"
        self._publish(self._host.documents)
        # As its replacement would: what was held, or waits for its next attempt, is there again.
        inbox = Inbox(self._open(member.inbox_id), _NoBell())
        for lane, _ in inbox.turn():
            while (record := inbox.take(lane)) is not None:
                self._dispose(member, record)
        inbox.close()
        self._host.on_member_gone(member.slot, member.incarnation)
        self._members.remove(member)

    def _dispose(self, member: Member, record: Record) -> None:
        # As supervisor.departures does.
        reason = "its member went"
        if record.header[4] & layout.STATE_MASK == layout.STATE_FAILED:
            reason = WENT_BEFORE_RETRY
        elif record.attempts:
            reason = "in hand when its member went"
        if record.kind == layout.KIND_CALL:
            if not record.attempts:
                self._answers.returned(record.header)  # its caller calls somebody else
                return
            text = f"{reason}, member={member.name!r}, pid={member.pid}"
            self._answers.failed(record.header, Failure(MEMBER_GONE, text))
        fields = {"header": record.header, "payload": record.payload, "reason": reason}
        self._take_undeliverable({**fields, "try_group": not record.attempts})

    def _take_undeliverable(self, fields: dict[str, Any]) -> bool:
        header = fields["header"]
        kind, event_id, key_hash = header[1], header[11], header[12]
        if kind not in layout.KINDS_FOR_EVENTS:
            return False
        registration = self._members.registration(event_id)
        if registration is not None and registration.options.tap:
            return True  # nobody misses it
        payload = callchain.data_of(header, fields["payload"])
        if fields["try_group"] and registration is not None and registration.group is not None:
            routing: Routing = self._sender.refresh()
            group = routing.group(registration.point, registration.group)
            siblings = [target for target in group if target.event_id != event_id]
            if siblings:
                job = Job(payload, key_hash, kind=kind, flags=header[2], deadline_ns=header[7])
                target = siblings[(key_hash or header[5]) % len(siblings)]
                if self._sender.try_send(target, job) != FULL:
                    return True
        point, event = (registration.point, registration.name) if registration else ("", "")
        self.dead_letters.append(DeadJob(point, event, tuple(decode(payload)), fields["reason"]))
        return False

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every member, and let go of the memory.  Idempotent."""
        for bus in list(self._buses.values()):
            bus.close()
        self._sender.close()
        self._reader.close()
        self._inbox.close()
        self._writer.close()
        for segment in self._segments:
            segment.close()
            segment.unlink()
        self._segments.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _NoBell:
    """Where nobody sleeps, nobody is to be woken."""

    kind: Final = layout.BELL_SEMAPHORE

    def timed_wait(self, timeout_s: float) -> bool:
        return False

    def post(self) -> None:
        pass

    def drain(self) -> int:
        return 0

    def close(self) -> None:
        pass


class _Control:
    """Stands where the connection to the supervisor would."""

    def __init__(self, bus: InProcessBus, membership: _InProcessMembership) -> None:
        self._bus = bus
        self._membership = membership

    def request(self, op: str, **fields: Any) -> Any:
        return self._bus.request(self._membership, op, fields)

    def leave(self, keep: bool) -> None:
        self.request("leave", keep=keep)

    def close(self) -> None:
        pass

    def forget_parent(self) -> None:
        pass


class _InProcessMembership(Membership):
    """A membership whose supervisor is the InProcessBus."""

    member: Member

    def __init__(
        self,
        owner: InProcessBus,
        bus: str,
        wanted: dict[str, Any],
        on_order: Callable[[dict[str, Any]], None],
        on_broken: Callable[[Membership], None],
    ) -> None:
        self._owner = owner
        self.clock = owner.clock
        super().__init__(bus, wanted, on_order, on_broken)

    def _connect(self, on_broken: Callable[[], None]) -> Any:
        return _Control(self._owner, self)

    def _open_inbox(self, name: str) -> Inbox:
        inbox = Inbox(self._owner._open(self._inbox_id), _NoBell())
        inbox.listen(self._owner)
        return inbox

    def close(self) -> None:
        self.inbox.listen(None)
        super().close()
