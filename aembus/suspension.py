"""Suspension: a worker stands still while a process of new code takes its place.

The supervisor asks for it (`aembus.supervisor.rolling`).  A thread of its own ends deliveries after
the job in hand, waits until no job is held, keeps activations out, says so, and waits for the
supervisor's word: the worker goes on, or it has been replaced.

Guarantees: from "suspended" on until that word this process takes no job, publishes none, and has
none in hand; nothing that it remembers of lanes which its successor may have used is used again.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from aembus.errors import BusClosed
from aembus.membership import Membership
from aembus.runner import Runner

log = logging.getLogger("aembus")

LOOK_S: Final = 0.005  # between two looks whether the last held job is completed


class Suspension:
    """One suspension of one member; begins at once, in a thread of its own.

    Args:
        runner, membership: the member's.
        number: of the supervisor's, for its answer.
    """

    def __init__(self, runner: Runner, membership: Membership, number: int) -> None:
        self._runner = runner
        self._membership = membership
        self._number = number
        self._over = threading.Event()
        threading.Thread(target=self._run, name="aembus-suspension", daemon=True).start()

    def _run(self) -> None:
        membership = self._membership
        with self._runner.suspended():
            self._settle_held()
            if self._over.is_set():
                return
            with membership.sender.held_back():
                membership.control.tell("suspended", number=self._number)
                self._over.wait()
                if not membership.replaced:
                    membership.inbox.open_replies_anew()  # the successor may have taken some

    def _settle_held(self) -> None:
        while not self._over.is_set() and self._membership.event_struct.settle_held():
            self._over.wait(LOOK_S)

    def resume(self) -> None:
        """Go on as before.  Idempotent, from any thread."""
        self._over.set()

    def retire(self) -> None:
        """End: another process is this member now.  What still wants the bus gets BusClosed."""
        self._membership.replaced = True
        self._membership.sender.refuse(BusClosed("a new process has taken this worker's place"))
        self._runner.stop()
        self._over.set()
