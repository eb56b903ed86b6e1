"""Loading, unloading and upgrading services while their members go on.

Several versions of one service may be loaded, each an object of its own with call ids of its own;
whoever asks for the service gets the newest of those that run.  A version that drains is asked for
by nobody new; it goes, in `retire`, once its host is told that its last user has let go.  A change
that fails leaves everything as it was, and says why.

An upgrade with hand-over, all in the event loop of the host:

```
old:  hand_over() ─────────────────────────────────────────────► in_use? answers out? ► stop()
                  data through msgpack, descriptors as they are
new:               take_over() ─────────┐                        calls (old ids and new), do_work()
calls, on_room …:  kept, in order ──────┴──► done by the new one; by the old one if that failed
```
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from aembus.errors import ServiceError, ServiceLoadError, ServiceNotFound
from aembus.hosting.calls import CallTable
from aembus.hosting.code import ServiceCode, load_code
from aembus.hosting.hosted import NUMBER_BITS, STATE_DRAINING, STATE_RUNNING, Hosted, Surroundings
from aembus.routing import ServiceVersion
from aembus.services.base import HandOver
from aembus.shm.inbox import Inbox

log = logging.getLogger("aembus")

START_S_MAX: Final = 20.0  # for start() and take_over(); a control request may take 30
STOP_S_MAX: Final = 5.0
CHANGE_S_MAX: Final = 1.0  # for a change that is under way when the bus stops
LOOK_S: Final = 0.05  # between two looks whether a draining version may go


@dataclass(frozen=True, slots=True)
class Change:
    """What an upgrade came to.

    handed_over: the old version's state, ids and users are the new one's.
    at_switch: the old version's own statistics right before it gave its state away.
    pause_s: for how long calls were kept; 0 without hand-over.
    calls_kept: how many calls came meanwhile.
    """

    old: Hosted
    new: Hosted
    handed_over: bool = False
    at_switch: dict[str, Any] = field(default_factory=dict)
    pause_s: float = 0.0
    calls_kept: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """A version as a process of a host has it, for the next one: its users go on with that.

    calls: the ids that reach it, with the names of its calls.
    """

    spec: str
    label: str
    number: int
    draining: bool
    calls: dict[int, str]

    def to_document(self) -> list[Any]:
        """Return it as it travels."""
        return [self.spec, self.label, self.number, self.draining, self.calls]


class Versions:
    """The loaded versions of one host's services.

    Args:
        surroundings: what each version gets to see of its host.
        table: where its calls are entered.
        inbox: where they come from.
        slot: of the member that this host is.

    loaded: oldest first, draining versions included; another tuple after each change.
    """

    def __init__(
        self, surroundings: Surroundings, table: CallTable, inbox: Inbox, slot: int
    ) -> None:
        self._surroundings = surroundings
        self._table = table
        self._inbox = inbox
        self._slot = slot
        self.loaded: tuple[Hosted, ...] = ()
        self._last_number = slot << NUMBER_BITS  # no other host's follow it
        self._loads: Counter[tuple[str, str]] = Counter()
        self._codes: list[ServiceCode] = []
        self._code: ServiceCode | None = None  # of the version that a change is about to start
        self._changing = asyncio.Lock()
        self._closing = False

    def __iter__(self) -> Iterator[Hosted]:
        """Iterate over what is loaded."""
        return iter(self.loaded)

    def running(self) -> list[Hosted]:
        """Return what can be bound, oldest first."""
        return [hosted for hosted in self.loaded if hosted.state == STATE_RUNNING]

    def find(self, name: str, version: str | None) -> Hosted:
        """Return the newest running version of a service, or of one of its versions.

        Raises: ServiceNotFound.
        """
        for hosted in reversed(self.loaded):
            fits = version in (None, hosted.label, hosted.code.version)
            if hosted.name == name and fits and hosted.state == STATE_RUNNING:
                return hosted
        titles = [f"{h.name} {h.label}" for h in self.running()]
        leaving = [f"{h.name} {h.label}" for h in self.loaded if h.state != STATE_RUNNING]
        raise ServiceNotFound(
            "no such service here; load it (aembus service load), or have the supervisor load it "
            f"(services=[...], --service), service={name!r}, version={version!r}, "
            f"hosted={titles}" + (f", not running={leaving}" if leaving else "")
        )

    # --- changes --------------------------------------------------------------------------------

    async def load(self, spec: str) -> Hosted:
        """Load and start a version beside those that are loaded.

        Raises: ServiceLoadError; nothing has changed then.
        """
        async with self._changing:
            with self._new_code(await asyncio.to_thread(load_code, spec)) as code:
                for hosted in self.loaded:
                    if (hosted.name, hosted.code.version) == (code.name, code.version):
                        raise ServiceLoadError(
                            "this version is loaded already; state another one in the class, or "
                            f"upgrade, service={code.name!r}, version={code.version!r}, "
                            f"state={hosted.state}"
                        )
                hosted = await self._start(code)
                self._add(hosted)
                return hosted

    def known(self) -> list[Known]:
        """Return what the next process of this host is to have, oldest first."""
        return [
            Known(h.code.spec, h.label, h.number, h.state == STATE_DRAINING, self._table.ids_of(h))
            for h in self.loaded
            if not h.passed_on
        ]

    async def restore(self, known: Known) -> Hosted:
        """Load a version that the last process of this host had: the same to all its users.

        Raises: ServiceLoadError.
        """
        async with self._changing:
            with self._new_code(await asyncio.to_thread(load_code, known.spec)) as code:
                self._last_number = max(self._last_number, known.number)
                hosted = await self._start(code, known.number)
                self._add(hosted, known)
                if known.draining:
                    self._drain(hosted)
                return hosted

    async def upgrade(self, name: str, spec: str | None, hand_over: bool) -> Change:
        """Load a version in place of the newest one, which passes its state on, or drains.

        Args:
            spec: where the new code is; None: where the old one was.

        Raises: ServiceNotFound, ServiceLoadError; nothing has changed then.
        """
        async with self._changing:
            old = self.find(name, None)
            with self._new_code(await asyncio.to_thread(load_code, spec or old.code.spec)) as code:
                if code.name != name:
                    raise ServiceLoadError(
                        f"this is another service, upgrade={name!r}, code={code.spec!r}, "
                        f"name={code.name!r}"
                    )
                return await self._replace(old, code, hand_over)

    async def rollback(self, name: str, hand_over: bool) -> Change:
        """Upgrade to the version that the newest one has replaced, with the code as it was.

        Raises: ServiceNotFound, ServiceLoadError if it has replaced none; nothing has changed then.
        """
        async with self._changing:
            old = self.find(name, None)
            if old.replaced is None:
                raise ServiceLoadError(
                    "there is no version to go back to: this one has replaced none, "
                    f"service={name!r}, version={old.label!r}"
                )
            with self._new_code(old.replaced) as code:
                return await self._replace(old, code, hand_over)

    def drain(self, name: str, version: str | None) -> Hosted:
        """Let nobody new be bound to a version: it is unloaded when its last user lets go.

        Raises: ServiceNotFound; ServiceError if several run and none of them was chosen.
        """
        hosted = self.find(name, version)
        others = [h.label for h in self.running() if h.name == name]
        if version is None and len(others) > 1:
            raise ServiceError(
                f"several versions run; say which one, service={name!r}, versions={others}"
            )
        self._drain(hosted)
        return hosted

    @staticmethod
    def _drain(hosted: Hosted) -> None:
        hosted.state = STATE_DRAINING
        hosted.ask("drain")

    async def _start(self, code: ServiceCode, number: int = 0) -> Hosted:
        try:
            hosted = self._make(code, number)
            starting: object = hosted.service.start()
            if not isinstance(starting, Awaitable):
                raise TypeError("a service's start() is an async def")
            await asyncio.wait_for(starting, START_S_MAX)
        except Exception as error:
            raise ServiceLoadError(
                f"service failed to start, service={code.spec!r}, error={_said(error)}"
            ) from error
        if self._closing:
            await hosted.stop(STOP_S_MAX)
            raise ServiceLoadError(f"the bus is stopping, service={code.spec!r}")
        return hosted

    def _make(self, code: ServiceCode, number: int = 0) -> Hosted:
        if not number:
            self._last_number += 1
        return Hosted(self._surroundings, code, number or self._last_number)

    async def _replace(self, old: Hosted, code: ServiceCode, hand_over: bool) -> Change:
        if hand_over:
            change = await self._pass_on(old, code)
        else:
            change = Change(old, await self._start(code))
            self._add(change.new)
        change.new.replaced = old.code
        self._drain(old)
        return change

    async def _pass_on(self, old: Hosted, code: ServiceCode) -> Change:
        missing = sorted(set(old.service.calls()) - set(code.service_class.calls()))
        if missing:
            raise ServiceLoadError(
                "the new version lacks calls that members of the old one make; add them, or "
                f"upgrade without hand-over, service={old.name!r}, old={old.label!r}, "
                f"new={code.version!r}, missing={missing}"
            )
        try:
            new = self._make(code)
        except Exception as error:
            raise ServiceLoadError(
                f"service cannot be made, service={code.spec!r}, error={_said(error)}"
            ) from error
        new.before = old
        at_switch = old.said_of_itself()
        begun = time.monotonic()
        old.later = []
        self._table.choose_one_way_calls()
        try:
            await self._carry(old, new)
        except BaseException:
            self._go_on(old, old)
            raise
        old.passed_on = True
        self._add(new)
        self._table.redirect(old, new)
        return Change(old, new, True, at_switch, time.monotonic() - begun, self._go_on(old, new))

    async def _carry(self, old: Hosted, new: Hosted) -> None:
        try:
            handed = old.service.hand_over()
        except Exception as error:
            raise ServiceLoadError(
                f"the old version does not give its state away, service={old.name!r}, "
                f"version={old.label!r}, error={_said(error)}"
            ) from error
        try:
            await asyncio.wait_for(new.service.take_over(_carried(handed)), START_S_MAX)
        except BaseException as error:
            old.ask("resume", handed)
            if not isinstance(error, Exception):
                raise
            raise ServiceLoadError(
                f"the new version does not take the state over; the old one goes on, "
                f"service={new.code.spec!r}, error={_said(error)}"
            ) from error

    def _go_on(self, old: Hosted, now: Hosted) -> int:
        """Do what was kept while the state was on its way; return how many calls that were."""
        later, calls = old.later or [], old.calls_kept
        old.later, old.later_bytes, old.calls_kept = None, 0, 0
        for what in later:
            what(now)
        self._table.choose_one_way_calls()
        self._surroundings.schedule_turn()
        return calls

    def _add(self, hosted: Hosted, known: Known | None = None) -> None:
        key = (hosted.name, hosted.code.version)
        self._loads[key] += 1
        if known is not None:
            hosted.label = known.label
            _, _, load = known.label.partition("+")
            self._loads[key] = max(self._loads[key], int(load or 1))
        elif self._loads[key] > 1:
            hosted.label = f"{hosted.code.version}+{self._loads[key]}"
        service = hosted.service
        hosted.version = ServiceVersion(
            hosted.name,
            hosted.label,
            self._slot,
            self._table.add(hosted, known.calls if known is not None else {}),
            service.client,
            hosted.number,
            tuple(service.points),
        )
        self.loaded = (*self.loaded, hosted)
        hosted.start_running()
        if self._closing:
            hosted.ask("close_intakes")  # the others were told while it took its state over
        self._surroundings.schedule_turn()

    # --- the end of a version -------------------------------------------------------------------

    async def retire(self, hosted: Hosted) -> None:
        """Stop and forget a draining version that nobody is bound to, as soon as it may go.

        That is when what its users have sent is taken, every call is answered, and it says that it
        is not in use.
        """
        backlog = self._inbox.backlog()
        while not self._inbox.is_past(backlog) or hosted.answering or hosted.in_use:
            await asyncio.sleep(LOOK_S)
            if self._closing:
                return  # `stop` sees to it
        if hosted not in self.loaded:
            return
        self.loaded = tuple(other for other in self.loaded if other is not hosted)
        self._table.remove(hosted)
        await hosted.stop(STOP_S_MAX)
        for other in self.loaded:
            if other.before is hosted:
                other.before = None
        self._forget_unused()
        log.info("service %s version %s is unloaded", hosted.name, hosted.label)

    @contextlib.contextmanager
    def _new_code(self, code: ServiceCode) -> Iterator[ServiceCode]:
        if code not in self._codes:
            self._codes.append(code)
        self._code = code
        try:
            yield code
        finally:
            self._code = None
            self._forget_unused()

    def _forget_unused(self) -> None:
        used = [h.code for h in self.loaded] + [h.replaced for h in self.loaded] + [self._code]
        for code in [c for c in self._codes if c not in used]:
            self._codes.remove(code)
            code.forget()

    def close(self) -> None:
        """Load nothing any more: the bus is about to stop."""
        self._closing = True

    async def stop(self) -> None:
        """Stop every version, newest first; a change that is under way gets a second to end."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changing.acquire(), CHANGE_S_MAX)
        for hosted in reversed(self.loaded):
            await hosted.stop(STOP_S_MAX)


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return f"it took longer than {START_S_MAX:.0f} s"
    return repr(error)


def _carried(handed: HandOver) -> HandOver:
    """Return a state as the new version gets it: nothing of the old one's code is in it."""
    try:
        packed = msgpack.packb(handed.data)
        data = msgpack.unpackb(packed, strict_map_key=False)
    except Exception as error:
        for descriptor in handed.descriptors:
            os.close(descriptor)
        raise ServiceError(f"the state is no plain data: {error}") from error
    return HandOver(data, list(handed.descriptors))
