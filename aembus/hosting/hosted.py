"""One loaded version of a service, and the host as that version sees it.

Read and written by the event loop of the host alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from aembus.errors import ServiceError
from aembus.hosting.code import ServiceCode
from aembus.hosting.outgoing import Outgoing
from aembus.numbers_route import NumbersRoute
from aembus.routing import ServiceVersion, Target
from aembus.sender import Job
from aembus.services.base import Caller, Service

log = logging.getLogger("aembus")

STATE_RUNNING: Final = "running"
STATE_DRAINING: Final = "draining"
NUMBER_BITS: Final = 40
HOST_SUPERVISOR: Final = "supervisor"
WORK_AGAIN_NS: Final = 1_000_000_000  # after a do_work() that raised


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the versions of one host share.

    job_bytes_max: how long the encoded data of one job may be.
    schedule_turn: has the host take a turn soon.
    keep: keeps something for the next process of this host, by the service's name.
    kept: what the last one asked to keep.
    is_supervisor: this is the supervisor's process.
    """

    outgoing: Outgoing
    job_bytes_max: int
    schedule_turn: Callable[[], None]
    keep: Callable[[str, Any], None] = lambda name, data: None
    kept: Mapping[str, Any] = field(default_factory=dict)
    is_supervisor: bool = True


class Hosted:
    """A loaded version.

    code: what it was made of.
    label: tells it from all other versions of the service: "1", or "1+2" for the second load of
        version 1.
    replaced: the code of the version that it came in place of, for a rollback.
    before: the version whose state it took over, while that is loaded.
    later: while its state is on its way to another version: what that one, or else this one, is
        to do then.
    passed_on: it has given its state away, for good.
    has_times: its service says when it wants to work next.
    """

    def __init__(self, surroundings: Surroundings, code: ServiceCode, number: int) -> None:
        self.code = code
        self.number = number
        self.label = code.version
        self.replaced: ServiceCode | None = None
        self.before: Hosted | None = None
        self.state = STATE_RUNNING
        self.passed_on = False
        self.later: list[Callable[[Hosted], None]] | None = None
        self.later_bytes = 0
        self.calls_kept = 0
        self.calls = 0
        self.answering = 0  # calls that have begun and are not answered
        self.failures = 0  # of the host's own questions: do_work, on_room and the like
        self.loaded_at = time.time()
        self.version: ServiceVersion | None = None
        self._not_before_ns = 0
        self._running: asyncio.Task[None] | None = None
        self.service: Service = code.service_class(VersionHost(surroundings, self))
        self.has_times = type(self.service).next_due_ns is not Service.next_due_ns

    @property
    def name(self) -> str:
        """The service's name."""
        return self.code.name

    def ask(self, method: str, *data: Any) -> Any:
        """Call a method of the service on the host's behalf; what it raises is logged."""
        try:
            return getattr(self.service, method)(*data)
        except Exception:
            self.failures += 1
            log.exception("service %r version %s failed in %s", self.name, self.label, method)
            return None

    def tell(self, method: str, *data: Any) -> None:
        """Like `ask`, but where the state is on its way, whoever has it in the end is told."""
        if self.later is not None:
            self.later.append(lambda hosted: hosted.tell(method, *data))
        else:
            self.ask(method, *data)

    # --- work -----------------------------------------------------------------------------------

    def do_work(self, now_ns: int) -> int:
        """Let the service do what is due; after a failure, not again for a second."""
        if self.passed_on or self.later is not None or now_ns < self._not_before_ns:
            return 0
        try:
            return int(self.service.do_work(now_ns) or 0)  # what is no number fails here
        except Exception:
            self.failures += 1
            log.exception("service %r version %s failed in do_work", self.name, self.label)
            self._not_before_ns = now_ns + WORK_AGAIN_NS
            return 0

    def next_due_ns(self) -> int | None:
        """Return when `do_work` is wanted next; None: not before something happens."""
        if self.passed_on or self.later is not None:
            return None
        due_ns = self.ask("next_due_ns")
        if not isinstance(due_ns, int | float) or not math.isfinite(due_ns):
            return None
        return max(int(due_ns), self._not_before_ns)

    def start_running(self) -> None:
        """Let the service's asyncio body run."""
        if type(self.service).run is not Service.run:
            self._running = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            await self.service.run()
        except Exception:
            self.failures += 1
            log.exception("service %r version %s: run() failed", self.name, self.label)

    @property
    def in_use(self) -> bool:
        """Whether the service says that it still serves something."""
        try:
            return bool(self.service.in_use)
        except Exception:
            log.exception("service %r version %s failed in in_use", self.name, self.label)
            return False

    async def stop(self, timeout_s: float) -> None:
        """Cancel the asyncio body, wait for its end, and stop the service."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running], timeout=timeout_s)
        try:
            await asyncio.wait_for(self.service.stop(), timeout_s)
        except Exception:
            log.exception("service %r version %s failed to stop", self.name, self.label)

    def said_of_itself(self) -> dict[str, Any]:
        """Return the service's own statistics; what is no plain data is logged and left out."""
        said = self.ask("statistics") or {}
        try:
            msgpack.packb(said)
            return dict(said)
        except Exception as error:  # else nothing at all could be shown, of anybody
            self.failures += 1
            log.error(
                "service %r version %s: its statistics are no map of plain data: %s",
                self.name, self.label, error,
            )  # fmt: skip
            return {}

    def statistics(self) -> dict[str, Any]:
        """Return what `aembus stats` shows of this version."""
        return {
            **self.said_of_itself(),
            "name": self.name,
            "host": HOST_SUPERVISOR,
            "version": self.label,
            "number": self.number,
            "state": self.state,
            "calls": self.calls,
            "answering": self.answering,
            "failures": self.failures,
            "points": list(self.service.points),
            "loaded_at": self.loaded_at,
            "code": self.code.spec,
        }


