"""The members of a bus, as the supervisor knows them.  No I/O.

A member is kept from its join until its inbox is free again.  A member with a name (a worker, a
client that gave one) keeps slot, inbox and event ids while its process is replaced; only pid and
incarnation change.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from aembus.errors import ControlError, RegistrationError, SlotsExhausted
from aembus.options import RoutingOptions
from aembus.routing import STATE_RUNNING
from aembus.shm import layout
from aembus.shm.in_hand import InHand

KIND_SUPERVISOR: Final = "supervisor"
KIND_WORKER: Final = "worker"
KIND_CLIENT: Final = "client"
KIND_HOST: Final = "host"
KIND_SPAWN: Final = "spawn"
SUPERVISED: Final = (KIND_WORKER, KIND_SPAWN)  # whose processes the supervisor starts and replaces

CLOSED_MAX: Final = 10_000  # events that were closed and are known, of all members together
REGISTRATION_BYTES: Final = 96  # in the registry's document at most, beside point and group
MEMBER_BYTES: Final = 64  # about what a member takes there
STATE_STARTING: Final = "starting"  # its process is coming up, or about to
STATE_AWAITED: Final = "awaited"  # its process is gone; its place is kept for the next of its name
STATE_LEAVING: Final = "leaving"  # no longer in the registry; its inbox is being emptied


@dataclass(frozen=True, slots=True)
class Registration:
    """One event: where, under what name, and what every member knows of it.

    A member's event is the same as before if point, name and group are.
    """

    point: str
    name: str
    group: str | None
    options: RoutingOptions = field(compare=False)
    spawn: list[Any] | None = field(default=None, compare=False)

    @property
    def document_bytes_max(self) -> int:
        """How much longer it can make the registry's document."""
        return len(self.point.encode()) + len((self.group or "").encode()) + REGISTRATION_BYTES


@dataclass(slots=True)
class Member:
    """One member.

    acknowledged: the newest generation that its process has passed.
    stopped: ids that are off their wait queues until they are started again.
    pending: ids given out, not published yet.
    keep_s: for a client with a name: how long its place is kept while it has no process.
    """

    slot: int
    incarnation: int
    inbox_id: int
    kind: str
    name: str
    pid: int
    state: str
    connection: Any = None
    acknowledged: int = 0
    restarts: int = 0
    joined_at: float = field(default_factory=time.monotonic)
    events: dict[int, Registration] = field(default_factory=dict)
    stopped: dict[int, Registration] = field(default_factory=dict)
    pending: dict[int, Registration] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    keep_s: float = 0.0
    in_hand_at_death: frozenset[InHand] = frozenset()  # of its last process
    sent_before: int = 0  # what the slot's lanes had carried before this member got it

    @property
    def listed(self) -> bool:
        """Whether the registry shows it."""
        return self.state != STATE_LEAVING


