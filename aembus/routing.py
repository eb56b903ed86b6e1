"""Who is concerned by an activation: wait queues, compiled from one registry document.  Pure.

Every member compiles the document for itself when the generation changes; nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from aembus.options import LEAST_LOADED, WAIT, Full, RoutingOptions
from aembus.shm import layout

SUPERVISOR_SLOT: Final = 0
STATE_RUNNING: Final = "running"
STATE_DEGRADED: Final = "degraded"


@dataclass(frozen=True, slots=True)
class Member:
    """One member, as the registry shows it."""

    slot: int
    incarnation: int
    inbox_id: int
    kind: str
    name: str
    pid: int
    state: str


class Target(NamedTuple):
    """One concerned event: whose, and which.

    lane_class: of the lane by which its jobs travel.
    full: what becomes of a job if there is no room in that lane.
    """

    slot: int
    event_id: int
    lane_class: int = layout.CLASS_NORMAL
    full: Full = WAIT


# Picks one of a group's targets by their load; the number says where to begin among equals.
LeastLoaded = Callable[[Sequence[Target], int], Target]


@dataclass(frozen=True, slots=True)
class ServiceVersion:
    """One hosted version of a service: where it runs and what its calls are called.

    number: no other loaded version of this run of the bus has or had it.
    points: what it says that it activates.
    """

    name: str
    version: str
    slot: int
    calls: dict[str, int]
    client: str | None
    number: int = 0
    points: tuple[str, ...] = ()

    def to_document(self) -> list[Any]:
        """Return it as it travels."""
        return [
            *(self.name, self.version, self.slot, self.calls, self.client),
            *(self.number, list(self.points)),
        ]

    @classmethod
    def from_document(cls, document: Sequence[Any]) -> ServiceVersion:
        """Return what `to_document` was called on."""
        name, version, slot, calls, client, number, points = document
        return cls(name, version, slot, calls, client, number, tuple(points))


class WaitQueue:
    """The registrations of one activation point: some get every activation, groups share them.

    Args:
        everyone: get each activation.
        groups: of each, one gets it: by its key, or in turn.
        by_load: groups too, but of these the least loaded gets what has no key.
        taps: get copies of whatever is sent to the others, or would be.
    """

    __slots__ = ("_by_load", "_everyone", "_groups", "_only_group", "taps")

    def __init__(
        self,
        everyone: Sequence[Target],
        groups: Sequence[Sequence[Target]],
        by_load: Sequence[Sequence[Target]] = (),
        taps: Sequence[Target] = (),
    ) -> None:
        self.taps = tuple(taps)
        self._everyone = tuple(everyone)
        self._groups = tuple(tuple(group) for group in groups)
        self._by_load = tuple(tuple(group) for group in by_load)
        only = len(self._groups) == 1 and not everyone and not by_load
        self._only_group = self._groups[0] if only else None

    def pick(self, chooser: int, least_loaded: LeastLoaded | None = None) -> tuple[Target, ...]:
        """Return the events to wake: all without a group, and of each group the one chosen.

        Args:
            chooser: a key's hash, or a number that grows with each activation (round-robin).
            least_loaded: picks of the groups that are chosen from by load; None, for a key: they
                are as the others.
        """
        group = self._only_group
        if group is not None:
            return (group[chooser % len(group)],)
        targets = self._everyone
        if self._groups:
            targets += tuple(group[chooser % len(group)] for group in self._groups)
        if not self._by_load:
            return targets
        if least_loaded is None:
            return targets + tuple(group[chooser % len(group)] for group in self._by_load)
        return targets + tuple(least_loaded(group, chooser) for group in self._by_load)

    @property
    def goes_by_load(self) -> bool:
        """Whether there is a group of which the least loaded gets what has no key."""
        return bool(self._by_load)

    def groups(self) -> list[Sequence[Target]]:
        """Return the groups, an event without one being a group of its own."""
        return [*((target,) for target in self._everyone), *self._groups, *self._by_load]

    def __len__(self) -> int:
        return len(self._everyone) + len(self._groups) + len(self._by_load)


EMPTY: Final = WaitQueue((), ())


class Routing:
    """One generation of the registry, ready to be asked."""

    def __init__(self, generation: int, document: dict[str, Any]) -> None:
        self.generation = generation
        self.members = {m[0]: Member(*m) for m in document["members"]}
        self.points: dict[str, list[list[Any]]] = document["points"]
        self.services = [ServiceVersion.from_document(s) for s in document["services"]]
        self._queues: dict[str, WaitQueue] = {}

    def queue(self, point: str) -> WaitQueue:
        """Return the wait queue of a point; empty where nobody registered."""
        queue = self._queues.get(point)
        if queue is None:
            if point not in self.points:
                return EMPTY  # not kept: names of points may come and go without an end
            queue = self._queues[point] = self._compile(self.points[point])
        return queue

    def _compile(self, registrations: Sequence[Sequence[Any]]) -> WaitQueue:
        everyone: list[Target] = []
        groups: dict[str, list[Target]] = {}
        by_load: set[str] = set()
        taps: list[Target] = []
        # By event id: the order, and so the member that a key picks, is the same everywhere and
        # stays when a worker is restarted.
        for event_id, slot, document in sorted(registrations, key=_event_id):
            options = RoutingOptions(**document)
            target = _target(slot, event_id, options)
            if options.tap:
                taps.append(target)
                continue
            if options.group is None:
                everyone.append(target)
                continue
            groups.setdefault(options.group, []).append(target)
            if options.policy == LEAST_LOADED:
                by_load.add(options.group)
        able = {name: self._able(group) for name, group in groups.items()}
        return WaitQueue(
            everyone,
            [group for name, group in able.items() if name not in by_load],
            [able[name] for name in groups if name in by_load],
            taps,
        )

    def _able(self, group: list[Target]) -> list[Target]:
        able = [t for t in group if self.members[t.slot].state != STATE_DEGRADED]
        return able or group

    def group(self, point: str, group: str | None) -> Sequence[Target]:
        """Return the events of one group of a point."""
        registrations = sorted(self.points.get(point, ()), key=_event_id)
        return [
            _target(slot, event_id, options)
            for event_id, slot, document in registrations
            if (options := RoutingOptions(**document)).group == group and not options.tap
        ]


def _target(slot: int, event_id: int, options: RoutingOptions) -> Target:
    lane_class = layout.CLASS_URGENT if options.urgent else layout.CLASS_NORMAL
    return Target(slot, event_id, lane_class, options.full)


def _event_id(registration: Sequence[Any]) -> int:
    return int(registration[0])
