"""The contract of a service: what it offers, what it is asked, and what its host does for it.

A service runs in the event loop of its host, so nothing here may block: what has to goes into
``await asyncio.to_thread(...)``; stop() waits for that, else it may be left behind at the end.
Members reach its calls through lanes; it reaches them by activating points or by sending to one
member.  A destination that is full never stops the service: what cannot be written yet is parked
for that destination, in order, and `Host.congested` says when a source should pause.

The life of one loaded version, each step in the host's event loop:

```
            ┌─ start() ───────────────┐
__init__ ───┤                         ├──► calls, do_work(), run() ──► drain() ──► stop()
            └─ take_over(handed) ─────┘         ▲            │
                                                │            └──► hand_over() ─┬─► stop()
                                                └────────── resume(handed) ◄───┘ the new one failed
```

drain() comes when nobody new will be bound, stop() once the last user has let go, every call is
answered, and `in_use` is False.  What a step raises is logged, and ends neither the host nor the
version; but start() and take_over() refuse the version by it.

Each version's code is loaded afresh, in a package of its own: the service's module, and what it
imports from its own package with a dot (``from .store import Store``).  What is imported by its
full name (``import sqlite3``, ``from aembus.services import Service``) is shared by all versions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, TypeVar

from aembus.codec import encode, key_hash
from aembus.errors import ServiceError
from aembus.numbers_route import NumbersRoute
from aembus.routing import ServiceVersion, Target
from aembus.sender import Job

if TYPE_CHECKING:
    from aembus.bus import Bus

SLOT_SHIFT: Final = 48

_F = TypeVar("_F", bound=Callable[..., Any])


class Caller(NamedTuple):
    """Who calls: a member, and which process of it."""

    slot: int
    incarnation: int


def call(function: _F) -> _F:
    """Mark a method as a service call: ``method(self, caller, *data)``.

    What it returns (or its awaitable's result) is the answer, what it raises the refusal.  An
    ``async def`` answers late, which is how a service that has too much to do slows its callers.
    """
    function.__dict__["is_service_call"] = True
    return function


def one_way_call(function: _F) -> _F:
    """Mark a method as a service call that gives no answer: ``method(self, nobody, *data)``.

    Its client makes it by `Bus.one_way_call` or `Bus.tell_service`.  It costs less than others, and
    cannot see who calls: `nobody` says nothing.
    """
    function.__dict__["is_service_call"] = True
    function.__dict__["is_one_way"] = True
    return function


def numbers_call(function: _F) -> _F:
    """Mark a method as a service call of two numbers: ``method(self, caller, numbers)``.

    One-way, and the cheapest there is: it has no payload, and several of one caller come as one.
    `numbers` has two for each, 0 to 2^64 - 1, in the order in which they were sent; its client
    makes such calls by `Bus.numbers_route`.
    """
    function.__dict__["is_service_call"] = True
    return function


@dataclass(frozen=True, slots=True)
class HandOver:
    """A service's state on its way to another version of it.

    data: plain data, as msgpack takes it; it arrives as msgpack returns it (a tuple as a list).
    descriptors: open ones that `data` refers to by index; made by os.dup, so that the version that
        gives the state away still has its own.
    """

    data: Any
    descriptors: Sequence[int] = ()


class SourcePoint(Protocol):
    """An activation point, as one source activates it: see `Host.point`."""

    def activate(self, *data: Any, key: bytes | None = None) -> int:
        """Wake the events of the point; return how many jobs that made (parked ones counted).

        Args:
            data: plain data, as msgpack takes it.
            key: picks the member of each group; None for round-robin.
        """


class Host(Protocol):
    """What a service may ask of the process that hosts it."""

    @property
    def job_bytes_max(self) -> int:
        """How long the encoded data of one job may be."""

    @property
    def is_supervisor(self) -> bool:
        """Whether this is the supervisor's own process: nowhere else is `on_request_lost` asked
        before a job is delivered again."""

    def now_ns(self) -> int:
        """Return CLOCK_MONOTONIC in nanoseconds."""

    def new_source(self) -> int:
        """Return a number for `activate` that no other source on this bus has, or has had.

        Above SLOT_SHIFT it is the host's slot.
        """

    def wall_ns(self) -> int:
        """Return the wall clock, in nanoseconds since the epoch; it may be set at any time."""

    def point(self, name: str, source: int) -> SourcePoint:
        """Return a point for one source to keep: the cheapest way for who activates it often.

        Args:
            source: on whose behalf, for `congested`.
        """

    def activate(
        self,
        point: str,
        payload: bytes,
        key_hash: int | None,
        source: int = 0,
        repeats: bool = False,
    ) -> int:
        """Wake the events of a point; return how many jobs that made (parked ones counted).

        Args:
            payload: the encoded data.
            key_hash: picks the member of each group; None for round-robin.
            source: on whose behalf, for `congested`; 0 for nobody's.
            repeats: the source does this again and again: a member that has no room, and for which
                one of the source's is parked, is left out.
        """

    def send(self, target: Target, job: Job, source: int = 0) -> int:
        """Send to one member; 0 if it is not on the bus, else 1 (parked counts)."""

    def numbers_route(self, slot: int, kind: int, addressee: int) -> NumbersRoute:
        """Return a short way to one member; it is not parked for, and to be closed.

        Args:
            kind: of the records.
            addressee: the incarnation that they are for.
        """

    def want_room(self, slot: int, wanted: bool) -> None:
        """Raise or lower the flag by which a member that has room again wakes this process."""

    def has_events(self, point: str) -> bool:
        """Say whether anybody is registered at a point."""

    def incarnation(self, slot: int) -> int:
        """Return which process is the member in `slot` now, 0 if there is none."""

    def congested(self, source: int) -> bool:
        """Say whether so much is parked for a source's destinations that it should pause.

        The service's `on_room` is called with it when it may go on.
        """

    def forget_source(self, source: int) -> None:
        """A source is gone; what it sent stays parked."""

    def keep(self, data: Any) -> None:
        """Have something kept for the next process of this host, in place of what was before.

        Args:
            data: plain data, as msgpack takes it; small.

        A service host that dies is replaced, and `kept` is what its services find then.  In the
        supervisor nothing is kept: nobody takes its place.
        """

    @property
    def kept(self) -> Any:
        """What the last process of this host asked to keep; None if there was none."""

    def work_is_due(self, service: Service) -> None:
        """Say that `next_due_ns` of the service may have become earlier."""

    def ask_before(self, call: str, caller: Caller, *data: Any) -> Any:
        """Call the version whose state this one has taken over, for what that could not hand over.

        Raises: ServiceError if it is not loaded any more, and what the call raises.
        """


class Service:
    """Base of all services.  Subclasses set `name` and `version` and mark their calls.

    name, version: 1 to 40 letters, digits, '-', '_', in a version also '.'.
    points: the activation points that it may activate, for the statistics.
    hosts_max: how many service hosts may run it side by side.  More than one only if its client
        finds the right one for what it is about.
    client: ``module:Class`` of what `Bus.service` returns; None for one method a call.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    points: ClassVar[tuple[str, ...]] = ()
    hosts_max: ClassVar[int] = 1
    client: ClassVar[str | None] = None

    def __init__(self, host: Host) -> None:
        self.host = host

    @classmethod
    def calls(cls) -> list[str]:
        """Return the names of the calls, sorted."""
        return sorted(n for n in dir(cls) if getattr(getattr(cls, n), "is_service_call", False))

    def activate(
        self, point: str, *data: Any, key: str | bytes | int | None = None, source: int = 0
    ) -> int:
        """Wake the events of a point; return how many jobs that made (parked ones counted).

        Args:
            key: picks the member of each group, as everywhere; None: in turn.
            source: on whose behalf, for `Host.congested`.
        """
        hashed = None if key is None else key_hash(key)
        return self.host.activate(point, encode(data), hashed, source)

    async def start(self) -> None:
        """Get ready; an exception here refuses the load and changes nothing else."""

    async def run(self) -> None:
        """Work as an asyncio task, from behind start() or take_over() on; cancelled before stop().

        It may end by itself.  A service has this, or `do_work`, or both, or neither.
        """

    def next_due_ns(self) -> int | None:
        """Return when `do_work` is wanted next, on the host's clock; None: not before a call."""
        return None

    def do_work(self, now_ns: int) -> int:
        """Do what is due and return how much that was; must not block."""
        return 0

    def on_registry_changed(self) -> None:
        """Members or registrations have changed."""

    def on_clock_step(self) -> None:
        """The wall clock was set; noticed within a second."""

    def on_member_gone(self, slot: int, incarnation: int) -> None:
        """A member's process is dead or has left."""

    def on_request_lost(self, point: str, data: Sequence[Any], given_up: bool) -> bool:
        """A job of this service was in hand when its member's process died.

        Args:
            point, data: of the activation.
            given_up: it will not be delivered again, whatever this returns.

        Returns True if the service has seen to it: the job is not delivered again then.  In a
        service host only what is given up is told.
        """
        return False

    def on_room(self, sources: Iterable[int]) -> None:
        """These sources, congested before, may go on."""

    def close_intakes(self) -> None:
        """Take in nothing new: the bus is about to stop."""

    def drain(self) -> None:
        """Nobody new will be bound to this version: another one is there, or it is unloaded.

        Who is bound goes on calling.  What lasts (a listener, a periodic timer) may end now; while
        something does that must not, `in_use` is True.
        """

    @property
    def in_use(self) -> bool:
        """Whether this version still serves something that nobody else can serve.

        It stays loaded until this is False; looked at many times a second once it drains.
        """
        return False

    async def stop(self) -> None:
        """Flush what is on its way out and let go of everything."""

    # --- passing the state on ---------------------------------------------------------------------

    def hand_over(self) -> HandOver:
        """Stop all work and give the state away, to the version that takes this one's place.

        Called once, in one step of the event loop.  Behind it this version gets no do_work(), and
        no call but by `Host.ask_before`; what comes waits until the new one has taken over.  run()
        goes on, and has to leave alone what was given away.  Calls that have begun are answered by
        this version still; it is stopped once they are, and `in_use` is False.

        Raises: ServiceError, with nothing changed.
        """
        raise ServiceError(f"this service cannot hand over its state, service={self.name!r}")

    async def take_over(self, handed: HandOver) -> None:
        """Get ready with the state of another version; called in place of start().

        The descriptors are this version's from the call on: it closes those that it does not keep,
        and all of them if it raises.  An exception refuses the upgrade, and the version before
        goes on as if nothing had been.
        """
        raise ServiceError(f"this service cannot take over a state, service={self.name!r}")

    def resume(self, handed: HandOver) -> None:
        """Go on with the state that hand_over() gave away: the new version has failed.

        Args:
            handed: what hand_over() returned.  Its descriptors are closed.
        """

    def statistics(self) -> dict[str, int]:
        """Return counts for `aembus stats`."""
        return {}


Result = Awaitable[Any] | Any


class CallClient:
    """The plainest client of a service: each call is a method that waits for the answer."""

    def __init__(self, bus: Bus, service: ServiceVersion) -> None:
        self._bus = bus
        self._service = service

    def rejoin(self, service: ServiceVersion) -> None:
        """See ServiceClient."""
        self._service = service

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call_it(*data: Any, timeout: float = 5.0) -> Any:
            return self._bus.call_service(self._service, name, data, timeout)

        return call_it
