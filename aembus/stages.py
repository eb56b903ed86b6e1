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
        handler: gets the event, and what the constructor returned or else the job's data.
        constructor: gets the event and the job's data and returns the handler's arguments.
        destructor: gets the event, the handler's result (None if it raised) and what it raised
            (None if it did not), and returns what goes back to a caller.
    """

    __slots__ = ("_constructor", "_destructor", "_handler", "_ns")

    def __init__(self, handler: Stage, constructor: Stage | None, destructor: Stage | None) -> None:
        self._handler = handler
        self._constructor = constructor
        self._destructor = destructor
        self._ns = [0, 0, 0]

    def __call__(self, event: Any, *data: Any) -> Any:
        """Run the stages; raise what the last of them raised."""
        begun = time.perf_counter_ns()
        if self._constructor is not None:
            try:
                data = _arguments(self._constructor(event, *data))
            finally:
                begun = self._count(0, begun)
        result, error = None, None
        try:
            result = self._handler(event, *data)
        except BaseException as raised:
            error = raised
            raise
        finally:
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
