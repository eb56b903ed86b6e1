"""What a child needs to know to make an event: its names and options, and where its handler is.

The registering process makes the recipe, the supervisor keeps it with the registration, the spawn
host gives it to the nursery, and a child makes the event of it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from aembus.coroutines import is_coroutine
from aembus.errors import RegistrationError
from aembus.event import Event, Handler
from aembus.options import EventOptions
from aembus.points import ActivationPoint, TypedPoint, typed_handler
from aembus.spawning.references import Reference, reference_to, resolve
from aembus.stages import Stages


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make an event.

    handler, constructor, destructor: where they are; None for a stage that there is not.
    data: the dataclass of a typed point.
    path: where the registering process looks for modules.
    """

    point: str
    name: str
    group: str | None
    handler: Reference
    constructor: Reference | None
    destructor: Reference | None
    data: Reference | None
    path: tuple[str, ...]

    @classmethod
    def make(
        cls,
        point: str,
        name: str,
        group: str | None,
        handler: Handler,
        constructor: Handler | None,
        destructor: Handler | None,
        data: type | None,
    ) -> Self:
        """Return the recipe of an event that this process registers.

        Raises: RegistrationError for what another process cannot find.
        """

        def where(thing: Any, what: str) -> Reference | None:
            return None if thing is None else reference_to(thing, what)

        return cls(
            point,
            name,
            group,
            reference_to(handler, "handler"),
            where(constructor, "constructor"),
            where(destructor, "destructor"),
            where(data, "class"),
            tuple(entry or str(Path.cwd()) for entry in sys.path),
        )

    def to_frame(self) -> list[Any]:
        """Return what travels."""
        return [getattr(self, field) for field in self.__slots__]

    @classmethod
    def from_frame(cls, fields: list[Any]) -> Self:
        """Return the recipe that `to_frame` was called of."""
        point, name, group, handler, *others, path = fields
        stages = [None if r is None else Reference(*r) for r in others]
        constructor, destructor, data = stages
        return cls(
            point, name, group, Reference(*handler), constructor, destructor, data, tuple(path)
        )

    def references(self) -> list[Reference]:
        """Return all that has to be found."""
        wanted = (self.handler, self.constructor, self.destructor, self.data)
        return [reference for reference in wanted if reference is not None]

    def modules(self) -> list[tuple[str, str]]:
        """Return name and file of each module that is needed, once."""
        return list(dict.fromkeys((r.module, r.file) for r in self.references()))

    def is_late(self, late: Collection[str]) -> bool:
        """Say whether a module of it is to be imported by each child for itself."""
        return any(name in late for name, _ in self.modules())

    def is_loaded(self, late: Collection[str]) -> bool:
        """Say whether this process has imported all that is not `late`."""
        return all(name in sys.modules or name in late for name, _ in self.modules())


def recipe_frame(
    point: str | ActivationPoint | TypedPoint[Any],
    handler: Handler,
    options: EventOptions,
    constructor: Handler | None,
    destructor: Handler | None,
    context: object,
) -> list[Any]:
    """Return what the spawn host is told of an event that this process registers.

    Raises: RegistrationError for what another process cannot find, or does not have.
    """
    if context is not None:
        raise RegistrationError(
            "the context stays in this process, and a handler with spawn=True runs in another; "
            f"send what it needs as data, event={options.name!r}"
        )
    name = point if isinstance(point, str) else point.name
    data = point.data if isinstance(point, TypedPoint) else None
    recipe = Recipe.make(name, options.name, options.group, handler, constructor, destructor, data)
    return [recipe.to_frame(), asdict(options)]


def make_event(recipe: Recipe) -> Event:
    """Import what the recipe names and return the event, as its handler gets it in a child.

    Raises: RegistrationError for what is not there, and what importing raises.
    """
    if not recipe.is_loaded(()):
        sys.path += [entry for entry in recipe.path if entry not in sys.path]
    handler: Handler = resolve(recipe.handler)
    if recipe.data is not None:
        from aembus.typed import Shape

        handler = typed_handler(Shape(recipe.point, resolve(recipe.data)), handler)
    constructor, destructor = (
        None if r is None else resolve(r) for r in (recipe.constructor, recipe.destructor)
    )
    if constructor is not None or destructor is not None:
        handler = Stages(handler, constructor, destructor, is_coroutine(handler))
    return Event(recipe.point, handler, EventOptions(name=recipe.name, group=recipe.group))
