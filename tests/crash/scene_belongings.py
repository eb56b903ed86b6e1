"""What a scene's bus has: names, descriptors and children, which must not become more.

The first count is the baseline.  Each member may yet map the inbox of each, when it first sends
there, and names grow with the members.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from tests.crash.scene_view import SHARED, children, descriptors, names_by_kind, spares

LEAKS_S: Final = 10.0  # for what is just ending to end, on a machine with other things to do
TICK_S: Final = 0.003
SUPERVISOR: Final = "supervisor"
A_SPARE_HAS: Final = (  # in the supervisor: its pidfd, and the end of a pipe
    "children of the supervisor", "workers",
    f"{SUPERVISOR}: anon_inode", f"{SUPERVISOR}: pipe",
)  # fmt: skip


class Belongings:
    """What one life of a bus has.

    Args:
        bus: the bus's name.
        processes: return the PIDs of the supervisor (under SUPERVISOR) and of the workers, by name.
        workers: return how many processes of workers there are, whoever is their parent.
        members: return how many members are on the bus, the supervisor included.
        pipes: how many of them have a doorbell with a descriptor.
    """

    def __init__(
        self,
        bus: str,
        processes: Callable[[], Mapping[str, int]],
        workers: Callable[[], int],
        members: Callable[[], int],
        pipes: int,
    ) -> None:
        self._bus = bus
        self._processes = processes
        self._workers = workers
        self._members = members
        self._pipes = pipes
        self._baseline: dict[str, int] = {}

    def forget(self) -> None:
        """Take the next count for the baseline: another life begins."""
        self._baseline = {}

    def too_many(self) -> dict[str, tuple[int, int]]:
        """Return (how many there may be, how many there are) of what there are too many."""
        if not self._baseline:
            # Each may yet map the inbox of each, when it first sends there.
            members = self._members()
            now = self._count()
            self._baseline = {k: v + members if k.endswith(SHARED) else v for k, v in now.items()}
        deadline = time.monotonic() + LEAKS_S
        while more := self._more_than_baseline():
            if time.monotonic() > deadline:
                return more
            time.sleep(TICK_S)
        return {}

    def _more_than_baseline(self) -> dict[str, tuple[int, int]]:
        now = self._count()
        members = self._members()
        allowed = self._baseline | {
            "spares": 1,
            "names: registry": 1, "names: lock": 1, "names: control": 1,
            "names: pipe": self._pipes,
            "names: inbox": members, "names: bell": members - 1,
        }  # fmt: skip
        return {
            what: (allowed.get(what, 0), number)
            for what, number in now.items()
            if number > allowed.get(what, 0)
        }

    def _count(self) -> dict[str, int]:
        processes = self._processes()
        supervisor = processes[SUPERVISOR]
        while True:
            waiting = spares(supervisor)
            counted = self._count_all(processes)
            if spares(supervisor) == waiting:
                break
        counted["spares"] = len(waiting)
        for what in A_SPARE_HAS:
            counted[what] -= len(waiting)
        return counted

    def _count_all(self, processes: Mapping[str, int]) -> dict[str, int]:
        counted = Counter(
            {
                "children of the supervisor": len(children(processes[SUPERVISOR])),
                "workers": self._workers(),
            }
        )
        for kind, number in names_by_kind(self._bus).items():
            counted[f"names: {kind}"] = number
        for name, pid in processes.items():
            for kind, number in descriptors(pid).items():
                counted[f"{name}: {kind}"] = number
        return counted
