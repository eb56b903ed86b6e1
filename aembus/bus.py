"""The bus object: one process's membership of a bus.

`aembus.connect` joins a running bus as a client; a worker's entry point gets its bus from the
supervisor.
A bus object belongs to the process that made it: in a forked child it raises ForkedBusError.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, final, overload

from aembus.attachment import Attachment
from aembus.coroutines import Coroutines
from aembus.counter import Counter, Counters
from aembus.delivery import DELIVERY_INTERRUPT, DELIVERY_RUN, Delivery, check_delivery
from aembus.errors import AembusError, BusClosed, ForkedBusError
from aembus.event import Event, Handler
from aembus.events import EventStruct
from aembus.forks import poison_in_children
from aembus.kept import Recent, WeakList
from aembus.masking import masked
from aembus.membership import Membership
from aembus.numbers_route import NumbersRoute
from aembus.one_way import OneWayCall
from aembus.options import EventOptions, Full, Policy, default_name
from aembus.points import ActivationPoint, Registrable, TypedPoint, check_point
from aembus.registering import EventMaker
from aembus.registrations import Registrations
from aembus.routing import ServiceVersion
from aembus.runner import Runner, spin_from_environment
from aembus.sender import Sender
from aembus.service_clients import ServiceClients
from aembus.shm.inbox import Inbox
from aembus.stages import Stage
from aembus.statistics import BusStatistics, EventStatistics

if TYPE_CHECKING:
    from aembus.interruption import Interrupter

KEEP_S: Final = 60.0

_T = TypeVar("_T")


@final
class Bus:
    """One process's membership of a bus.  Made by `connect`, or by the supervisor for a worker.

    Args:
        bus: the bus's name.
        kind: "client" or "worker".
        name, keep, reconnect, delivery: see `connect`.
        join: makes the membership; a test's is another one (`aembus.testing`).
    """

    def __init__(
        self,
        bus: str,
        kind: str = "client",
        name: str = "",
        keep: float = KEEP_S,
        reconnect: bool = False,
        delivery: Delivery = DELIVERY_RUN,
        join: Callable[..., Membership] = Membership,
    ) -> None:
        self.name = bus
        check_delivery(delivery, reconnect)
        self._delivery = delivery
        self._interrupter: Interrupter | None = None
        self._on_reconnect: Callable[[], None] | None = None
        self._pid = os.getpid()
        self._points: Recent[ActivationPoint] = Recent()
        self._points_in_use: WeakList[ActivationPoint] = WeakList()  # those of the program, too
        self._counters = Counters(lambda: self._membership)
        self._attachment = Attachment(bus, {"kind": kind, "name": name, "keep_s": keep}, join)
        self._services = ServiceClients(self, self._attachment.membership_or_raise)
        self._registrations = Registrations(lambda: self._membership, together=bool(name))
        membership = self._membership
        self._runner = Runner(
            membership.event_struct, membership.inbox, membership.calls, self._attachment.await_bus
        )
        self.coroutines = Coroutines()
        self._event_maker = EventMaker(self.coroutines, self._registrations)
        self._attachment.begin(self._runner, self._registrations.publish, self._move, reconnect)
        poison_in_children(self)
        if not name:  # else once its registrations are published
            self._begin_interruptions()

    def _begin_interruptions(self) -> None:
        if self._delivery == DELIVERY_INTERRUPT and self._interrupter is None:
            from aembus.interruption import Interrupter

            try:
                bell = self._membership.take_pipe_bell()
                is_publishing = self._sender.is_publishing_here
                self._interrupter = Interrupter(self._runner, self._inbox, bell, is_publishing)
            except BaseException:
                self.close(keep=True)
                raise

    # --- the membership -------------------------------------------------------------------------

    @property
    def _membership(self) -> Membership:
        return self._attachment.membership

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

    def _move(self, membership: Membership) -> None:
        # The bus was joined again, and nothing is delivered meanwhile.
        self._counters.move()
        for point in self._points_in_use:
            point.rebind(membership.sender, membership.calls, membership.awaiting)
        self._services.rejoin()
        if self._on_reconnect is not None:
            self._on_reconnect()
        self._registrations.repeat()

    # --- registering ----------------------------------------------------------------------------

    def register(
        self,
        point: Registrable,
        handler: Handler,
        *,
        group: str | None = None,
        policy: Policy = "round_robin",
        full: Full = "wait",
        urgent: bool = False,
        name: str | None = None,
        once: bool = False,
        redeliver: bool = True,
        retries: int = 0,
        backoff: float = 1.0,
        constructor: Stage | None = None,
        destructor: Stage | None = None,
        context: Any = None,
        spawn: bool = False,
        children_max: int | None = None,
    ) -> Event:
        """Run ``handler(event, *data)`` whenever `point` is activated, and return the event.

        Args:
            point: the activation point, or its name; handlers of a typed point get the instance.
            handler: called in the thread that runs this bus, never inside another handler; where
                the bus is served (`serve`) it may be an ``async def``.
            group: the events of one group share the activations; without one, each gets all.
            policy, full, urgent: who of a group gets what has no key, what a full inbox here means
                to activations, and whether its jobs come first: see `aembus.EventOptions`.
            name: tells two events with the same handler apart; default: its qualified name.
            once: close the event after its first job.
            redeliver, retries, backoff: when a job comes again, or not: see `aembus.EventOptions`.
            constructor: called right before the handler, ``constructor(event, *data)``; returns
                the handler's arguments as a tuple or list, or raises `Refused`: then the job is
                done and counted as refused, and a caller gets CallFailed.
            destructor: called right after the handler, ``destructor(event, result, error)``,
                also if that raised, but not if the constructor did.  What it returns goes back to
                a caller in place of the result; an exception of the handler stays one.
            context: yours, as `event.context`.
            spawn: run the handler in a process of its own for each job, a child of the bus's
                spawn host.  It must be found by its name: defined at the top of a module, as its
                stages must be.  See docs/guide/processes.md for what a child is.
            children_max: with spawn=True: how many children there may be at once, of this event,
                or of all events of its group together.  Beyond that jobs wait, and take their
                room in the lanes.  Default: as many as the machine has processors for it.

        A worker's registrations are published together when its entry point returns, those of a
        member with a name when it begins to run (`run`, `run_in_thread`, `poll`), anybody else's
        at once: whoever activates after this call has returned reaches the handler.

        With spawn=True that waits until the spawn host has imported the handler's module.

        Raises: RegistrationError for a duplicate, for a policy that the rest of the group has not,
        for numbers that do not fit, for what cannot be called, and for a handler with spawn=True
        that another process cannot find or import; TypeError for no point; BusBroken, BusClosed.
        """
        self._attachment.membership_or_raise()
        options = EventOptions(
            name=name or default_name(handler),
            group=group,
            policy=policy,
            full=full,
            urgent=urgent,
            once=once,
            redeliver=redeliver,
            retries=retries,
            backoff=backoff,
            spawn=spawn,
            children_max=children_max,
        )
        event = self._event_maker.event(point, handler, options, constructor, destructor, context)
        self._registrations.add(event)
        return event

    def tap(self, point: Registrable, handler: Handler, *, name: str | None = None) -> Event:
        """Have ``handler(event, *data)`` see a copy of each job of `point`, and return the event.

        Nobody waits for it: what its inbox has no room for is dropped, counted as `dropped` in
        the statistics.  Who activates or calls does not count it; what it raises is logged; copies
        are not retried, redelivered or kept as dead letters.

        Args:
            name: tells two taps with the same handler apart.

        Raises: as `register` does.
        """
        self._attachment.membership_or_raise()
        event = self._event_maker.tap(point, handler, name)
        self._registrations.add(event)
        return event

    def on(self, point: Registrable, **options: Any) -> Callable[[Handler], Handler]:
        """Register the decorated function; options as for `register`."""
        check_point(point)  # now: ``@bus.on`` without a point would register nothing

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
        self._begin_interruptions()

    # --- activating -----------------------------------------------------------------------------

    @overload
    def point(self, name: str) -> ActivationPoint: ...
    @overload
    def point(self, name: str, data: type[_T]) -> TypedPoint[_T]: ...
    def point(self, name: str, data: type[_T] | None = None) -> ActivationPoint | TypedPoint[_T]:
        """Return the activation point of this name.

        Args:
            data: a dataclass: makes it a typed point, which is activated with instances of it.

        Raises: TypeError for a class that cannot be checked, BusBroken, BusClosed.
        """
        point = self._point(name)
        return point if data is None else TypedPoint(point, data)

    def _point(self, name: str) -> ActivationPoint:
        point = self._points.get(name)
        if point is None:
            membership = self._membership
            if not self._attachment.reconnects or self._attachment.closed:
                self._attachment.membership_or_raise()  # else it is good again some time
            point = ActivationPoint(
                name, membership.sender, membership.calls, membership.awaiting, self
            )
            self._points_in_use.add(point)
            self._points.keep(name, point)
            if membership is not self._membership:  # joined again meanwhile, without this point
                now = self._membership
                point.rebind(now.sender, now.calls, now.awaiting)
        return point

    def activate(
        self,
        point: str,
        *data: Any,
        key: str | bytes | int | None = None,
        timeout: float = 1.0,
        ttl: float | None = None,
    ) -> int:
        """Same as ``bus.point(point).activate(...)``; see ActivationPoint.activate."""
        return self._point(point).activate(*data, key=key, timeout=timeout, ttl=ttl)

    def name_of(self, slot: int) -> str:
        """Return the name of the member in a slot (`job.origin`); "slot N" if it has gone."""
        member = self._sender.refresh().members.get(slot)
        return member.name if member is not None else f"slot {slot}"

    @property
    def job_bytes_max(self) -> int:
        """How long the data of one activation may be, encoded: half a lane."""
        return self._inbox.payload_bytes_max

    # --- services -------------------------------------------------------------------------------

    def service(self, name: str, version: str | None = None) -> Any:
        """Return the calls of a hosted service: of the newest version, or of the one named.

        The first time binds this process to that version, until it lets go (`release`, `close`,
        its end): who asks again gets the same, also when a newer one has been loaded.

        Raises: ServiceNotFound.
        """
        return self._services.get(name, version)

    def release(self, service: Any) -> None:
        """Let go of what `service` returned; who asks again is bound to the newest version.

        What was sent before is still delivered; do not use it afterwards.  Timers and watches with
        a handler of this process are cancelled; those at points go on.  Idempotent.
        """
        self._services.release(service)

    def hosts_of(self, service: ServiceVersion) -> list[ServiceVersion]:
        """Return a version of a service as each of its hosts has it (for service clients)."""
        return self._services.hosts_of(service)

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

    def one_way_call(self, service: ServiceVersion, call: str, timeout: float = 5.0) -> OneWayCall:
        """Return the short way of a service call that gives no answer (for service clients)."""
        return self._services.one_way_call(service, call, timeout)

    def numbers_route(self, service: ServiceVersion, call: str) -> NumbersRoute:
        """Return the short way of a service call of two numbers (for service clients)."""
        return self._services.numbers_route(service, call)

    # --- running --------------------------------------------------------------------------------

    def run(self, *, spin: float | None = None) -> None:
        """Deliver jobs to this process's events until `stop`, or until the bus is closed.

        With reconnect=True it goes on when the next supervisor of the bus is there.

        Args:
            spin: for how many seconds after the last job to look for the next one before sleeping
                on the doorbell; waking up costs tens of microseconds, spinning costs a processor.
                Default: the environment's AEMBUS_SPIN_US, or not at all.

        Raises: BusBroken when the supervisor dies (after the job in hand), BusClosed, AembusError
        in a handler and where another thread runs this bus.
        """
        self._check_thread()
        with masked:  # delivered by the loop, not by interruptions
            self._runner.run(spin_from_environment() if spin is None else spin)

    def poll(self, timeout: float = 0.0) -> int:
        """Deliver what is there, waiting up to `timeout` seconds for the first job.

        Returns how many jobs were handled.  Raises: BusBroken (not with reconnect=True: then the
        time-out passes without any), BusClosed, AembusError as `run` does.
        """
        self._check_thread()
        with masked:
            return self._runner.poll(timeout)

    def run_in_thread(self, *, spin: float | None = None) -> threading.Thread:
        """Run this bus in a thread of its own; `close` ends it.  `spin`: see `run`."""
        if self._delivery == DELIVERY_INTERRUPT:
            raise AembusError("delivery='interrupt' needs no thread; connect without it for one")
        self._check_not_served()
        self._attachment.await_bus(0.0)
        return self._runner.run_in_thread(spin_from_environment() if spin is None else spin)

    def masked(self) -> AbstractContextManager[None]:
        """Hold interruptions off while the main thread is in the ``with`` block.

        What comes meanwhile is delivered on leaving it.  May be nested.  Guard by it what handlers
        and the program share and a handler must not find half done, or locked: files and `print`
        too.  Other deliveries interrupt nothing, and are not held off.
        """
        return masked

    def _check_not_served(self) -> None:
        if self.coroutines.served:
            raise AembusError("this bus is served already; handlers and tasks await, or return")

    def _check_thread(self) -> None:
        self._check_not_served()
        if (
            self._delivery == DELIVERY_INTERRUPT
            and threading.current_thread() is not threading.main_thread()
        ):
            raise AembusError("with delivery='interrupt' only the main thread gets jobs")

    async def serve(self, *, concurrency: int = 1) -> None:
        """Deliver jobs in the running event loop until `stop`, or until the bus is closed.

        Other tasks run between two jobs, and while an ``async def`` handler awaits something.
        Cancelling this cancels the handlers that are awaited and leaves their jobs in hand; it may
        be called again then.  If something else that a handler awaits is cancelled, the handler has
        raised CancelledError.  What is no other Exception passes from a handler, through this.

        Args:
            concurrency: how many jobs of ``async def`` handlers may be under way at once.  1: the
                next job, of whatever event, begins when the handler has ended.  More: others are
                delivered meanwhile, also of the same event and key; they begin in order and end
                as they like.  A plain handler runs to its end, as ever.

        Raises: BusBroken when the supervisor dies (after the jobs in hand), BusClosed, ValueError.
        """
        self._check_thread()
        if concurrency < 1:
            raise ValueError(f"concurrency is 1 or more, concurrency={concurrency}")
        if self._delivery == DELIVERY_INTERRUPT or self._attachment.reconnects:
            raise AembusError("serve() goes neither with delivery='interrupt' nor with reconnect")
        self._runner.check_free()
        from aembus.serving import Server

        self._attachment.await_bus(0.0)
        listener = self._membership.awaiting().listener
        await Server(self._runner, self._inbox, listener, self.coroutines, concurrency).serve()
        self._runner.finish()

    def stop(self) -> None:
        """Make `run` return after the job in hand; may be called from anywhere.

        For good: what comes later waits in the inbox, until the bus is closed.
        """
        self._runner.stop()

    # --- the supervisor's side of it ------------------------------------------------------------

    def on_broken(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in the watcher thread, when the supervisor dies."""
        self._attachment.on_broken = callback

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

    @property
    def active_events(self) -> list[Event]:
        """Those of this process's events whose handler is at work, and those that hold jobs."""
        return self.event_struct.active_events

    def counter(self, name: str) -> Counter:
        """Return the application's counter of this name, making it at first use.

        Raises: ControlError if the member has too many.
        """
        self._attachment.membership_or_raise()
        return self._counters.get(name)

    @property
    def clock_ns(self) -> Callable[[], int]:
        """What says the time in nanoseconds: time.monotonic_ns; in `aembus.testing` a test does."""
        clock = self._sender.clock
        return time.monotonic_ns if clock is time.monotonic else lambda: round(clock() * 1e9)

    def statistics(self) -> BusStatistics:
        """Return what this process did on the bus so far.  Raises: BusClosed, ForkedBusError."""
        self._check_open()
        events: dict[str, EventStatistics] = {}
        for event in self.event_struct.events:
            key = f"{event.point} {event.name}"
            events[f"{key} {event.group}" if key in events else key] = event.statistics()
        late_replies = self._membership.calls.late_replies
        try:
            dropped = self._inbox.dropped()
        except ValueError:  # another thread closes the bus
            self._check_open()
            raise
        return BusStatistics(self.event_struct.statistics(), events, late_replies, dropped)

    def close(self, keep: bool = False) -> None:
        """Leave the bus.  Idempotent.

        What is queued for this process goes to its groups or to the dead letters; the job in
        hand is finished first.  Called by a handler, or while the bus is served, it takes effect
        when that has returned, or ended; by a signal handler in the middle of an activation, or in
        the thread that runs the bus, when that has been made, or has ended.  A signal handler had
        better call `stop`, which waits for nobody: what it has interrupted may hold a lock that the
        thread which runs the bus needs to end.

        Args:
            keep: for a member with a name: keep its place, with all that is queued, for the next
                process of that name, as after a crash (see `connect`).
        """
        if self._attachment.closed or os.getpid() != self._pid:
            return
        if self._runner.in_handler() or self.coroutines.served or self._is_delivering_here():
            self._runner.afterwards(functools.partial(self.close, keep))
            self._runner.stop()
            return
        if self._sender.put_off(functools.partial(self.close, keep)):
            self._runner.stop()
            return
        with masked:
            self._close(keep)

    def _is_delivering_here(self) -> bool:
        # A signal handler has interrupted what would find its inbox closed.
        interrupter = self._interrupter
        return self._runner.runs_here or (interrupter is not None and interrupter.delivers_here)

    def _close(self, keep: bool) -> None:
        self._attachment.closed = True
        if self._interrupter is not None:
            self._interrupter.close()
        self._attachment.refuse_while_lost()
        self._runner.stop()
        self._runner.join()
        self._attachment.end()
        membership = self._membership
        if not membership.replaced:
            membership.event_struct.settle()  # held jobs that were completed since the last round
        membership.sender.close()
        self._counters.refuse(BusClosed("this bus object was closed"))
        membership.leave(keep)
        membership.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def _check_open(self) -> None:
        if self._attachment.closed:
            self._attachment.membership_or_raise()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # By an exception is not on purpose: as after a crash, the next one finds what is queued.
        self.close(keep=kind is not None)

    def poison(self) -> None:
        """Refuse everything: this is a forked child's copy."""
        error = ForkedBusError(
            "this bus object belongs to the parent process; call aembus.connect in the "
            f"child, parent={self._pid}, child={os.getpid()}"
        )
        self._sender.forget_parent(error)
        self._counters.refuse(error)
        self._membership.control.forget_parent()
        if self._interrupter is not None:
            self._interrupter.forget_parent()
        self._attachment.closed = True

    def __repr__(self) -> str:
        return f"<Bus {self.name!r} slot={self.slot} member={self.member_name!r}>"
