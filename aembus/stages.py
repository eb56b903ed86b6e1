"""An event's constructor, handler and destructor, run as one handler and timed apart.

Only events that have a constructor or a destructor get this in place of their handler, so the
others pay nothing for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

NS: Final = 1_000_000_000

Stage = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Timings:
    """How many seconds an event's stages took in this process, all their runs together."""

    constructor_s: float
    handler_s: float
    destructor_s: float


@final
class Stages:
    """What is delivered to instead of a handler.

    Args:
        is_async: `handler` is an ``async def``; constructor and destructor are plain all the same.
        handler: gets the event, and what the constructor returned or else the job's data.
        constructor: gets the event and the job's data and returns the handler's arguments.
        destructor: gets the event, the handler's result (None if it raised) and what it raised
            (None if it did not), and returns what goes back to a caller.
    """

    __slots__ = ("_constructor", "_destructor", "_handler", "_ns", "is_async")

    def __init__(
        self,
        handler: Stage,
        constructor: Stage | None,
        destructor: Stage | None,
        is_async: bool = False,
    ) -> None:
        self.is_async = is_async
        self._handler = handler
        self._constructor = constructor
        self._destructor = destructor
        self._ns = [0, 0, 0]

    def __call__(self, event: Any, *data: Any) -> Any:
        """Run the stages; raise what the last of them raised.  Async: return what does so."""
        if self.is_async:
            return self._run_async(event, data)
        begun, data = self._construct(event, data)
        result, error = None, None
        try:
            result = self._handler(event, *data)
        except BaseException as raised:
            error = raised
            raise
        finally:
            result = self._destruct(event, result, error, begun)
        return result

    async def _run_async(self, event: Any, data: tuple[Any, ...]) -> Any:
        begun, data = self._construct(event, data)
        result, error = None, None
        try:
            result = await self._handler(event, *data)
        except BaseException as raised:
            error = raised
            raise
        finally:
            result = self._destruct(event, result, error, begun)
        return result

    def _construct(self, event: Any, data: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
        begun = time.perf_counter_ns()
        if self._constructor is not None:
            try:
                data = _arguments(self._constructor(event, *data))
            finally:
                begun = self._count(0, begun)
        return begun, data

    def _destruct(self, event: Any, result: Any, error: BaseException | None, begun: int) -> Any:
        begun = self._count(1, begun)
        if self._destructor is not None:
            try:
                result = self._destructor(event, result, error)
            finally:
                self._count(2, begun)
        return result

    def _count(self, stage: int, begun: int) -> int:
        now = time.perf_counter_ns()
        self._ns[stage] += now - begun
        return now

    def timings(self) -> Timings:
        """Return how long the stages took so far."""
        constructor_ns, handler_ns, destructor_ns = self._ns
        return Timings(constructor_ns / NS, handler_ns / NS, destructor_ns / NS)


def _arguments(returned: object) -> tuple[Any, ...]:
    if isinstance(returned, tuple | list):
        return tuple(returned)
    raise TypeError(
        "a constructor returns the handler's arguments as a tuple or list, "
        f"returned={type(returned).__name__}"
    )
