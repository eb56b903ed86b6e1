"""What a member has registered, and when others come to know of it.

A member without a name publishes each registration at once.  One with a name (a worker, too)
publishes the first ones all together, when it begins to run: what waits in its inbox for an event
of its predecessor must not be taken before that event is registered again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from aembus.errors import RegistrationError
from aembus.event import Child, Event
from aembus.masking import masked
from aembus.membership import Membership


class Registrations:
    """The registrations of one bus object.

    Args:
        membership: returns what the bus object has now.
        together: keep the first ones until `publish`.
    """

    def __init__(self, membership: Callable[[], Membership], together: bool) -> None:
        self._membership = membership
        self._op = "ready" if together else "publish"
        self._pending: list[Event] | None = [] if together else None
        self._published: list[Event] = []
        self._by_name: dict[tuple[str, str, str | None], Event] = {}  # the same, and those to be
        self._lock = threading.RLock()

    @property
    def events(self) -> list[Event]:
        """Every event, published or not."""
        return [*self._published, *(self._pending or ())]

    def add(self, event: Event) -> None:
        """Register an event.  Raises RegistrationError for a duplicate, BusBroken."""
        with masked, self._lock:
            name = (event.point, event.name, event.group)
            if name in self._by_name:
                raise RegistrationError(
                    "this member has such an event already; give another name=..., "
                    f"point={event.point!r}, name={event.name!r}, group={event.group!r}"
                )
            if self._pending is not None:
                self._pending.append(event)
            else:
                self._publish([event], "publish")
                self._published.append(event)
            self._by_name[name] = event

    def publish(self) -> None:
        """Publish what was kept until now; from now on each is published at once.  Idempotent."""
        if self._pending is None:
            return
        with masked, self._lock:
            if self._pending is not None:
                self._publish(self._pending, self._op)
                self._published, self._pending = self._pending, None

    def _publish(self, events: list[Event], op: str) -> None:
        # Ids first, publication second: a job must not arrive before its event is known here.
        membership = self._membership()
        wanted = [
            [event.point, event.name, event.options.to_document(), event.recipe] for event in events
        ]
        ids = membership.control.request("register", events=wanted)["ids"]
        for event, event_id in zip(events, ids, strict=True):
            event.id = event_id
            membership.event_struct.add(event)
        stopped = [event.id for event in events if event.stopped]
        membership.control.request(op, stopped=stopped)
        membership.sender.refresh()

    def repeat(self) -> None:
        """Publish again, in a new membership, what was published in the last one."""
        with self._lock:
            if self._pending is not None:
                return
            events = self._published
            if self._op != "ready":  # some may have been registered since, and published at once
                there = self._membership().event_struct.events
                events = [event for event in events if event not in there]
            if events or self._op == "ready":
                self._publish(events, self._op)

    def stop(self, event: Event) -> None:
        """Take an event off its wait queue until `start`; see Event.stop."""
        self._turn(event, stopped=True)

    def start(self, event: Event) -> None:
        """Put a stopped event back on its wait queue; see Event.start."""
        self._turn(event, stopped=False)

    def _turn(self, event: Event, *, stopped: bool) -> None:
        with masked, self._lock:
            if event not in self.events:
                raise RegistrationError(f"the event was closed; register it anew, event={event!r}")
            if event in self._published and event.stopped != stopped:
                op = "stop_event" if stopped else "start_event"
                self._membership().control.request(op, ids=[event.id])
            event.stopped = stopped

    def children(self, event: Event) -> tuple[Child, ...]:
        """Return the processes that run the handler of an event with spawn=True."""
        answer = self._membership().control.request("children", event_id=event.id)
        return tuple(Child(*child) for child in answer["children"])

    def close(self, event: Event) -> None:
        """Take an event off its wait queue."""
        with masked, self._lock:
            name = (event.point, event.name, event.group)
            if self._by_name.get(name) is event:
                del self._by_name[name]
            if self._pending is not None and event in self._pending:
                self._pending.remove(event)
                return
            membership = self._membership()
            try:
                membership.control.request("unregister", ids=[event.id])
            finally:  # unanswered it is closed here all the same, and registered nowhere again
                membership.event_struct.remove(event)
                if event in self._published:
                    self._published.remove(event)
