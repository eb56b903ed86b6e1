"""What may be asked about dead letters over the control socket: replay and drop, by id.

Who asks reads the file himself (`letter_file`), and chooses.  A letter goes back to where its job
came from: to its group, by its key, or without a group to its event.  It is removed once it is in
the lane; a supervisor that is killed in between has it still, and the job's lane has gone with it.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Final

from aembus.errors import AembusError, ControlError
from aembus.hosting.hosting import Hosting
from aembus.routing import STATE_DEGRADED, Target
from aembus.sender import Job, Sender
from aembus.supervisor.control import Connection, Operation
from aembus.supervisor.dead_letters import NO_ROOM, DeadLetters
from aembus.supervisor.letter_file import Letter
from aembus.supervisor.members import Members

ROOM_S_MAX: Final = 2.0  # for one request; who asks may ask again
ROOM_CHECK_S: Final = 0.01


class Replay:
    """Sends dead letters back.

    Args: the supervisor's parts.
    """

    def __init__(
        self, dead_letters: DeadLetters, members: Members, sender: Sender, hosting: Hosting
    ) -> None:
        self._dead_letters = dead_letters
        self._members = members
        self._sender = sender
        self._hosting = hosting
        self._under_way: set[str] = set()
        self._sent: set[str] = set()  # and their letters could not be removed yet
        self._turn = 0

    def table(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"dead_file": self.file, "dead_replay": self.replay, "dead_drop": self.drop}

    async def file(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Say where the letters are."""
        return {"path": os.fsencode(self._dead_letters.path)}  # it may be no UTF-8

    async def drop(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Remove letters."""
        try:
            dropped = self._dead_letters.remove(request["ids"])
        except OSError as error:
            raise ControlError(f"dead letters cannot be removed: {error}") from error
        self._sent.difference_update(dropped)
        return {"dropped": dropped}

    async def replay(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Send letters back; say which were, and of the others why not."""
        replayed: list[str] = []
        refused: dict[str, str] = {}
        until = time.monotonic() + ROOM_S_MAX
        for name in request["ids"]:
            if name in self._under_way:
                refused[name] = "somebody else replays it"
                continue
            self._under_way.add(name)
            try:
                reason = await self._replay_one(name, until)
            except (AembusError, OSError) as error:
                reason = f"{type(error).__name__}: {error}"
            finally:
                self._under_way.discard(name)
            if reason:
                refused[name] = reason
            else:
                replayed.append(name)
        return {"replayed": replayed, "refused": refused}

    async def _replay_one(self, name: str, until: float) -> str:
        if name in self._sent:
            return self._remove(name)
        letter = self._dead_letters.get(name)
        if letter is None:
            return "there is no such letter"
        self._turn += 1
        while True:
            target = self._destination(letter)
            if isinstance(target, str):
                return target
            sent = self._hosting.send_now(target, Job(letter["payload"], letter["key_hash"]))
            if sent == 1:
                self._sent.add(name)
                return self._remove(name)
            if time.monotonic() >= until:
                return NO_ROOM
            await asyncio.sleep(ROOM_CHECK_S)  # for room, or until the registry is without it

    def _remove(self, name: str) -> str:
        try:
            self._dead_letters.remove([name])
        except OSError as error:  # a full disk: to be asked for again, and sent only once
            return f"it is sent, and its letter cannot be removed: {error}"
        self._sent.discard(name)
        return ""

    def _destination(self, letter: Letter) -> Target | str:
        point, event, group = letter["point"], letter["event"], letter["group"]
        if point is None:
            return "where it belongs is not known"
        routing = self._sender.refresh()
        targets = list(routing.group(point, group))
        if group is None:
            targets = [t for t in targets if self._is_of(t, event)]
            own = [t for t in targets if routing.members[t.slot].name == letter["member"]]
            targets = own or targets
        if not targets:
            whose = f"event={event!r}" if group is None else f"group={group!r}"
            return f"nobody is registered for it now, point={point!r}, {whose}"
        able = [t for t in targets if routing.members[t.slot].state != STATE_DEGRADED]
        targets = able or targets
        return targets[(letter["key_hash"] or self._turn) % len(targets)]

    def _is_of(self, target: Target, event: str | None) -> bool:
        registration = self._members.registration(target.event_id)
        return registration is not None and registration.name == event
