"""Which jobs a death counts against.

A job in hand at 3 deaths of its member is put aside.  Most deaths are the fault of the handler that
was at work, and not of the jobs that were held meanwhile: so a held job is spared such a death.
But what completes a held job may kill, too, while some handler is at work; therefore it is spared
a few times only, and every death after that counts.  If no handler was at work, the death counts
against all that was held.

Called by the supervisor at each death, before anybody has the member's inbox again.
"""

from __future__ import annotations

from typing import Final

from aembus.supervisor.inboxes import Inboxes
from aembus.supervisor.members import Member

SPARED_MAX: Final = 9  # what three other jobs may cost before they are put aside


def blame(member: Member, inboxes: Inboxes) -> None:
    """Spare the held jobs of a member whose process has died in the handler of another job.

    Once for each death, however often it is called.
    """
    in_hand = inboxes.in_hand(member.inbox_id, held=True)
    # What was in hand at the death before, and was not begun again since, is not of this life.
    begun = [job for job in in_hand if job not in member.in_hand_at_death]
    member.in_hand_at_death = frozenset(in_hand)
    if any(not job.held for job in begun):
        for job in begun:
            if job.held:
                inboxes.spare(member.inbox_id, job, SPARED_MAX)
