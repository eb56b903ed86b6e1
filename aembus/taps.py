"""Taps: who looks at the jobs of a point and is nobody's concern.

An activation that has succeeded gives each tap of its point a copy, if there is room for it; what
there is no room for is dropped and counted in the tap's inbox.  Copies are not among the jobs that
an activation has made, calls pass them over, and what is left of them when a tap goes is forgotten:
it counts as never sent.  A tap costs activations of its point the short way, and those of other
points nothing.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final

from aembus.coroutines import is_coroutine
from aembus.options import DROP, EventOptions, default_name

log = logging.getLogger("aembus")

RAISED: Final = "a tap's handler raised, point=%r"


def tap_options(handler: Callable[..., object], name: str | None) -> EventOptions:
    """Return what a tap is registered with."""
    named = name or f"tap {default_name(handler)}"
    return EventOptions(name=named, full=DROP, tap=True, redeliver=False)


def harmless(
    handler: Callable[..., object], begins: Callable[[Callable[..., object]], Callable[..., object]]
) -> Callable[..., object]:
    """Return a handler whose exceptions are logged: a copy that failed becomes no dead letter.

    Args:
        begins: makes what begins an ``async def`` of it, so that its end is awaited.
    """
    if is_coroutine(handler):
        handler = begins(_harmless_async(handler))

    @functools.wraps(handler)
    def looked(event: Any, *data: Any) -> None:
        try:
            handler(event, *data)
        except Exception:
            log.exception(RAISED, event.point)

    return looked


def _harmless_async(handler: Callable[..., Any]) -> Callable[..., object]:
    @functools.wraps(handler)
    async def looked(event: Any, *data: Any) -> None:
        try:
            await handler(event, *data)
        except Exception:
            log.exception(RAISED, event.point)

    return looked
