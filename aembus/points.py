"""Activation points: named places where events happen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

from aembus.calls import Answer, Calls
from aembus.codec import (
    NOT_PLAIN,
    encode,
    encode_rich,
    key_hash,
    make_packer,
    return_packer,
    take_packer,
)
from aembus.coroutines import is_coroutine
from aembus.errors import RegistrationError
from aembus.picking import IN_TURN
from aembus.sender import Job, Sender
from aembus.shm import layout
from aembus.shm.lanes import plain_activate

if TYPE_CHECKING:
    from aembus.awaiting import Awaiting
    from aembus.subscription import Subscriber, Subscription
    from aembus.typed import Shape

TTL_S_MAX: Final = 1e9
NS: Final = 1_000_000_000

_T = TypeVar("_T")


def _mortal_job(payload: bytes, hashed: int, ttl_s: float, now_s: float) -> Job:
    if not 0 < ttl_s <= TTL_S_MAX:
        raise ValueError(f"ttl is more than 0 and at most {TTL_S_MAX:g} seconds, ttl={ttl_s}")
    deadline_ns = int((now_s + ttl_s) * NS)
    return Job(payload, hashed, kind=layout.KIND_JOB_WITH_TTL, deadline_ns=deadline_ns)


def check_point_name(name: object) -> None:
    """Raise TypeError if this cannot name an activation point."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"an activation point is named by a str that is not empty, point={name!r}")


