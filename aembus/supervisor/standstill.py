"""Having a worker stand still: between two jobs, with none held, nothing taken and nothing sent.

What it takes on the worker's side is `aembus.suspension`.  While a worker stands still its place
may be given to another process (`rolling`), or taken off the bus (`scaling`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator

from aembus.errors import ControlError
from aembus.routing import STATE_RUNNING
from aembus.supervisor.members import KIND_WORKER, Member, Members
from aembus.supervisor.workers import Worker, Workers


class Standstill:
    """Suspends the workers of one supervisor.

    Args:
        members, workers: the supervisor's parts.
    """

    def __init__(self, members: Members, workers: Workers) -> None:
        self._members = members
        self._workers = workers
        self._numbers = itertools.count(1)
        # By worker; the number tells its answer from a late one, to who has given up.
        self._awaited: dict[str, tuple[int, asyncio.Future[None]]] = {}
        self._changing: dict[str, str] = {}

    @contextlib.contextmanager
    def changing(self, name: str, what: str) -> Iterator[None]:
        """Keep everybody else from rolling a worker, or taking it away.

        Args:
            what: is done to it: "rolled", "taken away".

        Raises: ControlError if something is already.
        """
        if name in self._changing:
            raise ControlError(f"it is being {self._changing[name]} already, worker={name!r}")
        self._changing[name] = what
        try:
            yield
        finally:
            del self._changing[name]

    def find(self, name: str) -> tuple[Worker, Member]:
        """Return a worker that is up, and its member.  Raises ControlError."""
        known = {worker.name: worker for worker in self._workers}
        worker = known.get(name)
        if worker is None:
            raise ControlError(f"no such worker, worker={name!r}, workers={sorted(known)}")
        member = self._members.named(name)
        state = member.state if member is not None else None
        if (
            member is None
            or member.kind != KIND_WORKER
            or member.connection is None
            or state != STATE_RUNNING
        ):
            raise ControlError(f"the worker is not up, worker={name!r}, state={state!r}")
        return worker, member

    async def suspend(self, member: Member, timeout_s: float) -> None:
        """Return when the member stands still.

        Raises: ControlError when its process has died, or is busy for longer than `timeout_s`;
        then it goes on.
        """
        connection, incarnation = member.connection, member.incarnation
        awaited = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        self._awaited[member.name] = number, awaited
        connection.push({"push": "suspend", "number": number})
        try:
            await asyncio.wait_for(awaited, timeout_s)
        except TimeoutError:
            connection.push({"push": "resume"})
            raise ControlError(
                "the worker is in a handler, or holds jobs, for longer; wait longer (--timeout), "
                f"worker={member.name!r}, pid={member.pid}, timeout_s={timeout_s:g}"
            ) from None
        except BaseException:
            connection.push({"push": "resume"})
            raise
        finally:
            del self._awaited[member.name]
        if member.incarnation != incarnation or member.connection is not connection:
            raise ControlError(f"its process died meanwhile, worker={member.name!r}")

    def on_suspended(self, member: Member, number: int) -> None:
        """A worker stands still, as it was told to under this number."""
        asked, awaited = self._awaited.get(member.name, (0, None))
        if awaited is not None and asked == number and not awaited.done():
            awaited.set_result(None)

    def on_death(self, member: Member) -> None:
        """A worker's process has died: it will not say that it stands still."""
        _, awaited = self._awaited.get(member.name, (0, None))
        if awaited is not None and not awaited.done():
            awaited.set_exception(
                ControlError(f"its process died meanwhile, worker={member.name!r}")
            )

    def close(self) -> None:
        """Wait for nobody any more: the bus is about to stop."""
        for name, (_, awaited) in self._awaited.items():
            if not awaited.done():
                awaited.set_exception(ControlError(f"the bus stops, worker={name!r}"))
