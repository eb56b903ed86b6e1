"""What an event was registered with, as all who handle it share it.  Pure.

`Bus.register` makes an EventOptions and the Event keeps it.  Those options that whoever activates
must know are RoutingOptions: they travel to the supervisor and, in the registry, to every member,
as a map of what is not the default.  So an option that nobody uses takes no room there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args

from aembus.errors import RegistrationError
from aembus.shm import layout

Policy = Literal["round_robin", "least_loaded"]
Full = Literal["wait", "fail", "drop"]
LEAST_LOADED: Final = "least_loaded"
WAIT: Final = "wait"
FAIL: Final = "fail"
DROP: Final = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingOptions:
    """What every member knows of an event; each option has a default.

    group: the events of one group share the activations; None: this one gets each.
    policy: who of the group gets an activation without a key: "round_robin", the next in turn, or
        "least_loaded", whoever's inbox has the fewest jobs, those in hand and held included, in the
        lanes of all producers.  By number: how long they take is not known.  Looking costs each
        activation about a microsecond for each member and each producer that it has.  All of a
        group have one policy.
    urgent: its jobs travel in lanes of their own, which are looked at first: so they come before
        jobs of other events that were sent earlier.  Those get at least one job in nine, so urgent
        ones without an end delay them, and no more.
    full: what an activation does if there is no room for it in this member's inbox.  "wait", and
        raise InboxFull at its time-out.  "fail": raise InboxFull at once.  "drop": let this event
        go without, counted as `dropped` in the statistics, so that it slows nobody down.  Calls do
        not wait for events that fail or drop, they fail.  Services, which can neither wait nor be
        told, keep what is for events that wait or fail until there is room.
    tap: it gets copies, and is nobody's concern: see `Bus.tap`.
    """

    group: str | None = None
    policy: Policy = "round_robin"
    urgent: bool = False
    full: Full = "wait"
    tap: bool = False

    def to_document(self) -> dict[str, Any]:
        """Return the options that are not the default, as they travel."""
        return {
            field.name: value
            for field in fields(RoutingOptions)
            if (value := getattr(self, field.name)) != field.default
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOptions(RoutingOptions):
    """All options of one event, those of RoutingOptions among them; see `Bus.register`.

    name: tells two events of one member at the same point apart.
    once: close the event after its first job.
    redeliver: if a worker dies with a job in hand, give it to the replacement; else it goes to the
        dead letters.
    retries: when the handler raises, give it the same job again, up to so many times; then the job
        goes to the dead letters.  Other jobs are delivered meanwhile, so what failed comes behind
        jobs that were sent after it, also those of its key.
    backoff: seconds to pause before the second attempt, twice as many before each further one, at
        most an hour.  A replacement of this process goes on with the count, and begins the pause
        anew.

    Raises: RegistrationError for what is not known, and for numbers that do not fit.
    """

    name: str
    once: bool = False
    redeliver: bool = True
    retries: int = 0
    backoff: float = 1.0
    spawn: bool = False
    children_max: int | None = None

    def __post_init__(self) -> None:
        for option, known in (("policy", get_args(Policy)), ("full", get_args(Full))):
            if getattr(self, option) not in known:
                raise RegistrationError(
                    f"{option} is one of {', '.join(map(repr, known))}, "
                    f"{option}={getattr(self, option)!r}, event={self.name!r}"
                )
        if self.policy == LEAST_LOADED and self.group is None:
            raise RegistrationError(
                "a policy chooses among the events of a group; give group=..., "
                f"policy={self.policy!r}, event={self.name!r}"
            )
        if not 0 <= self.retries <= layout.STATE_FAILURE_MAX or not 0 <= self.backoff < math.inf:
            raise RegistrationError(
                "retries and backoff must be 0 or more, and finite, "
                f"retries={self.retries}, backoff={self.backoff}, event={self.name!r}"
            )
        if self.children_max is not None and not (self.spawn and self.children_max >= 1):
            raise RegistrationError(
                "children_max must be 1 or more, and goes with spawn=True, "
                f"children_max={self.children_max}, spawn={self.spawn}, event={self.name!r}"
            )


def default_name(handler: object) -> str:
    """Return the name of an event that was given none: its handler's."""
    return str(getattr(handler, "__qualname__", type(handler).__qualname__))
