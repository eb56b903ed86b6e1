"""What the pure SIP code asks others to do, and the names that it counts by.

What it is: plain tuples. Who uses it: sip_transaction makes them, responder.py (or a test)
carries them out, in their order.
"""

from __future__ import annotations

from typing import NamedTuple


class Send(NamedTuple):
    """Send these bytes, one or more whole responses, down the connection."""

    connection: int
    data: bytes


class StartTimer(NamedTuple):
    """Let a call ring: after delay_s, give the other fields to `answer`, in any worker.

    call_id is the key that brings it to the worker that the call's messages go to.
    """

    timer: bytes
    delay_s: float
    call_id: bytes
    connection: int
    response: bytes


class CancelTimer(NamedTuple):
    """Stop a timer of StartTimer, if it still runs."""

    timer: bytes


class Wake(NamedTuple):
    """Call `tick` after delay_s, in this process; replaces the wake-up asked for before."""

    delay_s: float


class Close(NamedTuple):
    """Close the connection once what was sent before is out."""

    connection: int


class Count(NamedTuple):
    """Add one to the counter of this name, one of COUNTERS."""

    name: str


Action = Send | StartTimer | CancelTimer | Wake | Close | Count

COUNTERS = {
    "calls": "INVITEs answered with 200",
    "calls_cancelled": "calls that ended before they were answered",
    "calls_ended": "by BYE",
    "calls_taken_over": "answered by another worker than the one that let them ring",
    "calls_unacknowledged": "no ACK within 32 s",
    "acks_unmatched": "ACKs for nothing that could be acknowledged",
    "bad_messages": "not SIP as it is accepted here",
    "registrations": "REGISTERs answered with 200",
    "requests_refused": "valid requests answered with a refusal",
    "requests_repeated": "requests that came again and got the same response",
    "responses_dropped": "no request ever goes out, so no response matches one",
    "responses_repeated": "200s to INVITE sent again for want of an ACK",
}