@final
class ActivationPoint:
    """One point of one bus; get it from `Bus.point` and keep it where activations are frequent."""

    __slots__ = ("__weakref__", "_awaiting", "_calls", "_route", "_sender", "bus", "name")

    def __init__(
        self,
        name: str,
        sender: Sender,
        calls: Calls,
        awaiting: Callable[[], Awaiting],
        bus: Subscriber,
    ) -> None:
        check_point_name(name)
        self.name = name
        self.bus = bus
        self._calls = calls
        self._awaiting = awaiting
        self._sender = sender
        self._route = sender.route(name)

    @plain_activate
    def activate(
        self,
        *data: Any,
        key: str | bytes | int | None = None,
        timeout: float = 1.0,
        ttl: float | None = None,
    ) -> int:
        """Wake every concerned event: write a job into the inbox of each one's member.

        Args:
            data: what the handlers get as arguments, after the event; see `aembus.codec`.
            key: activations with the same key reach the same member of each group, in order.
            timeout: seconds to wait for room if a concerned inbox is full, math.inf: for ever; see
                `full` at `Bus.register` for who is waited for.
            ttl: seconds from now for which the job is worth doing.  If its turn comes later, also
                for another attempt, it becomes a dead letter.  There is no wait for room beyond it.

        Returns how many jobs that made: 0 if nobody registered here, or all concerned go without.

        Raises: InboxFull (nothing was sent to anybody), JobTooLarge, TypeError for data that
        cannot be sent, ValueError for a ttl that is none, BusBroken, BusClosed, ForkedBusError,
        OutOfSharedMemory.
        """
        hashed = IN_TURN if key is None else key_hash(key)
        if ttl is not None:
            job = _mortal_job(encode(data), hashed, ttl, self._sender.clock())
            return self._sender.activate_with(self._route, job, min(timeout, ttl))
        try:
            pack = take_packer()  # as `encode` would, two calls less
        except IndexError:
            pack = make_packer()
        try:
            payload = pack(data)
        except NOT_PLAIN:
            payload = encode_rich(data)
        finally:
            return_packer(pack)
        publisher = self._route.publisher
        if publisher is not None:  # as `try_activate` would
            jobs = publisher.publish(payload, hashed)
            if jobs:
                return jobs
        return self._sender.activate(self._route, payload, hashed, timeout)

    def try_activate(
        self, *data: Any, key: str | bytes | int | None = None, ttl: float | None = None
    ) -> bool:
        """Like `activate`, but return False at once if a concerned inbox is full."""
        hashed = IN_TURN if key is None else key_hash(key)
        if ttl is not None:
            job = _mortal_job(encode(data), hashed, ttl, self._sender.clock())
            return self._sender.try_activate_with(self._route, job) >= 0
        return self._sender.try_activate(self._route, encode(data), hashed) >= 0

    def call(
        self,
        *data: Any,
        key: str | bytes | int | None = None,
        timeout: float = 5.0,
        redeliver: bool = False,
    ) -> Any:
        """Wake the one concerned event, block for its answer, and return it.

        A call is a job: delivered in order and one at a time, tried again as the event's `retries`
        say, and at last a dead letter.  Its answer is what the handler returns (the event's
        destructor, if it has one), or what `job.done` is given; it must fit msgpack.  A handler
        may call; its member delivers nothing until the answer is there.

        Args:
            data: what the handler gets as arguments, after the event; must fit msgpack.
            key: picks the member of the group, as for `activate`.
            timeout: seconds to wait, for room in the inbox and for the answer; math.inf: for ever.
            redeliver: if the callee dies with the call in hand, wait for what its replacement
                answers, which gets it again unless its event has redeliver=False.  Else the call
                fails then and is a dead letter: what it did so far is not known.

        Raises: CallFailed with what the handler raised, as text, once the job is not tried again;
        also if nobody is registered, or several events without a group are, if the callee waits
        for this very call, or died.  CallTimeout: the handler may run all the same, its answer is
        dropped.  InboxFull, JobTooLarge, TypeError for data that msgpack does not know (nothing
        was sent), BusBroken, BusClosed, ForkedBusError, OutOfSharedMemory.
        """
        hashed = IN_TURN if key is None else key_hash(key)
        return self._calls.call(self.name, data, hashed, timeout, redeliver)

    def call_all(self, *data: Any, timeout: float = 5.0) -> list[Answer]:
        """Call every concerned event, of each group one, and block until all have answered.

        Args:
            data: what the handlers get as arguments, after the event; must fit msgpack.
            timeout: seconds to wait, for all of them together.

        Returns an answer for each: who, and either what it returned or why there is no value
        (CallFailed, CallTimeout, InboxFull).  Nobody registered: an empty list.

        Raises: TypeError for data that msgpack does not know, BusBroken, BusClosed,
        ForkedBusError.
        """
        return self._calls.call_all(self.name, encode(data), timeout)

    async def activate_async(
        self,
        *data: Any,
        key: str | bytes | int | None = None,
        timeout: float = 1.0,  # noqa: ASYNC109  # as `activate` has it
        ttl: float | None = None,
    ) -> int:
        """Like `activate`, but let the event loop go on while there is no room.

        Those who await room in one event loop get it in the order in which they came.  When this
        is cancelled, nothing was sent.  The first one in a process that has to wait asks the
        supervisor for a doorbell that a loop can watch.

        Raises: as `activate` does; AembusError if another event loop uses this bus object.
        """
        hashed = IN_TURN if key is None else key_hash(key)
        job = Job(encode(data), hashed)
        if ttl is not None:
            job = _mortal_job(job.payload, hashed, ttl, self._sender.clock())
            timeout = min(timeout, ttl)
        return await self._awaiting().activate(self._route, job, timeout)

    async def call_async(
        self,
        *data: Any,
        key: str | bytes | int | None = None,
        timeout: float = 5.0,  # noqa: ASYNC109  # as `call` has it
        redeliver: bool = False,
    ) -> Any:
        """Like `call`, but let the event loop go on while there is no room, and no answer.

        Thousands of calls may be under way at once.  It works in any event loop: also where the
        bus is not served, or is run by another thread.  When this is cancelled, the handler may
        run all the same; its answer is dropped and counted, as one that comes late.

        Raises: as `call` does; AembusError if another event loop uses this bus object.
        """
        hashed = IN_TURN if key is None else key_hash(key)
        awaiting = self._awaiting()
        return await awaiting.call(self.name, encode(data), hashed, timeout, redeliver)

    async def call_all_async(
        self,
        *data: Any,
        timeout: float = 5.0,  # noqa: ASYNC109  # as `call_all` has it
    ) -> list[Answer]:
        """Like `call_all`, but let the event loop go on; see `call_async`."""
        return await self._awaiting().call_all(self.name, encode(data), timeout)

    def subscribe(self, **options: Any) -> Subscription[tuple[Any, ...]]:
        """Return an asynchronous iterator over the jobs of this point: ``async for job in ...``.

        `job.data` is what was activated.  The loop's body is the handler of an event: it begins
        with one job at a time, in order, and the job is done when the next one is asked for, or
        by `job.done()`; `job.fail(reason)` fails it.  It is in hand until then, and comes again
        if this process dies.  Use it as ``async with point.subscribe() as jobs: async for ...``:
        leaving that block ends the subscription, and its job as a handler would: done, or failed
        if by an exception.  A loop that is left without it fails the job that it was at.

        If nobody serves the bus, iterating does, one job at a time; for loops side by side run
        ``bus.serve(concurrency=...)``.  Where the bus is stopped or closed the loop ends.

        Args:
            options: as for `Bus.register`.
        """
        from aembus.subscription import Subscription

        return Subscription(self.bus, self.name, options, tuple)

    def rebind(self, sender: Sender, calls: Calls, awaiting: Callable[[], Awaiting]) -> None:
        """Activate through another sender from now on (the bus does, when it has joined again)."""
        self._calls = calls
        self._awaiting = awaiting
        # In this order: the old sender refuses any route, the new one must not see an old one.
        self._route = sender.route(self.name)
        self._sender = sender

    def __repr__(self) -> str:
        return f"<ActivationPoint {self.name!r}>"


