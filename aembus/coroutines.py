"""Handlers that are ``async def``: what a delivery has begun, and who serves the bus awaits.

Knows nothing of asyncio, so that registering loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from aembus.errors import AembusError
from aembus.event import Event, Handler
from aembus.job import Job
from aembus.shm.lanes import Record

_CO_COROUTINE: Final = 0x80  # inspect.CO_COROUTINE; importing `inspect` is not cheap


class Begun(NamedTuple):
    """A handler's coroutine that is to be awaited, and the job that it works on."""

    coroutine: Coroutine[Any, Any, object]
    event: Event
    record: Record
    job: Job


class Coroutines:
    """The coroutine that the handlers of one bus object have begun, one at most.

    Args:
        pause: makes the delivery return after the job in hand.

    served: somebody awaits what is begun.
    """

    def __init__(self, pause: Callable[[], None]) -> None:
        self._pause = pause
        self._begun: Begun | None = None
        self.served = False

    def handler(self, function: Handler) -> Handler:
        """Return what the event_struct calls for `function`: itself, if it is a plain one."""
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if code is None or not code.co_flags & _CO_COROUTINE:
            return function

        def begin(event: Event, *data: Any) -> None:
            self._begin(function, event, data)

        return begin

    def _begin(self, function: Handler, event: Event, data: tuple[Any, ...]) -> None:
        if not self.served:
            raise AembusError(
                "an `async def` handler needs an event loop: use await bus.serve(), "
                f"event={event!r}"
            )
        job, record = event.job, event.record
        assert job is not None
        assert record is not None
        coroutine: Any = function(event, *data)
        job.hold()
        self._begun = Begun(coroutine, event, record, job)
        self._pause()

    def take(self) -> Begun | None:
        """Return what was begun since the last call."""
        begun, self._begun = self._begun, None
        return begun
