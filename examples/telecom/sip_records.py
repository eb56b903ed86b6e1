"""What is remembered of a transaction and of a dialog, and the table an INVITE moves by.

What it is: plain records and one pure function. Who uses it: sip_transaction.

Guarantees: an INVITE's state changes by `Transaction.move` alone, and only as TRANSITIONS says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .sip_message import Request
from .sip_syntax import SipSyntaxError

T1_S = 0.5
T2_S = 4.0
LIFE_S = 64 * T1_S  # how long a transaction is remembered after its final response
COOKIE = b"z9hg4bk"  # in lower case: what a branch begins with that is unique


class State(Enum):
    """Of an INVITE transaction; one that is over is forgotten."""

    PROCEEDING = "it rings"
    ACCEPTED = "a 2xx is out and repeated"
    COMPLETED = "a final refusal is out"
    CONFIRMED = "it was acknowledged"
    LOST = "it is forgotten, though the end of its ring or its ACK has not come"


# What may happen to an INVITE in each state, and what becomes of it; all else is ignored.
TRANSITIONS: dict[State, dict[str, State]] = {
    State.PROCEEDING: {"2xx": State.ACCEPTED, "refusal": State.COMPLETED, "late": State.LOST},
    State.ACCEPTED: {"ack": State.CONFIRMED, "bye": State.CONFIRMED, "late": State.LOST},
    State.COMPLETED: {"ack": State.CONFIRMED},
    State.CONFIRMED: {"ack": State.CONFIRMED},
    State.LOST: {},
}


@dataclass(slots=True, eq=False)
class Transaction:
    """A server transaction; what stands behind `response` is an INVITE's."""

    key: bytes
    forget_at: float
    connection: int
    response: bytes  # the last one, given again when the request comes again
    cseq: int = 0
    state: State = State.PROCEEDING
    request: Request | None = None  # while it rings in this process: a 487 is made from it
    repeat_s: float = T1_S

    def move(self, happening: str) -> bool:
        """Go where the table says; False where it says nothing."""
        state = TRANSITIONS[self.state].get(happening)
        if state is None:
            return False
        self.state = state
        return True


@dataclass(slots=True, eq=False)
class Dialog:
    """What this process saw of a dialog; it accepts others too, see the module's text."""

    key: bytes  # its To-tag
    forget_at: float
    cseq: int
    invite: Transaction | None = None
    ended: bool = False


def transaction_key(request: Request, method: bytes) -> bytes:
    """What makes two requests the same transaction (RFC 3261 section 17.2.3).

    Args: method: the request's own, or INVITE for an ACK and to find what a CANCEL is about.
    Raises SipSyntaxError: for a branch that is the cookie and nothing else.
    """
    via = request.vias[0]
    branch = via.branch or b""
    if branch[: len(COOKIE)].lower() != COOKIE:  # as RFC 2543 had it
        top = request.get_list(b"Via")[0]
        number = b"%d" % request.cseq.number
        from_tag = request.from_.tag or b""
        return b"\0".join((method, request.uri, from_tag, request.call_id, number, top))
    if len(branch) == len(COOKIE):
        raise SipSyntaxError("Bad Branch", branch)
    return b"\0".join((branch, via.sent_by, method))
