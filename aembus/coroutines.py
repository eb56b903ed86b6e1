"""Handlers that are ``async def``: what a delivery has begun, and who serves the bus awaits.

Knows nothing of asyncio, so that registering loads nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, NamedTuple, Protocol

from aembus.callchain import Chain
from aembus.errors import AembusError, RegistrationError
from aembus.event import Event, Handler
from aembus.job import Job
from aembus.shm.lanes import Record
from aembus.stages import Stages

_CO_COROUTINE: Final = 0x80  # inspect.CO_COROUTINE; importing `inspect` is not cheap


class Begun(NamedTuple):
    """A handler's coroutine that is to be awaited, and the job that it works on.

    chain: who waits for it, if the job is a call.
    """

    coroutine: Coroutine[Any, Any, object]
    event: Event
    record: Record
    job: Job
    chain: Chain


class Loop(Protocol):
    """An event loop, as far as it matters here."""

    def is_closed(self) -> bool:
        """Say whether it was closed."""


class Coroutines:
    """The handlers of one bus object that are ``async def``.

    start: takes what one of them has begun; set by who serves the bus.
    loop: the event loop in which that one does.
    has_work: says whether jobs wait for that one, since it serves.
    on_end: called when it does no more.
    own_serving: what subscriptions have begun, since nobody else serves (`aembus.subscription`).
    """

    def __init__(self) -> None:
        self.start: Callable[[Begun], None] | None = None
        self.loop: Loop | None = None
        self.has_work: Callable[[], bool] = lambda: False
        self.on_end: set[Callable[[], None]] = set()
        self.own_serving: Any = None

    @property
    def served(self) -> bool:
        """Whether an event loop serves the bus; one that was closed meanwhile does no more."""
        return self.loop is not None and not self.loop.is_closed()

    def handler(self, function: Handler) -> Handler:
        """Return what the event_struct calls for `function`: itself, if it is a plain one."""
        is_async = function.is_async if isinstance(function, Stages) else is_coroutine(function)
        return AsyncHandler(self, function) if is_async else function


class AsyncHandler:
    """What is delivered to instead of an ``async def``: holds the job and has it awaited.

    function: the ``async def``, or Stages around one.
    """

    __slots__ = ("_coroutines", "function")

    def __init__(self, coroutines: Coroutines, function: Callable[..., Any]) -> None:
        self._coroutines = coroutines
        self.function = function

    def __call__(self, event: Event, *data: Any) -> None:
        """Begin; the result goes another way."""
        start = self._coroutines.start
        if start is None:
            raise AembusError(
                "an `async def` handler needs an event loop: use await bus.serve(), "
                f"event={event!r}"
            )
        job, record = event.job, event.record
        assert job is not None
        assert record is not None
        coroutine = self.function(event, *data)
        job.hold()
        start(Begun(coroutine, event, record, job, event.call_chain()))


def is_coroutine(function: Any) -> bool:
    """Say whether a function, a method, a partial or another callable is an ``async def``."""
    try:
        return bool(function.__code__.co_flags & _CO_COROUTINE)  # a method shows its function's
    except AttributeError:
        if isinstance(function, functools.partial):
            return is_coroutine(function.func)
        code = getattr(getattr(type(function), "__call__", None), "__code__", None)  # noqa: B004
        return code is not None and bool(code.co_flags & _CO_COROUTINE)


def check_awaits_nothing(handler: object, of: str) -> None:
    """Raise TypeError for an ``async def`` where the handler is no event's.

    Args:
        of: what calls it, for the text.
    """
    if is_coroutine(handler):
        raise TypeError(
            f"the handler of {of} is a plain function; register the `async def` at a point and "
            f"name that instead, handler={handler!r}"
        )


def check_plain(stages: Iterable[Callable[..., Any] | None], point: str) -> None:
    """Raise RegistrationError for a constructor or destructor that nobody would await."""
    for stage in stages:
        if is_coroutine(stage):
            raise RegistrationError(
                "a constructor and a destructor are plain functions; do in the handler what is "
                f"to be awaited, point={point!r}, function={stage!r}"
            )