@final
class TypedPoint(Generic[_T]):
    """An activation point whose data are one instance of a dataclass, checked at both ends.

    Get it from `Bus.point` with a class; register at it with ``bus.on(point)`` or
    ``bus.register(point, handler)``: the handler is called with the event and the instance.
    """

    __slots__ = ("_point", "_shape")

    def __init__(self, point: ActivationPoint, cls: type[_T]) -> None:
        from aembus.typed import Shape  # which few need, and it brings Decimal along

        self._point = point
        self._shape = Shape(point.name, cls)

    @property
    def name(self) -> str:
        """The activation point's name."""
        return self._point.name

    @property
    def data(self) -> type[_T]:
        """The dataclass of its data."""
        return self._shape.cls

    def activate(
        self,
        data: _T,
        *,
        key: str | bytes | int | None = None,
        timeout: float = 1.0,
        ttl: float | None = None,
    ) -> int:
        """Wake every concerned event, as `ActivationPoint.activate` does.

        Raises: DataMismatch if `data` or one of its fields is of another type; nothing was sent.
        """
        return self._point.activate(self._shape.to_data(data), key=key, timeout=timeout, ttl=ttl)

    def try_activate(
        self, data: _T, *, key: str | bytes | int | None = None, ttl: float | None = None
    ) -> bool:
        """Like `activate`, but return False at once if a concerned inbox is full."""
        return self._point.try_activate(self._shape.to_data(data), key=key, ttl=ttl)

    async def activate_async(
        self,
        data: _T,
        *,
        key: str | bytes | int | None = None,
        timeout: float = 1.0,  # noqa: ASYNC109
        ttl: float | None = None,
    ) -> int:
        """Like `activate`, as `ActivationPoint.activate_async` does."""
        sent = self._shape.to_data(data)
        return await self._point.activate_async(sent, key=key, timeout=timeout, ttl=ttl)

    def call(
        self,
        data: _T,
        *,
        key: str | bytes | int | None = None,
        timeout: float = 5.0,
        redeliver: bool = False,
    ) -> Any:
        """Call the one concerned event, as `ActivationPoint.call` does; the answer is not checked.

        Raises: DataMismatch if `data` or one of its fields is of another type; nothing was sent.
        """
        sent = self._shape.to_data(data)
        return self._point.call(sent, key=key, timeout=timeout, redeliver=redeliver)

    async def call_async(
        self,
        data: _T,
        *,
        key: str | bytes | int | None = None,
        timeout: float = 5.0,  # noqa: ASYNC109
        redeliver: bool = False,
    ) -> Any:
        """Like `call`, as `ActivationPoint.call_async` does."""
        sent = self._shape.to_data(data)
        return await self._point.call_async(sent, key=key, timeout=timeout, redeliver=redeliver)

    def subscribe(self, **options: Any) -> Subscription[_T]:
        """Like `ActivationPoint.subscribe`; `job.data` is the instance.

        What does not fit fails as a handler's exception does, and the loop does not see it.
        """
        from aembus.subscription import Subscription

        return Subscription(self._point.bus, self.name, options, self._shape.from_data)

    def handler(self, handler: Callable[[Any, _T], object]) -> Callable[..., object]:
        """Return what to register for `handler`: it raises DataMismatch for what does not fit."""
        return typed_handler(self._shape, handler)

    def __repr__(self) -> str:
        return f"<TypedPoint {self.name!r} of {self._shape.cls.__qualname__}>"


Registrable = str | ActivationPoint | TypedPoint[Any]


def check_point(point: Registrable) -> str:
    """Return the name of a point.  Raises TypeError for what is none."""
    name = point.name if isinstance(point, ActivationPoint | TypedPoint) else point
    check_point_name(name)
    return name


def registrable(
    point: Registrable, handler: Callable[..., object]
) -> tuple[str, Callable[..., object]]:
    """Return the name of a point, and what to register there for `handler`.

    Raises: TypeError if `point` is none, RegistrationError if `handler` cannot be called.
    """
    name = check_point(point)
    if not callable(handler):
        raise RegistrationError(
            f"a handler is a function that gets (event, *data), point={name!r}, handler={handler!r}"
        )
    return name, point.handler(handler) if isinstance(point, TypedPoint) else handler


def typed_handler(shape: Shape[_T], handler: Callable[[Any, _T], object]) -> Callable[..., object]:
    """Return what gets a job's data, makes them the instance that `handler` gets, and calls it."""
    from_data = shape.from_data
    if is_coroutine(handler):
        awaitable: Callable[..., Any] = handler

        @functools.wraps(handler)
        async def typed_async(event: Any, *data: Any) -> object:
            return await awaitable(event, from_data(data))

        return typed_async

    @functools.wraps(handler)
    def typed(event: Any, *data: Any) -> object:
        return handler(event, from_data(data))

    return typed
