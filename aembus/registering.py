"""Makes the Event of a registration: what is delivered to in place of the handler that was given.

A typed point's handler gets its instance, one with a constructor or a destructor runs in stages,
an ``async def`` is awaited by who serves the bus, and a tap's harms nobody.  An event that needs
none of it is delivered to its handler itself.
"""

from __future__ import annotations

from typing import Any

from aembus.coroutines import Coroutines, check_plain, is_coroutine
from aembus.event import Control, Event, Handler
from aembus.options import EventOptions
from aembus.points import Registrable, registrable
from aembus.stages import Stage, Stages
from aembus.taps import harmless, tap_options


class EventMaker:
    """Makes the events of one bus object.

    Args:
        coroutines: those of its handlers that are ``async def``.
        control: its registrations.
    """

    def __init__(self, coroutines: Coroutines, control: Control) -> None:
        self._coroutines = coroutines
        self._control = control

    def event(
        self,
        point: Registrable,
        handler: Handler,
        options: EventOptions,
        constructor: Stage | None,
        destructor: Stage | None,
        context: Any,
    ) -> Event:
        """Return the event of `Bus.register`; raises as that does, but for a duplicate."""
        point_name, delivered_to = registrable(point, handler)
        recipe = None
        if options.spawn:
            from aembus.spawning.recipe import recipe_frame

            recipe = recipe_frame(point, handler, options, constructor, destructor, context)
        if constructor is not None or destructor is not None:
            check_plain((constructor, destructor), point_name)
            delivered_to = Stages(delivered_to, constructor, destructor, is_coroutine(handler))
        delivered_to = self._coroutines.handler(delivered_to)
        return Event(
            point_name, delivered_to, options, context=context, control=self._control, recipe=recipe
        )

    def tap(self, point: Registrable, handler: Handler, name: str | None) -> Event:
        """Return the event of `Bus.tap`; raises as that does, but for a duplicate."""
        point_name, looker = registrable(point, handler)
        options = tap_options(handler, name)
        looker = harmless(looker, self._coroutines.handler)
        return Event(point_name, looker, options, context=None, control=self._control)
