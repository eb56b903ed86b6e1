"""What may be asked over the control socket about workers as such: roll one, have more or fewer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aembus.errors import ControlError
from aembus.supervisor.control import Connection, Operation
from aembus.supervisor.departures import Departures
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import Member, Members
from aembus.supervisor.publication import Publication
from aembus.supervisor.rolling import Rolling
from aembus.supervisor.scaling import Scaling
from aembus.supervisor.standstill import Standstill
from aembus.supervisor.workers import Workers


class Fleet:
    """The workers of one supervisor, as its operator sees them.

    Args: the supervisor's parts, and
        forget_process: tells the services that an incarnation of a member is gone.
    """

    def __init__(
        self,
        members: Members,
        inboxes: Inboxes,
        publication: Publication,
        departures: Departures,
        workers: Workers,
        forget_process: Callable[[int, int], None],
    ) -> None:
        self._workers = workers
        self._standstill = Standstill(members, workers)
        self.rolling = Rolling(members, publication, workers, self._standstill, forget_process)
        self._scaling = Scaling(
            members, inboxes, publication, departures, workers, self._standstill
        )

    def table(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "workers": self.workers,
            "roll": self.roll,
            "scale": self.scale,
            "suspended": self.suspended,
        }

    async def workers(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Return the names of the workers, those of one kind behind one another."""
        return {
            "workers": [
                w.name for kind in self._workers.kinds() for w in self._workers.of_kind(kind)
            ]
        }

    async def roll(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Replace a worker's process by one of new code."""
        return await self.rolling.roll(request["name"], request["step_s"])

    async def scale(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Have another number of workers of a kind."""
        return await self._scaling.scale(
            request["kind"], request["count"], request["step_s"], lambda: not connection.hung_up
        )

    async def suspended(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        """Take note that a worker stands still, as it was told to."""
        if not isinstance(connection.member, Member):
            raise ControlError(f"join the bus first, pid={connection.pid}")
        self._standstill.on_suspended(connection.member, request["number"])
        return {}

    def on_death(self, member: Member) -> None:
        """A worker's process has died."""
        self._standstill.on_death(member)

    def close(self) -> None:
        """Change nothing any more: the bus is about to stop."""
        self._standstill.close()
        self.rolling.close()
        self._scaling.close()