class Members:
    """All members of one bus, by slot.

    Args:
        slots: how many there may be at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._by_slot: dict[int, Member] = {}
        self._incarnations = itertools.count(1)
        self._inbox_ids = itertools.count(0)
        self._event_ids = itertools.count(1)
        self._stable_ids: dict[tuple[str, Registration], int] = {}
        self._known: dict[int, Registration] = {}
        self._closed: OrderedDict[int, tuple[str, Registration]] = (
            OrderedDict()
        )  # as in _stable_ids
        self.spawn_host: Member | None = None

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._by_slot.values()))

    def __len__(self) -> int:
        return len(self._by_slot)

    @property
    def free_slots(self) -> int:
        """How many more members there may be now."""
        return self._slots - len(self._by_slot)

    def get(self, slot: int) -> Member | None:
        """Return the member in `slot`, or None."""
        return self._by_slot.get(slot)

    def named(self, name: str) -> Member | None:
        """Return the member of this name, or None."""
        return next((m for m in self._by_slot.values() if m.name == name), None)

    def add(self, kind: str, name: str, pid: int, state: str) -> Member:
        """Give a new member the lowest free slot and an inbox number of its own.

        Raises: SlotsExhausted.
        """
        slot = next((s for s in range(self._slots) if s not in self._by_slot), None)
        if slot is None:
            raise SlotsExhausted(
                "the bus has no free slot; give the supervisor more (slots), "
                f"slots={self._slots}, members={len(self._by_slot)}"
            )
        incarnation = next(self._incarnations)
        member = Member(
            slot,
            incarnation,
            next(self._inbox_ids),
            kind,
            name or f"{kind}-{incarnation}",
            pid,
            state,
        )
        self._by_slot[slot] = member
        return member

    def replace_process(self, member: Member, pid: int) -> None:
        """Let a new process be this member: same slot, inbox and events, new incarnation."""
        member.pid = pid
        member.incarnation = next(self._incarnations)
        member.state = STATE_STARTING
        self.take_back(member, list(member.pending))
        member.acknowledged = 0
        member.joined_at = time.monotonic()

    def remove(self, member: Member) -> None:
        """Free the member's slot; its inbox must be gone."""
        del self._by_slot[member.slot]
        for key in [k for k in self._stable_ids if k[0] == member.name]:
            event_id = self._stable_ids.pop(key)
            if self._known[event_id].spawn is None:
                del self._known[event_id]
                self._closed.pop(event_id, None)
            else:  # the spawn host may still have jobs of its own, for their group
                self._close(event_id, key)

    def _close(self, event_id: int, key: tuple[str, Registration]) -> None:
        # It stays known for what is queued for it, but not for ever: there may be one for each call
        # of a switch.
        self._closed[event_id] = key
        self._closed.move_to_end(event_id)
        if len(self._closed) > CLOSED_MAX:
            event_id, key = self._closed.popitem(last=False)
            del self._known[event_id]
            if self._stable_ids.get(key) == event_id:
                del self._stable_ids[key]

    def register(self, member: Member, wanted: list[list[Any]]) -> list[int]:
        """Return ids for the events that `member` wants: the same as before for the same event.

        They are pending until `publish` or `publish_all`.  Raises RegistrationError.
        """
        registrations = []
        for point, name, document, spawn in wanted:
            options = RoutingOptions(**document)
            registrations.append(Registration(point, name, options.group, options, spawn))
        self._check_policies(member, registrations)
        ids = []
        for registration in registrations:
            there = [*member.events.values(), *member.stopped.values()]
            if registration in there and member.state == STATE_RUNNING:
                raise RegistrationError(
                    "this member has such an event already; give another name=..., "
                    f"point={registration.point!r}, name={registration.name!r}, "
                    f"group={registration.group!r}"
                )
            key = (member.name, registration)
            event_id = self._stable_ids.get(key)
            if event_id is None:
                event_id = self._stable_ids[key] = next(self._event_ids)
            member.pending[event_id] = registration
            self._known[event_id] = registration
            self._closed.pop(event_id, None)
            ids.append(event_id)
        return ids

    def _check_policies(self, member: Member, wanted: list[Registration]) -> None:
        # One pass for all that is wanted: there may be thousands of events.  What a member had
        # before may change: else new code with another policy could not be rolled in.
        policies: dict[tuple[str, str], tuple[str, str]] = {}

        def check(name: str, event: Registration) -> None:
            if event.group is None:
                return
            key = event.point, event.group
            policy, other = policies.setdefault(key, (event.options.policy, name))
            if policy != event.options.policy:
                raise RegistrationError(
                    "the events of one group have one policy, "
                    f"point={event.point!r}, group={event.group!r}, "
                    f"policy={policy!r} of member={other!r}, "
                    f"policy={event.options.policy!r} of member={name!r}"
                )

        for event in wanted:
            check(member.name, event)
        joined = {(e.point, e.group) for e in wanted if (member.name, e) not in self._stable_ids}
        for other in self._by_slot.values():
            if not other.listed:
                continue
            known = list(other.pending.values())
            if other is not member or member.state == STATE_RUNNING:  # else its last process's
                known += [*other.events.values(), *other.stopped.values()]
            for event in known:
                if (event.point, event.group) in joined:
                    check(other.name, event)

    def take_back(self, member: Member, ids: list[int]) -> None:
        """Forget what was registered and is not to be published."""
        published = member.events.keys() | member.stopped.keys()
        for event_id in ids:
            event = member.pending.pop(event_id, None)
            if event is not None and event_id not in published:
                self._close(event_id, (member.name, event))

    def give_back(
        self, member: Member, events: dict[int, Registration], stopped: dict[int, Registration]
    ) -> None:
        """Let a member have the events that it had before another process registered its own."""
        self.take_back(member, list(member.pending))
        others = member.events | member.stopped
        member.events, member.stopped = dict(events), dict(stopped)
        for event_id, event in (events | stopped).items():
            self._stable_ids[member.name, event] = event_id
            self._known[event_id] = event
            self._closed.pop(event_id, None)
        for event_id in others.keys() - events.keys() - stopped.keys():
            self._close(event_id, (member.name, others[event_id]))

    def publish(self, member: Member, stopped: list[int]) -> None:
        """Add the member's pending events to those published, or to its stopped ones."""
        member.events |= member.pending
        member.pending = {}
        self.stop(member, stopped)

    def publish_all(self, member: Member, stopped: list[int]) -> None:
        """Make the pending events the member's only ones (its entry point has returned)."""
        before = member.events | member.stopped
        member.events, member.stopped = {}, {}
        self.publish(member, stopped)
        for event_id in before.keys() - member.events.keys() - member.stopped.keys():
            self._close(event_id, (member.name, before[event_id]))
        member.state = STATE_RUNNING

    def stop(self, member: Member, ids: list[int]) -> None:
        """Take events off their wait queues until they are started."""
        _move(ids, member.events, member.stopped)

    def start(self, member: Member, ids: list[int]) -> None:
        """Put stopped events back on their wait queues."""
        _move(ids, member.stopped, member.events)

    def unregister(self, member: Member, ids: list[int]) -> None:
        """Take events off their wait queues; their ids stay known for what is still queued."""
        for event_id in ids:
            event = member.events.pop(event_id, None) or member.stopped.pop(event_id, None)
            if event is not None:
                self._close(event_id, (member.name, event))

    def registration(self, event_id: int) -> Registration | None:
        """Return what an event id stands for, also after it was unregistered, for a long while."""
        return self._known.get(event_id)

    def slot_of(self, event: Registration, member: Member) -> int:
        """Return the slot to which the jobs of an event of `member` go."""
        if event.spawn is None or self.spawn_host is None:
            return member.slot
        return self.spawn_host.slot

    def counter(self, member: Member, name: str) -> int:
        """Return the index of the member's counter of this name.  Raises ControlError."""
        index = member.counters.setdefault(name, len(member.counters))
        if index >= layout.COUNTERS_MAX:
            del member.counters[name]
            raise ControlError(
                f"a member has at most {layout.COUNTERS_MAX} counters, member={member.name!r}, "
                f"counter={name!r}"
            )
        return index

    @property
    def announced_bytes(self) -> int:
        """How much longer the document can get by what is registered and not on a wait queue."""
        return sum(
            event.document_bytes_max
            for member in self._by_slot.values()
            for events in (member.pending, member.stopped)
            for event in events.values()
        )

    @property
    def coming_bytes(self) -> int:
        """How much longer members that come can make the document."""
        return MEMBER_BYTES * self._slots

    def document(
        self, bus: str, nonce: str, services: list[list[Any]], *, announced: bool = False
    ) -> dict[str, Any]:
        """Return the registry's document, as `aembus.routing.Routing` reads it.

        Args:
            announced: as it will be when what is registered is published, and nothing is stopped.
        """
        listed = [m for m in self._by_slot.values() if m.listed]
        points: dict[str, list[list[Any]]] = {}
        for member in listed:
            events = member.events
            if announced and member.pending and member.state != STATE_RUNNING:
                events = member.pending  # all that it will have
            elif announced:
                events = member.events | member.stopped | member.pending
            for event_id, event in events.items():
                slot = self.slot_of(event, member)
                registration = [event_id, slot, event.options.to_document()]
                points.setdefault(event.point, []).append(registration)
        return {
            "bus": bus,
            "nonce": nonce,
            "members": [
                [m.slot, m.incarnation, m.inbox_id, m.kind, m.name, m.pid, m.state] for m in listed
            ],
            "points": points,
            "services": services,
        }


def _move(
    ids: list[int], source: dict[int, Registration], destination: dict[int, Registration]
) -> None:
    for event_id in ids:
        if event_id in source:
            destination[event_id] = source.pop(event_id)


def member_of(connection: Any) -> Member:
    """Return the member that speaks over a connection.  Raises ControlError if none does."""
    member = connection.member
    if not isinstance(member, Member):
        raise ControlError(f"join the bus first, pid={connection.pid}")
    return member
