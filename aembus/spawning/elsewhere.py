"""What the spawn host tells its event_struct about jobs whose handlers run in children.

A part of the event_struct, in a file of its own since one member of a bus alone has it.  A job
with a child is HELD: in hand, with no handler at work here.  A child's death leaves it with one
attempt more than failures, as a worker's death does, so the same word counts both.

Everything here is called by the thread that delivers, between two deliveries.
"""

from __future__ import annotations

import functools
import time
from typing import Final

from aembus.answers import Failure
from aembus.event import Event
from aembus.events import HANDLER_RAISED, EventStruct, is_too_old
from aembus.shm import layout
from aembus.shm.lanes import Record

BEGIN_AGAIN_S: Final = 0.5


class Elsewhere:
    """The jobs of one event_struct whose handlers run elsewhere.

    Args:
        event_struct: of the spawn host.
    """

    def __init__(self, event_struct: EventStruct) -> None:
        self._event_struct = event_struct

    def begin(self, record: Record) -> None:
        """Have a job in hand whose handler a child is about to run."""
        record.lane.start(record)
        record.lane.hold(record)
        self._count(1)

    def returned(self, record: Record, event: Event, answer: bytes | Failure) -> None:
        """Finish a job whose handler has returned; `answer` is encoded, for who has called."""
        if record.kind == layout.KIND_CALL:
            # Answered first: a kill in between makes a dead letter, and nobody wait in vain.
            if not self._event_struct._answers.encoded(record.header, answer, event.name):
                return
        record.lane.done(record)
        self._event_struct._count_delivered(event)
        self._count(-1)

    def refused(self, record: Record, event: Event, failure: Failure) -> None:
        """Finish a job that was refused."""
        self._event_struct._refuse(record, event, failure)
        self._count(-1)

    def failed(
        self, record: Record, event: Event, failure: Failure, reason: str = HANDLER_RAISED
    ) -> None:
        """Take up a job whose handler has failed: it is tried again as any other."""
        self._event_struct._fail(record, event, reason, failure)
        self._count(-1)

    def died(self, record: Record, event: Event, failure: Failure) -> None:
        """Take up a job whose child was killed: by the same rules as at a worker's death."""
        self._count(-1)
        death = f"its child {failure.text}"
        if not self._event_struct._given_up_at_death(record, event, death, failure):
            self._event_struct._run(record, event)
        self._give_room()

    def expire_too_old(self, record: Record, event: Event) -> bool:
        """Say whether a job that has waited is too old by now; it is a dead letter then."""
        if not is_too_old(record, time.monotonic()):
            return False
        self._event_struct._expire(record, event)
        self._give_room()
        return True

    def not_begun(self, record: Record, event: Event) -> None:
        """Try a job again, a little later, for which no child could be forked."""
        record.lane.fail(record)  # as a failure, for it was no death; but its retries are left
        again = functools.partial(self._event_struct._run_again, record, event)
        self._event_struct._postponed.add(time.monotonic() + BEGIN_AGAIN_S, again)
        self._count(-1)

    def give_back(self, record: Record) -> None:
        """Pass a job on that waited for a child, and whose event was closed meanwhile."""
        fresh = not record.attempts
        self._event_struct._give_back(record, "its event was closed", try_group=fresh)
        self._give_room()

    def _count(self, more: int) -> None:
        self._event_struct._elsewhere += more
        self._event_struct._show_unfinished()
        if more < 0:
            self._give_room()

    def _give_room(self) -> None:
        inbox = self._event_struct._inbox
        for slot in inbox.producers_wanting_room():
            self._event_struct._give_room(slot)
