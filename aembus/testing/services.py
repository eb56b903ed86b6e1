"""The services of a bus without processes: the same classes, in their turn when it is driven."""

from __future__ import annotations

import inspect
import itertools
import logging
from array import array
from collections.abc import Callable, Coroutine
from typing import Any, Final

from aembus.answers import Answers, failure_of
from aembus.codec import decode, encode, key_hash
from aembus.errors import ServiceError, ServiceLoadError, ServiceNotFound
from aembus.numbers_route import NumbersRoute
from aembus.picking import IN_TURN
from aembus.routes import Route
from aembus.routing import SUPERVISOR_SLOT, ServiceVersion, Target
from aembus.sender import Job, Sender
from aembus.services.base import Caller, Service
from aembus.shm import layout
from aembus.shm.inbox import Inbox
from aembus.shm.lanes import Record
from aembus.testing.clock import FakeClock

log = logging.getLogger("aembus")

NS: Final = 1_000_000_000


class SourcePoint:
    """See services.base.SourcePoint."""

    def __init__(self, host: ServiceHost, name: str) -> None:
        self._host = host
        self._name = name

    def activate(self, *data: Any, key: bytes | None = None) -> int:
        """See services.base.SourcePoint."""
        hashed = None if key is None else key_hash(key)
        return self._host.activate(self._name, encode(data), hashed)


def _run_at_once(coroutine: Coroutine[Any, Any, Any], what: str) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise ServiceLoadError(f"a service that awaits something needs a real supervisor, {what}")


class ServiceHost:
    """Hosts services as the supervisor does (services.base.Host), with a clock of its own.

    Nothing is parked: an inbox that is full is an error of the test.

    Args:
        inbox, sender: of the member that stands where the supervisor would.
        answers: by which the services' callers get theirs.
        clock: what the services take for the time.
    """

    def __init__(self, inbox: Inbox, sender: Sender, answers: Answers, clock: FakeClock) -> None:
        self._inbox = inbox
        self._sender = sender
        self._answers = answers
        self._clock = clock
        self._services: list[Service] = []
        self._call_table: dict[int, Callable[..., Any]] = {}
        self._routes: dict[str, Route] = {}
        self._sources = itertools.count(1)
        self.versions: list[ServiceVersion] = []

    def load(self, service_class: type[Service]) -> None:
        """Host a service; it appears in the registry when that is published next."""
        service = service_class(self)
        _run_at_once(service.start(), f"service={service.name!r}")
        ids = {name: len(self._call_table) + n for n, name in enumerate(service.calls(), 1)}
        for name, number in ids.items():
            self._call_table[number] = getattr(service, name)
        self._services.append(service)
        version = ServiceVersion(
            service.name, service.version, SUPERVISOR_SLOT, ids, service.client, len(self._services)
        )
        self.versions.append(version)

    @property
    def documents(self) -> list[list[Any]]:
        """The services, as the registry shows them."""
        return [version.to_document() for version in self.versions]

    def find(self, name: str, version: str | None) -> ServiceVersion:
        """Return the newest version of a service, or the one named.  Raises ServiceNotFound."""
        for found in reversed(self.versions):
            if found.name == name and version in (None, found.version):
                return found
        hosted = [f"{v.name} {v.version}" for v in self.versions]
        raise ServiceNotFound(f"no such service here, service={name!r}, {version=}, {hosted=}")

    def run_turn(self) -> int:
        """Take calls, let services do what is due, and return how much that was."""
        worked = 0
        for lane, budget in self._inbox.turn():
            for _ in range(budget):
                record = self._inbox.take(lane)
                if record is None:
                    break
                worked += 1
                lane.start(record)
                self._call(record)
                lane.done(record)
        now_ns = self.now_ns()
        return worked + sum(service.do_work(now_ns) for service in self._services)

    def next_due_s(self) -> float:
        """Return when a service has something to do next; infinity if none has."""
        due = [d for s in self._services if (d := s.next_due_ns()) is not None]
        return min(due) / NS if due else float("inf")

    def _call(self, record: Record) -> None:
        caller = Caller(record.origin_slot, record.origin_incarnation)
        if record.flags & layout.FLAG_NUMBERS:
            numbers = array("Q", (record.reply_id, record.deadline_ns))
            self._call_table[record.event_id](caller, numbers)
            return
        call = self._call_table[record.event_id]
        try:
            result = call(caller, *decode(record.payload))
            if inspect.iscoroutine(result):
                result = _run_at_once(result, f"call={call.__qualname__!r}")
        except Exception as error:
            if not record.flags & layout.FLAG_WANTS_REPLY:
                log.error("one-way service call %r failed", call.__qualname__, exc_info=error)
            self._answers.failed(record.header, failure_of(error))
        else:
            self._answers.result(record.header, result, "")

    # --- services.base.Host -----------------------------------------------------------------------

    @property
    def job_bytes_max(self) -> int:
        """See Host."""
        return self._inbox.payload_bytes_max

    def now_ns(self) -> int:
        """See Host."""
        return self._clock.ns()

    def wall_ns(self) -> int:
        """See Host."""
        return self._clock.wall_ns()

    def numbers_route(self, slot: int, kind: int, addressee: int) -> NumbersRoute:
        """See Host."""
        return NumbersRoute(self._sender, Target(slot, 0), kind, addressee=addressee)

    def want_room(self, slot: int, wanted: bool) -> None:
        """See Host."""

    @property
    def is_supervisor(self) -> bool:
        """See Host."""
        return True

    def keep(self, data: Any) -> None:
        """See Host: nobody takes this one's place."""

    @property
    def kept(self) -> Any:
        """See Host."""
        return None

    def new_source(self) -> int:
        """See Host."""
        return next(self._sources)

    def point(self, name: str, source: int) -> SourcePoint:
        """See Host."""
        return SourcePoint(self, name)

    def activate(
        self,
        point: str,
        payload: bytes,
        key_hash: int | None,
        source: int = 0,
        repeats: bool = False,
    ) -> int:
        """See Host."""
        route = self._routes.get(point)
        if route is None:
            route = self._routes[point] = self._sender.route(point)
        hashed = IN_TURN if key_hash is None else key_hash
        return self._sender.activate(route, payload, hashed, 0.0)

    def send(self, target: Target, job: Job, source: int = 0) -> int:
        """See Host."""
        return self._sender.send(target, job, 0.0, "an expiry")

    def has_events(self, point: str) -> bool:
        """See Host."""
        return bool(self._sender.refresh().queue(point))

    def incarnation(self, slot: int) -> int:
        """See Host."""
        member = self._sender.refresh().members.get(slot)
        return member.incarnation if member is not None else 0

    def congested(self, source: int) -> bool:
        """See Host."""
        return False

    def forget_source(self, source: int) -> None:
        """See Host."""

    def work_is_due(self, service: Service) -> None:
        """See Host."""

    def ask_before(self, call: str, caller: Caller, *data: Any) -> Any:
        """See Host."""
        raise ServiceError(f"a service has taken nothing over here, {call=}")

    def on_member_gone(self, slot: int, incarnation: int) -> None:
        """Tell every service."""
        for service in self._services:
            service.on_member_gone(slot, incarnation)
