"""Hosting services in the supervisor: its inbox, its lanes, and the turns of its event loop.

Members' calls arrive in the supervisor's own inbox, whose doorbell is a descriptor in the event
loop.  A turn takes calls, lets services do what is due, and flushes what is parked; when nothing
is left it announces its sleep like any consumer.  Nothing here blocks: what does not fit into a
lane is parked for that destination, and its room flag raised.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import logging
import time
import traceback
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from aembus.codec import decode, encode
from aembus.errors import AembusError, ServiceLoadError
from aembus.numbers_route import NumbersRoute
from aembus.options import DROP
from aembus.routing import ServiceVersion, Target
from aembus.sender import FULL, IN_TURN, Job, Route, Sender
from aembus.services.base import Caller, Service
from aembus.services.parking import Parking
from aembus.shm import layout
from aembus.shm.inbox import SLEEP_S_MAX, Inbox
from aembus.shm.lanes import LaneConsumer, Record

log = logging.getLogger("aembus")

PARKED_ITEM_BYTES: Final = 512  # what a parked job takes beside its payload
PARKED_BYTES_MAX: Final = 1024 * 1024
NUMBERS_A_TURN: Final = 1024  # calls of numbers from one lane: they cost half a microsecond each
BUILT_IN: Final = {
    "exit": "aembus.services.exit:ExitService",
    "timer": "aembus.services.timer:TimerService",
    "tcp": "aembus.services.tcp:TcpService",
}
ENTRY_POINTS: Final = "aembus.services"
MEMBER_WENT: Final = "its member went while it waited for room"
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Parked:
    """A job that waits for room; `point` where it may be routed anew if its target goes."""

    target: Target
    job: Job
    point: str | None
    source: int


class Hosting:
    """The services of one process, and all that they need.

    Args:
        inbox, sender: this process's two sides.
        on_lost: keeps a job that has nowhere to go, and why: its destination has gone, or no
            lane there can be opened.
    """

    def __init__(
        self, inbox: Inbox, sender: Sender, on_lost: Callable[[Parked, str], None]
    ) -> None:
        self._inbox = inbox
        self._sender = sender
        self._on_lost = on_lost
        self._services: dict[str, Service] = {}
        self._versions: list[ServiceVersion] = []
        self._call_table: dict[int, Callable[..., Any]] = {}
        self._parking = Parking(PARKED_BYTES_MAX)
        self._sources = itertools.count(1)
        self._routes: dict[str, Route] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._bound: asyncio.TimerHandle | None = None
        self._turn_scheduled = False
        self._stopped = False
        self._answering: set[asyncio.Future[Any]] = set()
        self.calls = 0
        self.call_failures = 0

    # --- loading --------------------------------------------------------------------------------

    async def load(self, spec: str, slot: int) -> ServiceVersion:
        """Load, start and list a service.

        Args:
            spec: a built-in's name, an entry point's name, or ``module:Class``.
            slot: of the member that hosts it.

        Raises: ServiceLoadError; what was loaded before stays as it is.
        """
        service_class = _service_class(spec)
        if service_class.name in self._services:
            raise ServiceLoadError(f"service is loaded already, service={service_class.name!r}")
        try:
            service = service_class(self)
            await service.start()
        except Exception as error:
            raise ServiceLoadError(
                f"service failed to start, service={spec!r}, error={error!r}"
            ) from error
        ids = {}
        for name in service_class.calls():
            ids[name] = len(self._call_table) + 1
            self._call_table[ids[name]] = getattr(service, name)
        self._services[service.name] = service
        version = ServiceVersion(service.name, service.version, slot, ids, service.client)
        self._versions.append(version)
        return version

    @property
    def versions(self) -> list[ServiceVersion]:
        """What is hosted, oldest first."""
        return list(self._versions)

    # --- turns ----------------------------------------------------------------------------------

    def start(self, descriptor: int) -> None:
        """Begin to take calls.

        Args:
            descriptor: of the inbox's doorbell.
        """
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._loop.add_reader(descriptor, self._on_bell)
        self._schedule_turn()

    def _on_bell(self) -> None:
        self._inbox.end_sleep()
        self._run_turn()

    def _schedule_turn(self) -> None:
        assert self._loop is not None
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._run_scheduled_turn)

    def _run_scheduled_turn(self) -> None:
        self._turn_scheduled = False
        if self._stopped:
            return
        self._inbox.end_sleep()
        self._run_turn()

    def _run_turn(self) -> None:
        worked = self._take_calls()
        now_ns = time.monotonic_ns()
        for service in self._services.values():
            worked += service.do_work(now_ns)
        self._flush_parked()
        if worked or not self._inbox.announce_sleep(self._inbox.has_jobs):
            self._schedule_turn()
        else:
            self._sleep_bounded()
        self._set_wake()

    def _sleep_bounded(self) -> None:
        assert self._loop is not None
        if self._bound is None:
            self._bound = self._loop.call_later(SLEEP_S_MAX, self._on_bound)

    def _on_bound(self) -> None:
        self._bound = None
        rescued = not self._turn_scheduled and self._inbox.has_jobs()
        self._inbox.watch_for_lost_posts(rescued)
        if rescued or self._parking.slots():
            self._schedule_turn()
        else:
            self._sleep_bounded()

    def _set_wake(self) -> None:
        assert self._loop is not None
        due = [d for s in self._services.values() if (d := s.next_due_ns()) is not None]
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if due:
            delay_s = max(min(due) - time.monotonic_ns(), 0) / NS
            self._wake = self._loop.call_later(delay_s, self._schedule_turn)

    def _take_calls(self) -> int:
        taken = 0
        for lane, budget in self._inbox.turn():
            numbers = self._take_numbers(lane)
            taken += numbers
            for _ in range(budget if numbers < NUMBERS_A_TURN else 0):
                record = self._inbox.take(lane)
                if record is None:
                    break
                taken += 1
                lane.start(record)
                if record.kind == layout.KIND_CALL:
                    self._call(record)
                else:
                    log.error("the supervisor got a record of kind %d", record.kind)
                lane.done(record)
                if record.flags & layout.FLAG_NUMBERS:  # more of them are likely behind it
                    taken += self._take_numbers(lane)
        if taken:
            for slot in self._inbox.producers_wanting_room():
                self._sender.ring(slot)
        return taken

    def _take_numbers(self, lane: LaneConsumer) -> int:
        """Take the calls of numbers that are next in a lane; return how many."""
        taken = 0
        while taken < NUMBERS_A_TURN:
            batch = self._inbox.take_numbers(lane, NUMBERS_A_TURN - taken)
            if batch is None:
                break
            call_id, slot, incarnation, numbers = batch
            taken += len(numbers) // 2
            self._call_numbers(call_id, Caller(slot, incarnation), numbers)
        self.calls += taken
        return taken

    def _call_numbers(self, call_id: int, caller: Caller, numbers: array[int]) -> None:
        try:
            self._call_table[call_id](caller, numbers)
        except Exception:
            self.call_failures += 1
            log.exception("service call %d of numbers failed", call_id)

    def _call(self, record: Record) -> None:
        self.calls += 1
        caller = Caller(record.origin_slot, record.origin_incarnation)
        if record.flags & layout.FLAG_NUMBERS:
            numbers = array("Q", (record.reply_id, record.deadline_ns))
            self._call_numbers(record.event_id, caller, numbers)
            return
        try:
            method = self._call_table[record.event_id]
            result = method(caller, *decode(record.payload))
        except Exception as error:
            self._refuse(record, error)
            return
        if inspect.isawaitable(result):
            future = asyncio.ensure_future(self._answer_later(record, result))
            self._answering.add(future)
            future.add_done_callback(self._answering.discard)
        else:
            self._answer(record, result)

    async def _answer_later(self, record: Record, result: Awaitable[Any]) -> None:
        try:
            self._answer(record, await result)
        except Exception as error:
            self._refuse(record, error)

    def _answer(self, record: Record, result: Any) -> None:
        if record.flags & layout.FLAG_WANTS_REPLY:
            self._reply(record, 0, encode((result,)))

    def _refuse(self, record: Record, error: Exception) -> None:
        self.call_failures += 1
        if not isinstance(error, AembusError | ValueError):
            log.error("service call %d failed", record.event_id, exc_info=error)
        if record.flags & layout.FLAG_WANTS_REPLY:
            trace = "".join(traceback.format_exception(error))
            self._reply(
                record, layout.FLAG_FAILED, encode((type(error).__name__, str(error), trace))
            )
        else:
            log.error("one-way service call %d failed: %s", record.event_id, error)

    def _reply(self, record: Record, flags: int, payload: bytes) -> None:
        job = Job(payload, kind=layout.KIND_REPLY, flags=flags, reply_id=record.reply_id)
        target = Target(record.origin_slot, 0, layout.CLASS_REPLY)
        try:
            if self._sender.try_send(target, job) == FULL:
                log.error("slot %d does not take its replies; one is dropped", target.slot)
        except AembusError as error:  # the turn goes on: the others must not wait for this one
            log.error("slot %d cannot get its replies; one is dropped: %s", target.slot, error)

    # --- what services ask for (services.base.Host) ---------------------------------------------

    @property
    def job_bytes_max(self) -> int:
        """See Host."""
        return self._inbox.payload_bytes_max

    def now_ns(self) -> int:
        """See Host."""
        return time.monotonic_ns()

    def new_source(self) -> int:
        """See Host."""
        return next(self._sources)

    def wall_ns(self) -> int:
        """See Host."""
        return time.time_ns()

    def activate(self, point: str, payload: bytes, key_hash: int | None, source: int = 0) -> int:
        """See Host."""
        route = self._routes.get(point)
        if route is None:
            route = self._routes[point] = self._sender.route(point)
        job = Job(payload, IN_TURN if key_hash is None else key_hash)
        targets = self._sender.pick(route, job)
        for target in targets:
            self._send_or_park(Parked(target, job, point, source))
        return len(targets)

    def send(self, target: Target, job: Job, source: int = 0) -> int:
        """See Host."""
        return self._send_or_park(Parked(target, job, None, source))

    def numbers_route(self, slot: int, kind: int, addressee: int) -> NumbersRoute:
        """See Host."""
        return NumbersRoute(self._sender, Target(slot, 0), kind, addressee=addressee)

    def want_room(self, slot: int, wanted: bool) -> None:
        """See Host."""
        target = Target(slot, 0)
        if wanted or not self._parking.is_parked(_lane_of(target)):
            self._sender.want_room(target, wanted)

    def send_now(self, target: Target, job: Job) -> int:
        """Send without parking; return 1, or 0 if the member is not on the bus, or FULL."""
        if self._parking.is_parked(_lane_of(target)):
            return FULL  # behind those
        return self._sender.try_send(target, job)

    def _send_or_park(self, parked: Parked) -> int:
        try:
            return self._try_send_or_park(parked)
        except AembusError as error:  # the turn goes on: the others must not wait for this one
            log.error("a job to slot %d becomes a dead letter: %s", parked.target.slot, error)
            self._on_lost(parked, f"{type(error).__name__}: {error}")
            return 1

    def _try_send_or_park(self, parked: Parked) -> int:
        target, lane = parked.target, _lane_of(parked.target)
        # What was sent to one event was counted before, and is not to be dropped.
        drops = target.full == DROP and parked.point is not None
        if not self._parking.is_parked(lane):
            sent = self._sender.try_send(target, parked.job)
            if sent != FULL:
                return sent
            if not drops:
                self._sender.want_room(target, True)
                sent = self._sender.try_send(target, parked.job)  # room that came meanwhile
                if sent != FULL:
                    return sent
        if drops:
            self._sender.count_dropped(target)
            return 0
        size_bytes = len(parked.job.payload) + PARKED_ITEM_BYTES
        self._parking.park(lane, parked, size_bytes, parked.source)
        return 1

    def _flush_parked(self) -> None:
        resumed: set[int] = set()
        for lane in self._parking.slots():
            resumed.update(self._parking.flush(lane, self._try_parked))
            if not self._parking.is_parked(lane):
                self._sender.want_room(_target_of(lane), False)
        if resumed:
            for service in self._services.values():
                service.on_room(resumed)

    def _try_parked(self, parked: Parked) -> bool:
        sent = self._sender.try_send(parked.target, parked.job)
        if sent == 0:
            self._route_anew(parked)
        return sent != FULL

    def _route_anew(self, parked: Parked) -> None:
        if parked.point is None:
            if parked.job.kind in layout.KINDS_FOR_EVENTS:
                self._on_lost(parked, MEMBER_WENT)
            return  # else an expiry, for a process that is no more
        key_hash = None if parked.job.key_hash == IN_TURN else parked.job.key_hash
        if not self.activate(parked.point, parked.job.payload, key_hash, parked.source):
            self._on_lost(parked, MEMBER_WENT)

    def has_events(self, point: str) -> bool:
        """See Host."""
        return bool(self._sender.refresh().queue(point))

    def incarnation(self, slot: int) -> int:
        """See Host."""
        member = self._sender.refresh().members.get(slot)
        return member.incarnation if member is not None else 0

    def congested(self, source: int) -> bool:
        """See Host."""
        return self._parking.congested(source)

    def forget_source(self, source: int) -> None:
        """See Host."""
        self._parking.forget_source(source)

    def work_is_due(self, service: Service) -> None:
        """See Host."""
        if not self._turn_scheduled and self._loop is not None:
            self._schedule_turn()

    # --- what the supervisor asks ---------------------------------------------------------------

    def on_registry_changed(self) -> None:
        """Tell every service, and try again what is parked for members that have gone."""
        for service in self._services.values():
            service.on_registry_changed()
        members = self._sender.refresh().members
        for lane in self._parking.slots():
            if _target_of(lane).slot not in members:
                for parked in self._parking.take_all(lane):
                    self._route_anew(parked)
                self._schedule_turn()  # its flush names the sources that this slot held back

    def on_clock_step(self) -> None:
        """Tell every service that the wall clock was set."""
        for service in self._services.values():
            service.on_clock_step()

    def on_member_gone(self, slot: int, incarnation: int) -> None:
        """Tell every service."""
        for service in self._services.values():
            service.on_member_gone(slot, incarnation)

    def on_request_lost(self, point: str, payload: bytes, given_up: bool) -> bool:
        """Ask the services whether one of them sees to a job that it has sent; see Service."""
        try:
            data = decode(payload)
            return any(
                service.on_request_lost(point, data, given_up)
                for service in self._services.values()
            )
        except Exception:  # a service's fault must not hold up what is done about a death
            log.exception("a service failed at a lost request, point=%r", point)
            return False

    def close_intakes(self) -> None:
        """Tell every service to take in nothing new."""
        for service in self._services.values():
            service.close_intakes()

    def idle(self) -> bool:
        """Say whether nothing is queued or parked here."""
        return not self._inbox.has_jobs() and not len(self._parking)

    def run_last_turns(self) -> None:
        """Take what the workers have sent before they ended."""
        while self._take_calls():
            pass

    async def stop(self) -> None:
        """Stop every service, newest first, and take no more calls."""
        for service in reversed(list(self._services.values())):
            try:
                await service.stop()
            except Exception:
                log.exception("service %r failed to stop", service.name)
        assert self._loop is not None
        self._stopped = True
        self._loop.remove_reader(self._descriptor)
        for handle in (self._wake, self._bound):
            if handle is not None:
                handle.cancel()

    def statistics(self) -> list[dict[str, Any]]:
        """Return a map for each hosted service."""
        return [
            {"name": v.name, "version": v.version, **self._services[v.name].statistics()}
            for v in self._versions
        ]


# What is parked is kept apart by lane: an urgent job does not wait behind the others.
def _lane_of(target: Target) -> int:
    return layout.lane_index(layout.SLOTS_MAX, target.lane_class, target.slot)


def _target_of(lane: int) -> Target:
    lane_class, slot = divmod(lane, layout.SLOTS_MAX)
    return Target(slot, 0, lane_class)


def _service_class(spec: str) -> type[Service]:
    path = BUILT_IN.get(spec)
    if path is None:
        found = {e.name: e.value for e in metadata.entry_points(group=ENTRY_POINTS)}
        path = found.get(spec, spec)
        if ":" not in path:
            known = sorted({*BUILT_IN, *found})
            raise ServiceLoadError(
                f"no such service; name one, or write module:Class, service={spec!r}, known={known}"
            )
    module_name, _, class_name = path.partition(":")
    try:
        loaded = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ServiceLoadError(
            f"service cannot be loaded, service={spec!r}, error={error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Service)):
        raise ServiceLoadError(f"not a subclass of Service, service={spec!r}, got={loaded!r}")
    return loaded
