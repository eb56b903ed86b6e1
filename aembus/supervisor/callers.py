"""Callers whose callee died or went: the supervisor answers in its place.

A call that was in hand has failed, unless its caller wants it delivered again.  One that nobody
has begun, and that nobody will take up soon, goes back to its caller, who calls somebody else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from aembus.answers import Answers, Failure
from aembus.calls import MEMBER_GONE
from aembus.sender import Sender
from aembus.shm import layout
from aembus.shm.lanes import Record
from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import Member

log = logging.getLogger("aembus")

IN_HAND: Final = "its member died or went with the call in hand"

# Makes a dead letter of a job in a lane of a member; raises OSError if it cannot be kept.
_Keep = Callable[[Member, int, Record, str], None]


class Callers:
    """Answers calls in inboxes that nobody reads.

    Args:
        inboxes: the bus's.
        sender: the supervisor's.
        keep: makes a dead letter.
    """

    def __init__(self, inboxes: Inboxes, sender: Sender, keep: _Keep) -> None:
        self._inboxes = inboxes
        self._answers = Answers(sender, waits=False)
        self._keep = keep

    def on_death(self, member: Member, *, queued: bool) -> None:
        """See to the calls in the inbox of a member without a process.

        Args:
            member: whose process is gone; no other one has taken its place yet.
            queued: also to those that wait there: nobody will take them up soon.
        """

        def choose(lane_class: int, record: Record) -> int:
            if record.kind != layout.KIND_CALL:
                return 0
            if queued and not record.attempts:
                self.send_back(record)
                return layout.STATE_FORWARDED
            in_hand = record.header[4] & layout.STATE_MASK in layout.STATES_IN_HAND
            if in_hand and not record.flags & layout.FLAG_REDELIVER:
                return self._fail(member, lane_class, record)
            return 0

        self._inboxes.withdraw(member.inbox_id, None, choose, queued=queued)

    def _fail(self, member: Member, lane_class: int, record: Record) -> int:
        try:
            self._keep(member, lane_class, record, IN_HAND)
        except OSError as error:
            log.error("dead letter cannot be kept, member=%s: %s", member.name, error)
        self.fail(member, record, IN_HAND)
        return layout.STATE_DEAD

    def fail(self, member: Member, record: Record, reason: str) -> None:
        """Tell the caller, if `record` is a call, that it is a dead letter now."""
        if record.kind == layout.KIND_CALL:
            text = f"{reason}, member={member.name!r}, pid={member.pid}"
            self._answers.failed(record.header, Failure(MEMBER_GONE, text))

    def send_back(self, record: Record) -> None:
        """Tell the caller that nobody has begun its call."""
        self._answers.returned(record.header)
