"""A scene seen from outside, through shared memory alone: who is on the bus, and its lanes.

The view is no member.  Its mappings outlive the bus.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Final

from aembus.errors import BusBroken, OpenError
from aembus.routing import Member, Routing
from aembus.shm import layout, names, registry
from aembus.shm.inbox import inbox_role
from aembus.shm.lane import LaneCounts
from aembus.shm.registry import RegistryReader
from aembus.shm.segment import Segment

SHARED: Final = "descriptors of shared names"


class View:
    """One life of a bus.  Raises: the OpenError family if none has begun."""

    def __init__(self, bus: str) -> None:
        self._bus = bus
        found = [p.name for p in names.leftovers(bus) if p.name.endswith(f".{registry.ROLE}")]
        assert len(found) == 1, f"want one registry, found={found}"
        self._nonce = found[0].split(".")[2]
        self._reader = RegistryReader.open(f"/{found[0]}")
        self._inboxes: dict[int, Segment] = {}
        self._generation = -1
        self._members: dict[int, Member] = {}

    def members(self) -> list[Member]:
        """Return who is on the bus now, or was when it broke."""
        if self._reader.generation != self._generation:
            with contextlib.suppress(BusBroken):
                generation, document = self._reader.read()
                self._members = Routing(generation, document).members
                self._generation = generation
        return list(self._members.values())

    def workers(self) -> dict[str, Member]:
        """Return the workers by name."""
        return {m.name: m for m in self.members() if m.kind == "worker"}

    def _inbox(self, inbox_id: int) -> Segment:
        segment = self._inboxes.get(inbox_id)
        if segment is None:
            name = names.shared_name(self._bus, self._nonce, inbox_role(inbox_id))
            segment = self._inboxes[inbox_id] = Segment.open(name, layout.INBOX_MAGIC)
        return segment

    def lanes(self, inbox_id: int) -> dict[int, LaneCounts]:
        """Return what the open normal lanes of an inbox say, by the slot they come from."""
        return self._lanes(self._inbox(inbox_id), layout.CLASS_NORMAL)

    @staticmethod
    def _lanes(segment: Segment, lane_class: int) -> dict[int, LaneCounts]:
        slots = segment.slots
        found = {}
        for slot in range(slots):
            lane = layout.lane_index(slots, lane_class, slot)
            if segment.memory[layout.DOORS + lane] == layout.DOOR_OPEN:
                control = layout.lane_control_offset(slots, lane)
                found[slot] = LaneCounts(segment.words, control)
        return found

    def finished(self, inbox_id: int) -> int:
        """Return how many jobs of an inbox are finished."""
        return sum(counts.finished for counts in self.lanes(inbox_id).values())

    def queued(self, inbox_id: int) -> int:
        """Return how many jobs wait in an inbox, or are in hand."""
        return sum(counts.queued for counts in self.lanes(inbox_id).values())

    def word(self, inbox_id: int, offset: int) -> int:
        """Return one of the words at the head of an inbox."""
        return int(self._inbox(inbox_id).words[offset // layout.WORD])

    def queued_anywhere(self) -> int:
        """Return how many jobs wait in the inboxes that lie in /dev/shm, of members or not."""
        total = 0
        for path in names.leftovers(self._bus):
            role = path.name.rpartition(".")[2]
            if role.startswith("inbox"):
                with contextlib.suppress(OpenError):
                    total += self.queued(int(role.removeprefix("inbox")))
        return total

    def segment(self, inbox_id: int) -> Segment:
        """Return the mapping of an inbox (to do harm to)."""
        return self._inbox(inbox_id)

    @property
    def registry_segment(self) -> Segment:
        """The mapping of the registry (to do harm to)."""
        return self._reader._segment

    def forget_gone(self) -> None:
        """Let go of the inboxes of those who have left."""
        here = {member.inbox_id for member in self.members()}
        for inbox_id in [i for i in self._inboxes if i not in here]:
            self._inboxes.pop(inbox_id).close()

    def close(self) -> None:
        """Let go of all mappings."""
        for segment in self._inboxes.values():
            segment.close()
        self._reader.close()


def names_by_kind(bus: str) -> dict[str, int]:
    """Return how many names of each kind a bus has in /dev/shm."""
    counted: dict[str, int] = {}
    for path in [*names.leftovers(bus), names.lock_path(bus), names.control_path(bus)]:
        if path.exists():
            role = path.name.rpartition(".")[2].rstrip("0123456789")
            counted[role] = counted.get(role, 0) + 1
    return counted


def descriptors(pid: int) -> dict[str, int]:
    """Return how many descriptors of each kind a process has open; none if it is gone."""
    return dict(Counter(SHARED if t.startswith("/dev/shm") else _kind(t) for t in _targets(pid)))


def _targets(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(entry))
    return found


def _kind(target: str) -> str:
    return target.partition(":[")[0]


def children(pid: int) -> set[int]:
    """Return the PIDs of a process's children."""
    try:
        return {int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


def spares(pid: int) -> set[int]:
    """Return the children that wait for their configuration: a supervisor's spare process.

    Their standard input is a pipe whose other end the process has.
    """
    mine = {target for target in _targets(pid) if target.startswith("pipe:")}
    found = set()
    for child in children(pid):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{child}/fd/0") in mine:
                found.add(child)
    return found


def process_state(pid: int) -> str:
    """Return a process's state as the kernel tells it ("Z" is a zombie), "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
