"""The spawn host's jobs: which of them run in children, which wait for one, which nursery forks.

Everything here runs in the spawn host's event loop, which also delivers: a job that is delivered
is *launched*.  If as many children run as there may be, it waits, not started, and takes its room
in its lane: so lanes run full, and who activates waits or gets InboxFull.  Jobs of other events
pass it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from aembus.answers import Failure
from aembus.event import Event
from aembus.events import DEATHS_MAX, EventStruct
from aembus.options import EventOptions
from aembus.shm.inbox import Inbox
from aembus.shm.lanes import Record
from aembus.spawning import outcome as outcomes
from aembus.spawning.child import Task
from aembus.spawning.elsewhere import BEGIN_AGAIN_S, Elsewhere
from aembus.spawning.nursery_process import NurseryProcess, NurseryUseless
from aembus.spawning.outcome import Outcome
from aembus.spawning.recipe import Recipe

log = logging.getLogger("aembus")

CHILD_ENDED: Final = "ChildEnded"
NURSERY_AGAIN_S: Final = 0.5  # after one that died, or could not be started


class Wanted(NamedTuple):
    """An event that the spawn host is to have, as the supervisor tells it."""

    event_id: int
    recipe: Recipe
    options: EventOptions

    @classmethod
    def from_frame(cls, frame: list[Any]) -> Wanted:
        """Return what `frame` says."""
        event_id, recipe, options = frame
        return cls(event_id, Recipe.from_frame(recipe), EventOptions(**options))


@dataclass(slots=True)
class Limit:
    """How many children there may be of one event, or of the events of one group together."""

    children_max: int
    running: int = 0
    waiting: deque[tuple[Record, Event]] = field(default_factory=deque)


@dataclass(slots=True)
class Launched:
    """A job that has a child, or is about to; pid: 0 until it was forked."""

    record: Record
    event: Event
    limit: Limit
    pid: int = 0
    begun_ns: int = 0
    finished: bool = False


class Launcher:
    """All of them.

    Args:
        slot: the spawn host's.
        event_struct, inbox: the spawn host's.
        control: takes an event off its wait queue that was registered with once=True.
        name: of the spawn host, for log lines.
        inherited: a descriptor that nurseries and children keep.
    """

    def __init__(
        self,
        slot: int,
        event_struct: EventStruct,
        inbox: Inbox,
        control: Any,
        name: str,
        inherited: int,
    ) -> None:
        self._slot = slot
        self._event_struct = event_struct
        self._inbox = inbox
        self._elsewhere = Elsewhere(event_struct)
        self._control = control
        self._name = name
        self._inherited = inherited
        self._wanted: dict[int, Wanted] = {}
        self._limits: dict[object, Limit] = {}
        self._launched: dict[int, Launched] = {}
        self._numbers = itertools.count(1)
        self._nursery: NurseryProcess | None = None
        self._nurseries: set[NurseryProcess] = set()
        self._threaded: set[str] = set()  # modules that start threads
        self._adopting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # --- events ---------------------------------------------------------------------------------

    async def adopt(self, events: Iterable[Wanted]) -> dict[int, str]:
        """Have these events, from now on or still.

        Returns what is wrong with those whose handlers cannot be had, by id; none of these is had
        that was not had before.
        """
        new = {wanted.event_id: wanted for wanted in events}
        async with self._adopting:
            try:
                errors = await self._make_known(new)
            except OSError as error:  # no descriptor, process or memory
                errors = dict.fromkeys(new, f"no nursery can be started for it: {error}")
        for event_id, wanted in new.items():
            if event_id not in errors:
                self._have(wanted)
        self._begin_waiting()
        return errors

    async def take_over(self, events: Iterable[Wanted]) -> None:
        """Have the events that a predecessor had; a handler that cannot be had fails in a child."""
        for wanted in events:
            self._have(wanted)
        if self._wanted:
            await self._replace_nursery()

    def _have(self, wanted: Wanted) -> None:
        event_id, recipe, options = wanted
        self._wanted[event_id] = wanted
        event = next((e for e in self._event_struct.events if e.id == event_id), None)
        if event is None:
            event = Event(recipe.point, _never, options, control=self._control, launcher=self)
            event.id = event_id
            self._event_struct.add(event)
        # Else registered again: jobs that wait for another attempt know this one.
        event.options, event.once, event.recipe = options, options.once, recipe.to_frame()
        children_max = options.children_max or len(os.sched_getaffinity(0))
        limit = self._limits.setdefault(_limit_key(wanted), Limit(children_max))
        limit.children_max = children_max

    def _drop(self, event_id: int) -> None:
        self._wanted.pop(event_id, None)
        for event in self._event_struct.events:
            if event.id == event_id:
                self._event_struct.remove(event)

    async def disown(self, ids: Iterable[int]) -> None:
        """Have these events no longer: they are on no wait queue any more."""
        async with self._adopting:
            self._disown(ids)

    def _disown(self, ids: Iterable[int]) -> None:
        for event_id in ids:
            self._drop(event_id)
        keys = {_limit_key(wanted) for wanted in self._wanted.values()}
        for key, limit in list(self._limits.items()):
            for record, event in list(limit.waiting):
                if self._was_closed(event):
                    limit.waiting.remove((record, event))
                    self._elsewhere.give_back(record)
            if key not in keys and not limit.waiting:
                del self._limits[key]  # what runs has it still

    def _was_closed(self, event: Event) -> bool:
        return event.id not in self._wanted and not event.once

    def children(self) -> dict[int, list[list[int]]]:
        """Return PID and time of birth (CLOCK_MONOTONIC, ns) of every child, by its event."""
        found: dict[int, list[list[int]]] = {}
        for launched in self._launched.values():
            if launched.pid:
                child = [launched.pid, launched.begun_ns]
                found.setdefault(launched.event.id, []).append(child)
        return found

    # --- the nursery ----------------------------------------------------------------------------

    async def _make_known(self, new: dict[int, Wanted]) -> dict[int, str]:
        errors: dict[int, str] = {}
        nursery = self._nursery
        try:
            for event_id, wanted in new.items():
                if nursery is None:
                    break
                fits, error = await nursery.check(event_id, wanted.recipe, fresh=True)
                if error:
                    errors[event_id] = error
                if not fits:
                    nursery = None
        except NurseryUseless:
            nursery = None
        if nursery is None and new:
            errors = await self._raise_nursery(new)
        return errors

    async def _raise_nursery(self, new: dict[int, Wanted]) -> dict[int, str]:
        # `new` may fail here; what is had already stays, and its children tell what is wrong.
        errors: dict[int, str] = {}
        late, deaths = set(self._threaded), 0
        while True:
            left = {event_id: one for event_id, one in new.items() if event_id not in errors}
            try:
                nursery = await self._start_nursery({**self._wanted, **left}, late, errors)
            except NurseryUseless as error:
                module = error.module
                blamed = [e for e, one in left.items() if module in dict(one.recipe.modules())]
                deaths += error.died
                if error.died and deaths < DEATHS_MAX:
                    continue
                if error.threads:
                    self._threaded.add(module)
                elif blamed and not self._uses(module):
                    errors |= dict.fromkeys(blamed, str(error))
                    continue
                elif not module or module in late:
                    return errors | dict.fromkeys(left, str(error))
                late.add(module)
            else:
                if self._nursery is not None:
                    self._nursery.retire()
                self._nursery = nursery
                return {event_id: text for event_id, text in errors.items() if event_id in new}

    def _uses(self, module: str) -> bool:
        return any(module in dict(had.recipe.modules()) for had in self._wanted.values())

    async def _start_nursery(
        self, wanted: dict[int, Wanted], late: set[str], errors: dict[int, str]
    ) -> NurseryProcess:
        recipes = [one.recipe for one in wanted.values()]
        modules = dict.fromkeys(module for recipe in recipes for module in recipe.modules())
        path = dict.fromkeys(entry for recipe in recipes for entry in recipe.path)
        nursery = NurseryProcess(self, sorted(late), self._name, self._inherited)
        self._nurseries.add(nursery)
        await nursery.start(list(modules), list(path))
        for event_id, one in wanted.items():
            _, error = await nursery.check(event_id, one.recipe, fresh=False)
            if error:
                errors[event_id] = error
                log.error("a handler cannot be had, event=%d: %s", event_id, error)
        return nursery

    async def _replace_nursery(self) -> None:
        while not self._closing:
            async with self._adopting:
                if self._nursery is None:
                    try:
                        await self._raise_nursery({})
                    except OSError as error:
                        log.error("no nursery can be started, tried again: %s", error)
            if self._nursery is not None:
                self._begin_waiting()
                return
            await asyncio.sleep(NURSERY_AGAIN_S)

    def on_nursery_lost(self, nursery: NurseryProcess) -> None:
        """See Parent: another one takes its place, though its children may have still to end."""
        if nursery is self._nursery:
            self._nursery = None
            if not self._closing:
                log.error("the nursery ended, pid=%d; another one is started", nursery.process.pid)
                task = asyncio.ensure_future(self._replace_nursery())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def on_nursery_gone(self, nursery: NurseryProcess) -> None:
        """See Parent: none of its children runs any more."""
        self._nurseries.discard(nursery)
        self.on_nursery_lost(nursery)
        for number in list(nursery.numbers):
            self._end(number, Failure(CHILD_ENDED, "ended with its nursery"))

    # --- jobs -----------------------------------------------------------------------------------

    def launch(self, record: Record, event: Event) -> None:
        """See event.Launcher."""
        wanted = self._wanted.get(event.id)
        if wanted is None and not event.once:
            self._elsewhere.give_back(record)
            return
        key: object = event.id if event.group is None else (event.point, event.group)
        limit = self._limits.get(key)
        if limit is None:  # an event that was closed after its only job
            limit = self._limits[key] = Limit(1)
        if self._nursery is None or limit.waiting or limit.running >= limit.children_max:
            limit.waiting.append((record, event))
        else:
            self._begin(record, event, limit, self._nursery)

    def _begin(self, record: Record, event: Event, limit: Limit, nursery: NurseryProcess) -> None:
        number = next(self._numbers)
        limit.running += 1
        self._launched[number] = Launched(record, event, limit)
        self._elsewhere.begin(record)
        lane_class = self._inbox.lane_class(record.lane)
        header = list(record.header)
        recipe = event.recipe or []
        task = Task(number, recipe, event.id, self._slot, lane_class, header, record.payload)
        nursery.begin(task)

    def _begin_waiting(self) -> None:
        for limit in list(self._limits.values()):
            self._begin_next(limit)

    def _begin_next(self, limit: Limit) -> None:
        while limit.waiting and limit.running < limit.children_max and self._nursery is not None:
            record, event = limit.waiting.popleft()
            if not self._elsewhere.expire_too_old(record, event):
                self._begin(record, event, limit, self._nursery)

    def on_begun(self, number: int, pid: int, begun_ns: int) -> None:
        """See Parent."""
        launched = self._launched.get(number)
        if launched is not None:
            launched.pid, launched.begun_ns = pid, begun_ns

    def on_outcome(self, number: int, outcome: Outcome) -> None:
        """See Parent: the job is finished, though its child has still to end."""
        launched = self._launched.get(number)
        if launched is None or launched.finished:
            return
        launched.finished = True
        record, event, failure = launched.record, launched.event, outcome.failure
        if outcome.kind in (outcomes.RETURNED, outcomes.UNANSWERABLE):
            self._elsewhere.returned(record, event, failure or outcome.answer)
        elif outcome.kind == outcomes.REFUSED:
            assert failure is not None
            self._elsewhere.refused(record, event, failure)
        else:
            assert failure is not None
            self._elsewhere.failed(record, event, failure)
            self._inbox.wake()  # a retry may be due sooner than the sleep's end

    def on_ended(self, number: int, exit_code: int) -> None:
        """See Parent."""
        if exit_code < 0:
            self._end(number, Failure(CHILD_ENDED, f"ended by signal {-exit_code}"))
        else:
            self._end(number, Failure(CHILD_ENDED, f"ended with exit code {exit_code}"), exit_code)

    def on_not_begun(self, number: int, text: str) -> None:
        """See Parent."""
        log.error("no child can be forked, tried again: %s", text)
        launched = self._launched.pop(number, None)
        if launched is None:
            return  # its nursery's end was heard first
        launched.limit.running -= 1
        self._elsewhere.not_begun(launched.record, launched.event)
        # Who waits behind it has nobody else to end for him; but not at once: none could be forked.
        asyncio.get_running_loop().call_later(BEGIN_AGAIN_S, self._begin_next, launched.limit)

    def _end(self, number: int, failure: Failure, exit_code: int | None = None) -> None:
        launched = self._launched.pop(number, None)
        if launched is None:
            return
        launched.limit.running -= 1
        record, event = launched.record, launched.event
        if launched.finished or self._closing:
            pass
        elif exit_code is None:
            log.error("a child %s, event=%r, pid=%d", failure.text, event, launched.pid)
            self._elsewhere.died(record, event, failure)
        elif exit_code == 0:
            self._elsewhere.returned(record, event, _nothing(event))
        else:
            self._elsewhere.failed(record, event, failure, f"its child {failure.text}")
            self._inbox.wake()
        self._begin_next(launched.limit)

    async def close(self) -> None:
        """End every child; what they had in hand stays so."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        for nursery in list(self._nurseries):
            await nursery.end()


def _limit_key(wanted: Wanted) -> object:
    group = wanted.options.group
    return wanted.event_id if group is None else (wanted.recipe.point, group)


def _never(event: Event, *data: Any) -> None:
    raise AssertionError(f"the spawn host itself runs no handler, event={event!r}")


def _nothing(event: Event) -> bytes:
    from aembus.codec import encode

    return encode((None, event.name))
