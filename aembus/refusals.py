"""What is told to whoever's job could not be sent: the values, and the way out.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from aembus.errors import InboxFull, JobTooLarge
from aembus.options import DROP, FAIL
from aembus.routing import Member, Target


def no_room(
    what: str, timeout_s: float, targets: Sequence[Target], members: Mapping[int, Member]
) -> InboxFull:
    """Return what to raise when the time-out is over, or nobody is to be waited for.

    Args:
        what: a point's name, or what else was to be sent.
        timeout_s: how long there was to wait.
        targets: who was concerned.
        members: who has which slot.
    """

    def names(wanted: Iterable[Target]) -> list[str]:
        slots = dict.fromkeys(target.slot for target in wanted)  # a member may have many events
        return [members[s].name if s in members else f"slot {s}" for s in slots]

    waited_for = names(target for target in targets if target.full != DROP)
    failing = names(target for target in targets if target.full == FAIL)
    found = f"for={what!r}, timeout_s={timeout_s}, members={waited_for}"
    if failing:
        return InboxFull(
            "no room, nothing was sent; nobody is to wait for an event that is registered "
            f"with full='fail', {found}, failing={failing}"
        )
    return InboxFull(
        "no room within the time-out, nothing was sent; see that these members run, wait longer "
        f"(timeout=), add workers, or give the supervisor larger lanes (lane_bytes), {found}"
    )


def no_timeout(timeout: object) -> TypeError:
    """Return what to raise for a time-out that is none."""
    return TypeError(
        f"a time-out is a number of seconds, or math.inf: for ever, timeout={timeout!r}"
    )


def deadline_after(now_s: float, timeout_s: float) -> float:
    """Return until when there is to wait.  Raises TypeError for a time-out that is none."""
    try:
        return now_s + timeout_s
    except TypeError:
        raise no_timeout(timeout_s) from None


def too_large(size_bytes: int, size_bytes_max: int) -> JobTooLarge:
    """Return what to raise for a payload that is longer than a lane takes."""
    return JobTooLarge(
        "a job may take half a lane; send less, or give the supervisor larger lanes "
        f"(lane_bytes), size={size_bytes}, max={size_bytes_max}"
    )
