"""The bus object: one process's membership of a bus.

`connect` joins a running bus as a client; a worker's entry point gets its bus from the supervisor.
A bus object belongs to the process that made it: in a forked child it raises ForkedBusError.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, final

from aembus.counter import Counter
from aembus.errors import (
    BusBroken,
    BusClosed,
    ForkedBusError,
    RegistrationError,
)
from aembus.event import Event, EventStatistics, Handler
from aembus.events import EventStruct, EventStructStatistics
from aembus.membership import Membership
from aembus.points import ActivationPoint
from aembus.registrations import Registrations
from aembus.rejoining import Rejoining
from aembus.routing import ServiceVersion
from aembus.runner import Runner, spin_from_environment
from aembus.sender import Sender
from aembus.service_clients import ServiceClients
from aembus.shm import layout
from aembus.shm.inbox import Inbox

log = logging.getLogger("aembus")

KEEP_S: Final = 60.0

_buses: weakref.WeakSet[Bus] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class BusStatistics:
    """What this process did on its bus so far."""

    event_struct: EventStructStatistics
    events: dict[str, EventStatistics]
    late_replies: int


@final
class Bus:
    """One process's membership of a bus.  Made by `connect`, or by the supervisor for a worker.

    Args:
        bus: the bus's name.
        kind: "client" or "worker".
        name, keep, reconnect: see `connect`.
    """

    def __init__(
        self,
        bus: str,
        kind: str = "client",
        name: str = "",
        keep: float = KEEP_S,
        reconnect: bool = False,
    ) -> None:
        self.name = bus
        self._wanted = {"kind": kind, "name": name, "keep_s": keep}
        self._closed = False
        self._on_broken: Callable[[], None] | None = None
        self._on_reconnect: Callable[[], None] | None = None
        self._pid = os.getpid()
        self._points: dict[str, ActivationPoint] = {}
        self._services = ServiceClients(self, self._membership_or_raise)
        self._counters: dict[str, Counter] = {}
        self._changing = threading.Lock()
        self._current: Membership | None = None
        self._stop_asked = False
        self._rejoining: Rejoining | None = None
        membership = self._join()
        self._registrations = Registrations(lambda: self._membership, together=bool(name))
        self._runner = Runner(
            membership.event_struct, membership.inbox, membership.calls, self._await_bus
        )
        if reconnect:
            self._rejoining = Rejoining(bus, self._join_again)
        self._take_up(membership)
        _buses.add(self)

    # --- the membership -------------------------------------------------------------------------

    @property
    def _membership(self) -> Membership:
        current = self._current
        assert current is not None
        return current

    @property
    def member_name(self) -> str:
        """This member's name: the one asked for, or one that the supervisor made up."""
        return self._membership.name

    @property
    def slot(self) -> int:
        """This member's slot; another one after joining again."""
        return self._membership.slot

    @property
    def incarnation(self) -> int:
        """Which process of all that were ever on this bus; another one after joining again."""
        return self._membership.incarnation

    @property
    def event_struct(self) -> EventStruct:
        """What owns this process's events; another one after joining again."""
        return self._membership.event_struct

    @property
    def _sender(self) -> Sender:
        return self._membership.sender

    @property
    def _inbox(self) -> Inbox:
        return self._membership.inbox

    def _join(self) -> Membership:
        return Membership(self.name, self._wanted, self._handle_stop, self._handle_broken)

    def _take_up(self, membership: Membership) -> None:
        # What breaks from now on is the current one, and its watcher says so; what broke before
        # has been overheard.
        with self._changing:
            self._current = membership
            broken, stop_asked = membership.broken, self._stop_asked
        if broken:
            self._lose(membership)
        if stop_asked:
            self.stop()

    def _handle_stop(self) -> None:
        with self._changing:
            self._stop_asked = True
            early = self._current is None
        if not early:
            self.stop()

    def _handle_broken(self, membership: Membership) -> None:
        with self._changing:
            membership.broken = True
            current = membership is self._current
        membership.refuse()
        if current:
            self._lose(membership)

    def _lose(self, membership: Membership) -> None:
        membership.refuse()
        if self._on_broken is not None:
            self._on_broken()
        self._runner.interrupt()
        if self._rejoining is not None and not self._closed:
            self._rejoining.begin()

    def _await_bus(self, timeout_s: float) -> bool:
        # For the runner: whether jobs can come, which they do once registrations are published.
        membership = self._membership
        if self._rejoining is None or self._closed:
            self._membership_or_raise()
        elif membership.broken and not self._rejoining.wait(timeout_s):
            return False
        try:
            self._registrations.publish()
        except BusBroken:
            if self._rejoining is None:
                raise
            return False
        return True

    def _join_again(self) -> None:
        last, membership = self._membership, self._join()
        try:
            with self._runner.exchange() as give:  # not before the job in hand is finished
                if self._closed:
                    raise BusClosed("this bus object was closed")
                self._take_up(membership)
                for name, counter in list(self._counters.items()):
                    counter.rebind(membership.inbox, membership.counter(name))
                for point in list(self._points.values()):
                    point.rebind(membership.sender)
                self._services.rejoin()
                if self._on_reconnect is not None:
                    self._on_reconnect()
                self._registrations.repeat()
                give(membership.event_struct, membership.inbox, membership.calls)
        except BaseException:
            membership.leave(keep=not self._closed)
            if membership is self._current:
                membership.broken = True
                membership.refuse()
            else:
                membership.close()
            raise
        finally:
            if last is not self._current:
                last.close_when_unused()

    # --- registering ----------------------------------------------------------------------------

    def register(
        self,
        point: str,
        handler: Handler,
        *,
        group: str | None = None,
        name: str | None = None,
        once: bool = False,
        redeliver: bool = True,
        retries: int = 0,
        backoff: float = 1.0,
        context: Any = None,
    ) -> Event:
        """Run ``handler(event, *data)`` whenever `point` is activated, and return the event.

        Args:
            point: the activation point's name.
            handler: called in the thread that runs this bus, never inside another handler.
            group: the events of one group share the activations; without one, each gets all.
            name: tells two events with the same handler apart; default: its qualified name.
            once: close the event after its first job.
            redeliver: if a worker dies with a job in hand, give it to the replacement; else it
                goes to the dead letters.
            retries: when the handler raises, give it the same job again, up to so many times;
                then the job goes to the dead letters.  Other jobs are delivered meanwhile, so
                what failed comes behind jobs that were sent after it, also those of its key.
            backoff: seconds to pause before the second attempt, twice as many before each
                further one, at most an hour.  A replacement of this process goes on with the
                count, and begins the pause anew.
            context: yours, as `event.context`.

        A worker's registrations are published together when its entry point returns, those of a
        member with a name when it begins to run (`run`, `run_in_thread`, `poll`), anybody else's
        at once: whoever activates after this call has returned reaches the handler.

        Raises: RegistrationError for a duplicate and for numbers that do not fit, BusBroken,
        BusClosed.
        """
        self._membership_or_raise()
        if not 0 <= retries <= layout.STATE_FAILURE_MAX or not 0 <= backoff < math.inf:
            raise RegistrationError(
                "retries and backoff must be 0 or more, and finite, "
                f"retries={retries}, backoff={backoff}, point={point!r}"
            )
        event = Event(
            point,
            handler,
            name=name or str(getattr(handler, "__qualname__", type(handler).__qualname__)),
            group=group,
            once=once,
            redeliver=redeliver,
            retries=retries,
            backoff=backoff,
            context=context,
            closer=self._registrations.close,
        )
        self._registrations.add(event)
        return event

    def on(self, point: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register the decorated function; options as for `register`."""

        def decorate(handler: Handler) -> Handler:
            self.register(point, handler, **options)
            return handler

        return decorate

    def publish_registrations(self) -> None:
        """Publish what a worker or a member with a name has registered.  Idempotent.

        Beginning to run does it.  What waits in the inbox for an event of this member's last
        process that was not registered again goes to its group or to the dead letters.
        """
        self._registrations.publish()

    # --- activating -----------------------------------------------------------------------------

    def point(self, name: str) -> ActivationPoint:
        """Return the activation point of this name."""
        point = self._points.get(name)
        if point is None:
            membership = self._membership
            if self._rejoining is None or self._closed:  # else it is good again some time
                self._membership_or_raise()
            point = self._points[name] = ActivationPoint(name, membership.sender)
            if membership is not self._membership:  # joined again meanwhile, without this point
                point.rebind(self._sender)
        return point

    def activate(
        self, point: str, *data: Any, key: str | bytes | int | None = None, timeout: float = 1.0
    ) -> int:
        """Same as ``bus.point(point).activate(...)``; see ActivationPoint.activate."""
        return self.point(point).activate(*data, key=key, timeout=timeout)

    @property
    def job_bytes_max(self) -> int:
        """How long the data of one activation may be, encoded: half a lane."""
        return self._inbox.payload_bytes_max

    # --- services -------------------------------------------------------------------------------

    def service(self, name: str, version: str | None = None) -> Any:
        """Return the calls of a hosted service: of the newest version, or of the one named.

        Raises: ServiceNotFound.
        """
        return self._services.get(name, version)

    def call_service(
        self, service: ServiceVersion, call: str, data: tuple[Any, ...], timeout: float = 5.0
    ) -> Any:
        """Call a service, block for its answer, and return the result (for service clients).

        Raises: CallFailed, CallTimeout, InboxFull, ServiceNotFound.
        """
        return self._services.call(service, call, data, timeout)

    def tell_service(
        self, service: ServiceVersion, call: str, data: tuple[Any, ...], timeout: float = 5.0
    ) -> None:
        """Call a service that gives no answer (for service clients)."""
        self._services.tell(service, call, data, timeout)

    # --- running --------------------------------------------------------------------------------

    def run(self, *, spin: float | None = None) -> None:
        """Deliver jobs to this process's events until `stop`, or until the bus is closed.

        With reconnect=True it goes on when the next supervisor of the bus is there.

        Args:
            spin: for how many seconds after the last job to look for the next one before sleeping
                on the doorbell; waking up costs tens of microseconds, spinning costs a processor.
                Default: the environment's AEMBUS_SPIN_US, or not at all.

        Raises: BusBroken when the supervisor dies (after the job in hand), BusClosed.
        """
        self._runner.run(spin_from_environment() if spin is None else spin)

    def poll(self, timeout: float = 0.0) -> int:
        """Deliver what is there, waiting up to `timeout` seconds for the first job.

        Returns how many jobs were handled.  Raises: BusBroken (not with reconnect=True: then the
        time-out passes without any), BusClosed.
        """
        return self._runner.poll(timeout)

    def run_in_thread(self, *, spin: float | None = None) -> threading.Thread:
        """Run this bus in a thread of its own; `close` ends it.  `spin`: see `run`."""
        self._await_bus(0.0)
        return self._runner.run_in_thread(spin_from_environment() if spin is None else spin)

    def stop(self) -> None:
        """Make `run` return after the job in hand; may be called from anywhere."""
        self._runner.stop()

    # --- the supervisor's side of it ------------------------------------------------------------

    def on_broken(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in the watcher thread, when the supervisor dies."""
        self._on_broken = callback

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in a thread of its own, whenever the bus was joined again.

        It may use the bus: what services kept for this process (timers, listeners) went with the
        last supervisor and can be asked for anew.  This process's events are published after it,
        and jobs are delivered after that.  If it raises an AembusError, joining is tried again.
        """
        self._on_reconnect = callback

    # --- the rest -------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        """The events of this process."""
        return self._registrations.events

    def counter(self, name: str) -> Counter:
        """Return the application's counter of this name, making it at first use.

        Raises: ControlError if the member has too many.
        """
        membership = self._membership_or_raise()
        counter = self._counters.get(name)
        if counter is None:
            counter = Counter(name, membership.inbox, membership.counter(name))
            counter = self._counters.setdefault(name, counter)
            if membership is not self._membership:  # as in `point`
                counter.rebind(self._inbox, self._membership.counter(name))
        return counter

    def statistics(self) -> BusStatistics:
        """Return what this process did on the bus so far."""
        events = {f"{e.point} {e.name}": e.statistics() for e in self.event_struct.events}
        late_replies = self._membership.calls.late_replies
        return BusStatistics(self.event_struct.statistics(), events, late_replies)

    def close(self, keep: bool = False) -> None:
        """Leave the bus.  Idempotent.

        What is queued for this process goes to its groups or to the dead letters; the job in
        hand is finished first.  Called by a handler, it takes effect when that has returned.

        Args:
            keep: for a member with a name: keep its place, with all that is queued, for the next
                process of that name, as after a crash (see `connect`).
        """
        if self._closed or os.getpid() != self._pid:
            return
        if self._runner.in_handler():  # it must return first: its job is in the inbox
            self._runner.afterwards(functools.partial(self.close, keep))
            self._runner.stop()
            return
        self._closed = True
        if (
            self._rejoining is not None and self._membership.broken
        ):  # no loss: it looks for the next
            self._sender.refuse(BusClosed("this bus object was closed"))
        self._runner.stop()
        self._runner.join()
        if self._rejoining is not None:
            self._rejoining.close()
        membership = self._membership
        membership.event_struct.settle()  # held jobs that were completed since the last round
        membership.sender.close()
        membership.leave(keep)
        membership.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # By an exception is not on purpose: as after a crash, the next one finds what is queued.
        self.close(keep=kind is not None)

    def _membership_or_raise(self) -> Membership:
        membership = self._membership
        if self._closed or membership.broken:
            membership.sender.refresh()  # raises BusClosed, BusBroken or ForkedBusError
        return membership

    def _poison(self) -> None:
        self._sender.forget_parent(
            ForkedBusError(
                "this bus object belongs to the parent process; call aembus.connect in the "
                f"child, parent={self._pid}, child={os.getpid()}"
            )
        )
        self._membership.control.forget_parent()
        self._closed = True

    def __repr__(self) -> str:
        return f"<Bus {self.name!r} slot={self.slot} member={self.member_name!r}>"


def connect(bus: str, *, name: str = "", keep: float = KEEP_S, reconnect: bool = False) -> Bus:
    """Join the running bus of this name and return it; use it as a context manager.

    Args:
        bus: the bus's name.
        name: makes this process a member that is found again, whoever starts it: the next process
            that connects with this name has the same inbox and event ids, what is queued waits
            for it and goes on arriving, and the job that was in hand at a crash comes again.  Its
            registrations are published together when it begins to run.
        keep: how many seconds the place of a member with a name is kept after its process has
            died (or closed with keep=True); then it departs, and what is queued goes to its groups
            or to the dead letters.  0: not at all.  Its groups' new jobs go to its siblings after
            5 seconds.
        reconnect: when the supervisor dies, join the next supervisor of the bus, register all
            events there again, and go on.  Until then activations raise BusBroken.  What was
            queued went with the old supervisor.

    Blocks until the supervisor has answered.
    Raises: BusNotFound, PermissionRefused, VersionMismatch, OutOfSharedMemory, SlotsExhausted,
    NameInUse if a living process has the name.
    """
    return Bus(bus, name=name, keep=keep, reconnect=reconnect)


def _poison_after_fork() -> None:
    for bus in list(_buses):
        bus._poison()


os.register_at_fork(after_in_child=_poison_after_fork)
