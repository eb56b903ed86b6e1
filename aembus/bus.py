"""The bus object: one process's membership of a bus.

`connect` joins a running bus as a client; a worker's entry point gets its bus from the supervisor.
A bus object belongs to the process that made it: in a forked child it raises ForkedBusError.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast, final

from aembus.calls import Calls
from aembus.codec import encode
from aembus.control import ControlClient
from aembus.counter import Counter
from aembus.errors import (
    AembusError,
    BusBroken,
    ForkedBusError,
    RegistrationError,
    ServiceNotFound,
)
from aembus.events import Event, EventStatistics, EventStruct, EventStructStatistics, Handler
from aembus.points import ActivationPoint
from aembus.routing import ServiceVersion, Target
from aembus.runner import Runner, spin_from_environment
from aembus.sender import Job, Sender
from aembus.shm import layout, names, registry
from aembus.shm.inbox import Inbox, inbox_role
from aembus.shm.lanes import Record
from aembus.shm.registry import RegistryReader

log = logging.getLogger("aembus")

SUPERVISOR_SLOT: Final = 0

_buses: weakref.WeakSet[Bus] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class BusStatistics:
    """What this process did on its bus so far."""

    event_struct: EventStructStatistics
    events: dict[str, EventStatistics]
    late_replies: int


class ServiceClient(Protocol):
    """What `Bus.service` returns: the calls of one bound version of a service."""

    def __init__(self, bus: Bus, service: ServiceVersion) -> None: ...


@final
class Bus:
    """One process's membership of a bus.  Made by `connect`, or by the supervisor for a worker.

    Args:
        bus: the bus's name.
        kind: "client" or "worker".
        name: a name of its own, or "" for a member that nobody replaces.
    """

    def __init__(self, bus: str, kind: str = "client", name: str = "") -> None:
        self.name = bus
        self._joined = False
        self._closed = False
        self._broken = threading.Event()
        self._on_broken: Callable[[], None] | None = None
        self._pid = os.getpid()
        self._pending: list[Event] | None = [] if kind == "worker" else None
        self._points: dict[str, ActivationPoint] = {}
        self._clients: dict[tuple[str, str], Any] = {}
        self._sender: Sender | None = None
        self._inbox: Inbox | None = None
        self._control = ControlClient(bus, self._handle_push, self._handle_broken)
        try:
            self._join(kind, name)
        except BaseException:
            self._control.close()
            raise
        _buses.add(self)

    def _join(self, kind: str, name: str) -> None:
        me = self._control.request("join", kind=kind, name=name)
        bus, nonce = self.name, me["nonce"]
        self.member_name: str = me["name"]
        self.slot: int = me["slot"]
        self.incarnation: int = me["incarnation"]
        self._reader = RegistryReader.open(names.shared_name(bus, nonce, registry.ROLE))
        try:
            inbox_id = me["inbox_id"]
            self._inbox = Inbox.open(
                bus,
                nonce,
                inbox_id,
                layout.BELL_SEMAPHORE,
                names.shared_name(bus, nonce, inbox_role(inbox_id)),
            )
            self._sender = Sender(
                bus, nonce, self.slot, self.incarnation, self._reader, self._inbox.wait
            )
            self._calls = Calls(self._sender, self._inbox, self.incarnation)
            self.event_struct = EventStruct(
                self.slot, self._inbox, self._undeliverable, self._sender.ring
            )
            self._runner = Runner(
                self.event_struct, self._inbox, self._calls, self._sender_or_raise
            )
            self._joined = True
        except BaseException:
            if self._inbox is not None:
                self._inbox.close()
            self._reader.close()
            raise

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
            context: yours, as `event.context`.

        A worker's registrations are published together when its entry point returns; anybody
        else's at once: whoever activates after this call has returned reaches the handler.

        Raises: RegistrationError for a duplicate, BusBroken, BusClosed.
        """
        self._sender_or_raise()
        event = Event(
            point,
            handler,
            name=name or str(getattr(handler, "__qualname__", type(handler).__qualname__)),
            group=group,
            once=once,
            redeliver=redeliver,
            context=context,
            closer=self._close_event,
        )
        if self._pending is not None:
            self._check_duplicate(event, self._pending)
            self._pending.append(event)
        else:
            self._check_duplicate(event, self.event_struct.events)
            self._publish([event], "publish")
        return event

    def on(self, point: str, **options: Any) -> Callable[[Handler], Handler]:
        """Register the decorated function; options as for `register`."""

        def decorate(handler: Handler) -> Handler:
            self.register(point, handler, **options)
            return handler

        return decorate

    @staticmethod
    def _check_duplicate(event: Event, others: list[Event]) -> None:
        for other in others:
            if (event.point, event.name, event.group) == (other.point, other.name, other.group):
                raise RegistrationError(
                    "this member has such an event already; give another name=..., "
                    f"point={event.point!r}, name={event.name!r}, group={event.group!r}"
                )

    def _publish(self, events: list[Event], op: str) -> None:
        # Ids first, publication second: a job must not arrive before its event is known here.
        wanted = [[event.point, event.name, event.group] for event in events]
        ids = self._control.request("register", events=wanted)["ids"]
        for event, event_id in zip(events, ids, strict=True):
            event.id = event_id
            self.event_struct.add(event)
        self._control.request(op)
        self._sender_or_raise().refresh()

    def publish_registrations(self) -> None:
        """Publish what a worker's entry point has registered (its runner calls this once)."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._publish(pending, "ready")

    def _close_event(self, event: Event) -> None:
        if self._pending is not None and event in self._pending:
            self._pending.remove(event)
            return
        self._control.request("unregister", ids=[event.id])
        self.event_struct.remove(event)

    # --- activating -----------------------------------------------------------------------------

    def point(self, name: str) -> ActivationPoint:
        """Return the activation point of this name."""
        point = self._points.get(name)
        if point is None:
            point = self._points[name] = ActivationPoint(name, self._sender_or_raise())
        return point

    def activate(
        self, point: str, *data: Any, key: str | bytes | int | None = None, timeout: float = 1.0
    ) -> int:
        """Same as ``bus.point(point).activate(...)``; see ActivationPoint.activate."""
        return self.point(point).activate(*data, key=key, timeout=timeout)

    @property
    def job_bytes_max(self) -> int:
        """How long the data of one activation may be, encoded: half a lane."""
        assert self._inbox is not None
        return self._inbox.payload_bytes_max

    # --- services -------------------------------------------------------------------------------

    def service(self, name: str, version: str | None = None) -> Any:
        """Return the calls of a hosted service: of the newest version, or of the one named.

        Raises: ServiceNotFound.
        """
        routing = self._sender_or_raise().refresh()
        found = routing.service(name, version)
        if found is None:
            hosted = sorted(f"{s.name} {s.version}" for s in routing.services)
            raise ServiceNotFound(
                "no such service here; the supervisor loads those it is told to "
                f"(services=[...], --service), service={name!r}, version={version!r}, "
                f"hosted={hosted}"
            )
        client = self._clients.get((found.name, found.version))
        if client is None:
            client = self._clients[found.name, found.version] = _client_class(found)(self, found)
        return client

    def call_service(
        self, service: ServiceVersion, call: str, data: tuple[Any, ...], timeout: float = 5.0
    ) -> Any:
        """Call a service, block for its answer, and return the result (for service clients).

        Raises: CallFailed, CallTimeout, InboxFull, ServiceNotFound.
        """
        target = Target(service.slot, _call_id(service, call))
        return self._calls.call(target, data, timeout, f"{service.name}.{call}")

    def tell_service(
        self, service: ServiceVersion, call: str, data: tuple[Any, ...], timeout: float = 5.0
    ) -> None:
        """Call a service that gives no answer (for service clients)."""
        target = Target(service.slot, _call_id(service, call))
        job = Job(encode(data), kind=layout.KIND_CALL)
        self._sender_or_raise().send(target, job, timeout, f"{service.name}.{call}")

    # --- running --------------------------------------------------------------------------------

    def run(self, *, spin: float | None = None) -> None:
        """Deliver jobs to this process's events until `stop`, or until the bus is closed.

        Args:
            spin: for how many seconds after the last job to look for the next one before sleeping
                on the doorbell; waking up costs tens of microseconds, spinning costs a processor.
                Default: the environment's AEMBUS_SPIN_US, or not at all.

        Raises: BusBroken when the supervisor dies (after the job in hand), BusClosed.
        """
        self._runner.run(spin_from_environment() if spin is None else spin)

    def poll(self, timeout: float = 0.0) -> int:
        """Deliver what is there, waiting up to `timeout` seconds for the first job.

        Returns how many jobs were handled.  Raises: BusBroken, BusClosed.
        """
        return self._runner.poll(timeout)

    def run_in_thread(self, *, spin: float | None = None) -> threading.Thread:
        """Run this bus in a thread of its own; `close` ends it.  `spin`: see `run`."""
        return self._runner.run_in_thread(spin_from_environment() if spin is None else spin)

    def stop(self) -> None:
        """Make `run` return after the job in hand; may be called from anywhere."""
        self._runner.stop()

    def _undeliverable(
        self, record: Record, reason: str, *, try_group: bool, detail: str = ""
    ) -> bool:
        assert self._inbox is not None
        answer = self._control.request(
            "undeliverable",
            lane_class=self._inbox.lane_class(record.lane),
            header=list(record.header),
            payload=record.payload,
            reason=reason,
            detail=detail,
            try_group=try_group,
        )
        return bool(answer["forwarded"])

    # --- the supervisor's side of it ------------------------------------------------------------

    def _handle_push(self, frame: dict[str, Any]) -> None:
        push = frame["push"]
        if push == "generation":
            if self._sender is not None:
                self._sender.pass_generation()
            self._control.tell("acknowledge", generation=frame["generation"])
        elif push == "stop":
            self.stop()

    def _handle_broken(self) -> None:
        self._broken.set()
        if self._sender is not None:
            self._sender.refuse(BusBroken(f"the supervisor is gone, bus={self.name!r}"))
        if self._on_broken is not None:
            self._on_broken()
        if self._joined:
            self._runner.stop()

    def on_broken(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in the watcher thread, when the supervisor dies."""
        self._on_broken = callback

    # --- the rest -------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        """The events of this process."""
        return [*self.event_struct.events, *(self._pending or ())]

    def counter(self, name: str) -> Counter:
        """Return the application's counter of this name, making it at first use.

        Raises: ControlError if the member has too many.
        """
        inbox = self._inbox
        self._sender_or_raise()
        assert inbox is not None
        return Counter(name, inbox, self._control.request("counter", name=name)["index"])

    def statistics(self) -> BusStatistics:
        """Return what this process did on the bus so far."""
        events = {f"{e.point} {e.name}": e.statistics() for e in self.event_struct.events}
        return BusStatistics(self.event_struct.statistics(), events, self._calls.late_replies)

    def close(self) -> None:
        """Leave the bus.  Idempotent.

        What is queued for this process goes to its groups or to the dead letters; the job in
        hand is finished first.  Called by a handler, it takes effect when that has returned.
        """
        if self._closed or os.getpid() != self._pid:
            return
        if self._runner.in_handler():  # it must return first: its job is in the inbox
            self._runner.afterwards(self.close)
            self._runner.stop()
            return
        self._closed = True
        self._runner.stop()
        self._runner.join()
        if self._sender is not None:
            self._sender.close()
        if not self._broken.is_set():
            try:
                self._control.request("leave")
            except AembusError as error:
                log.warning("left without a word: %s", error)
        self._control.close()
        if self._inbox is not None:
            self._inbox.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _sender_or_raise(self) -> Sender:
        sender = self._sender
        assert sender is not None
        if self._closed or self._broken.is_set():
            sender.refresh()  # raises BusClosed, BusBroken or ForkedBusError
        return sender

    def _poison(self) -> None:
        sender = self._sender
        if sender is not None:
            sender.forget_parent(
                ForkedBusError(
                    "this bus object belongs to the parent process; call aembus.connect in the "
                    f"child, parent={self._pid}, child={os.getpid()}"
                )
            )
        self._control.forget_parent()
        self._closed = True

    def __repr__(self) -> str:
        return f"<Bus {self.name!r} slot={self.slot} member={self.member_name!r}>"


def connect(bus: str) -> Bus:
    """Join the running bus of this name and return it; use it as a context manager.

    Blocks until the supervisor has answered.
    Raises: BusNotFound, PermissionRefused, VersionMismatch, OutOfSharedMemory, SlotsExhausted.
    """
    return Bus(bus)


def _client_class(service: ServiceVersion) -> type[ServiceClient]:
    spec = service.client or "aembus.services.base:CallClient"
    module, _, name = spec.partition(":")
    return cast(type[ServiceClient], getattr(importlib.import_module(module), name))


def _call_id(service: ServiceVersion, call: str) -> int:
    call_id = service.calls.get(call)
    if call_id is None:
        raise ServiceNotFound(
            f"the service has no such call, service={service.name!r}, "
            f"version={service.version!r}, call={call!r}, calls={sorted(service.calls)}"
        )
    return call_id


def _poison_after_fork() -> None:
    for bus in list(_buses):
        bus._poison()


os.register_at_fork(after_in_child=_poison_after_fork)