class VersionHost:
    """The host, as one version sees it: services.base.Host."""

    def __init__(self, surroundings: Surroundings, hosted: Hosted) -> None:
        self._surroundings = surroundings
        self._outgoing = surroundings.outgoing
        self._hosted = hosted
        # See Host: these are asked for each message, and need no frame of their own here.
        self.now_ns: Callable[[], int] = time.monotonic_ns
        self.point = self._outgoing.point
        self.activate = self._outgoing.activate
        self.congested = self._outgoing.congested

    @property
    def job_bytes_max(self) -> int:
        """See Host."""
        return self._surroundings.job_bytes_max

    @property
    def is_supervisor(self) -> bool:
        """See Host."""
        return self._surroundings.is_supervisor

    def wall_ns(self) -> int:
        """See Host."""
        return time.time_ns()

    def new_source(self) -> int:
        """See Host."""
        return self._outgoing.new_source()

    def send(self, target: Target, job: Job, source: int = 0) -> int:
        """See Host."""
        return self._outgoing.send(target, job, source)

    def numbers_route(self, slot: int, kind: int, addressee: int) -> NumbersRoute:
        """See Host."""
        return self._outgoing.numbers_route(slot, kind, addressee)

    def want_room(self, slot: int, wanted: bool) -> None:
        """See Host."""
        self._outgoing.want_room(slot, wanted)

    def has_events(self, point: str) -> bool:
        """See Host."""
        return bool(self._outgoing.routing().queue(point))

    def incarnation(self, slot: int) -> int:
        """See Host."""
        member = self._outgoing.routing().members.get(slot)
        return member.incarnation if member is not None else 0

    def forget_source(self, source: int) -> None:
        """See Host."""
        self._outgoing.forget_source(source)

    def keep(self, data: Any) -> None:
        """See Host."""
        self._surroundings.keep(self._hosted.name, data)

    @property
    def kept(self) -> Any:
        """See Host."""
        return self._surroundings.kept.get(self._hosted.name)

    def work_is_due(self, service: Service) -> None:
        """See Host."""
        self._surroundings.schedule_turn()

    def ask_before(self, call: str, caller: Caller, *data: Any) -> Any:
        """See Host."""
        before = self._hosted.before
        if before is None:
            raise ServiceError(
                f"no version before this one is loaded, service={self._hosted.name!r}, "
                f"version={self._hosted.label!r}, call={call!r}"
            )
        return getattr(before.service, call)(caller, *data)
