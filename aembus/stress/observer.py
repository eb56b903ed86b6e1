"""A running bus, seen from outside: who its workers are, and what their lanes' cursors say.

Everything is read from shared memory, from the registry and the inboxes; the observer is no member,
and its mappings keep the last state readable after the bus has gone.
"""

from __future__ import annotations

from typing import NamedTuple

from aembus.errors import BusNotFound
from aembus.routing import Routing
from aembus.shm import layout, names, registry
from aembus.shm.inbox import inbox_role
from aembus.shm.lane import LaneCounts
from aembus.shm.registry import RegistryReader
from aembus.shm.segment import Segment

KIND_WORKER = "worker"


class WorkerProcess(NamedTuple):
    """A worker and the process that is it now, as the registry shows it."""

    name: str
    pid: int
    running: bool


class Observer:
    """The workers of one bus and the lanes into their inboxes.

    Args:
        bus: the name of a bus that runs, its workers up.

    Raises: the OpenError family.
    """

    def __init__(self, bus: str) -> None:
        self._reader = RegistryReader.open(_registry_name(bus))
        self._inboxes: dict[str, Segment] = {}
        try:
            _, document = self._reader.read()
            for member in Routing(0, document).members.values():
                if member.kind == KIND_WORKER:
                    name = names.shared_name(bus, document["nonce"], inbox_role(member.inbox_id))
                    self._inboxes[member.name] = Segment.open(name, layout.INBOX_MAGIC)
        except BaseException:
            self.close()
            raise

    def workers(self) -> list[WorkerProcess]:
        """Return the workers, by the registry that is published now.  Raises BusBroken."""
        _, document = self._reader.read()
        return [
            WorkerProcess(m.name, m.pid, m.state == "running")
            for m in Routing(0, document).members.values()
            if m.kind == KIND_WORKER
        ]

    @property
    def worker_names(self) -> list[str]:
        """The workers' names; they do not change."""
        return list(self._inboxes)

    def lanes(self, worker: str) -> dict[int, LaneCounts]:
        """Return what the open lanes into a worker's inbox say, by their producer's slot."""
        segment = self._inboxes[worker]
        slots = segment.slots
        doors = bytes(segment.memory[layout.DOORS : layout.DOORS + slots])
        found = {}
        slot = doors.find(layout.DOOR_OPEN)
        while slot >= 0:
            lane = layout.lane_index(slots, layout.CLASS_NORMAL, slot)
            found[slot] = LaneCounts(segment.words, layout.lane_control_offset(slots, lane))
            slot = doors.find(layout.DOOR_OPEN, slot + 1)
        return found

    def finished(self, worker: str) -> int:
        """Return how many jobs a worker has finished."""
        return sum(counts.finished for counts in self.lanes(worker).values())

    def all_finished(self) -> int:
        """Return how many jobs all workers have finished."""
        return sum(self.finished(worker) for worker in self._inboxes)

    def queued(self) -> int:
        """Return how many jobs wait in the workers' inboxes."""
        return sum(c.queued for worker in self._inboxes for c in self.lanes(worker).values())

    def close(self) -> None:
        """Let go of all mappings."""
        for segment in self._inboxes.values():
            segment.close()
        self._inboxes.clear()
        self._reader.close()


def _registry_name(bus: str) -> str:
    for path in names.leftovers(bus):
        if path.name.endswith(f".{registry.ROLE}"):
            return f"/{path.name}"
    raise BusNotFound(f"no registry of this bus lies in {names.DIRECTORY}, bus={bus!r}")
