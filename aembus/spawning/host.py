"""The spawn host: ``python -m aembus.spawning.host``, a member that the supervisor starts.

It owns no events of its own.  What others have registered with ``spawn=True`` is in the registry
under its slot, so their jobs come into its inbox; for each it has a child forked.  Its supervisor
starts it for the first such event, replaces it when it dies, and tells it which events there are.
Killed, it takes its children with it; its replacement finds their jobs in hand.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Any, Final

from aembus.bus import Bus
from aembus.errors import AembusError, BusBroken
from aembus.event import Child, Event
from aembus.spawning.launcher import Launcher, Wanted
from aembus.spawning.succession import succeed
from aembus.supervised import EXIT_BROKEN, begin, end_after_grace

KIND: Final = "spawn"

log = logging.getLogger("aembus")


class SpawnHost:
    """The state of the process.

    Args:
        bus: joined.
        inherited: a descriptor that nurseries and children keep.
    """

    def __init__(self, bus: Bus, inherited: int) -> None:
        self._bus = bus
        self._membership = bus._membership
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._launcher = Launcher(
            bus.slot, bus.event_struct, self._membership.inbox, self, bus.member_name, inherited
        )

    async def run(self) -> None:
        """Have the events that there are, and serve until the supervisor says stop or dies."""
        control = self._membership.control
        self._membership.on_push = self._hear
        frames = (await asyncio.to_thread(control.request, "spawned_events"))["events"]
        try:
            await self._launcher.take_over(map(Wanted.from_frame, frames))
            await asyncio.to_thread(self._bus.publish_registrations)
            await self._bus.serve()
        finally:
            await self._launcher.close()

    def _hear(self, frame: dict[str, Any]) -> None:
        # In the watcher's thread.
        self._loop.call_soon_threadsafe(self._do, frame)

    def _do(self, frame: dict[str, Any]) -> None:
        push, control = frame["push"], self._membership.control
        if push == "adopt":
            self._begin(self._adopt(frame))
        elif push == "disown":
            self._begin(self._launcher.disown(frame["ids"]))
        elif push == "children":
            found = self._launcher.children()
            control.tell("spawn_host_says", number=frame["number"], says=found)

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _adopt(self, frame: dict[str, Any]) -> None:
        events = [Wanted.from_frame(event) for event in frame["events"]]
        errors = await self._launcher.adopt(events)
        self._membership.control.tell("spawn_host_says", number=frame["number"], says=errors)

    # --- control of its events: see event.Control -----------------------------------------------

    def close(self, event: Event) -> None:
        """Take an event off its wait queue: it was registered with once=True and had its job."""
        self._begin(self._close(event))

    async def _close(self, event: Event) -> None:
        try:
            await asyncio.to_thread(
                self._membership.control.request, "unregister_spawned", ids=[event.id]
            )
        except AembusError as error:
            log.error("event cannot be closed: %s, event=%r", error, event)

    def stop(self, event: Event) -> None:
        """Nobody asks for that here."""

    def start(self, event: Event) -> None:
        """Nobody asks for that here."""

    def children(self, event: Event) -> tuple[Child, ...]:
        """Nobody asks for that here."""
        return ()


async def run_host(configuration: dict[str, Any]) -> int:
    """Be the spawn host that `configuration` describes; return the process's exit code."""
    try:
        bus = Bus(configuration["bus"], kind=KIND, name=configuration["name"])
    except BusBroken:
        return EXIT_BROKEN
    bus.on_broken(end_after_grace)
    try:
        inherited = await succeed(bus._membership.inbox_path)
        await SpawnHost(bus, inherited).run()
    except BusBroken as error:
        log.error("the spawn host ends: %s", error)
        return EXIT_BROKEN
    finally:
        bus.close()
    return 0


def main() -> int:
    """Entry point of the process."""
    return asyncio.run(run_host(begin()))


if __name__ == "__main__":
    sys.exit(main())
