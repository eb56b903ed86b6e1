"""What is told to whoever's job could not be sent: the values, and the way out.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aembus.errors import InboxFull, JobTooLarge
from aembus.options import DROP, FAIL
from aembus.routing import Target


def no_room(what: str, timeout_s: float, targets: Sequence[Target]) -> InboxFull:
    """Return what to raise when the time-out is over, or nobody is to be waited for.

    Args:
        what: a point's name, or what else was to be sent.
        timeout_s: how long there was to wait.
        targets: who was concerned.
    """
    slots = [target.slot for target in targets if target.full != DROP]
    failing = [target.slot for target in targets if target.full == FAIL]
    found = f"for={what!r}, timeout_s={timeout_s}, slots={slots}"
    if failing:
        return InboxFull(
            "no room, nothing was sent; nobody is to wait for an event that is registered "
            f"with full='fail', {found}, failing slots={failing}"
        )
    return InboxFull(
        "no room within the time-out, nothing was sent; wait longer (timeout=), "
        f"add workers, or give the supervisor larger lanes (lane_bytes), {found}"
    )


def too_large(size_bytes: int, size_bytes_max: int) -> JobTooLarge:
    """Return what to raise for a payload that is longer than a lane takes."""
    return JobTooLarge(
        "a job may take half a lane; send less, or give the supervisor larger lanes "
        f"(lane_bytes), size={size_bytes}, max={size_bytes_max}"
    )
