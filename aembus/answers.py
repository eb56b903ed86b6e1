"""The answers to calls: what the callee, or the supervisor in its place, sends back.

An answer goes by the reply lane to the process that called.  If that is gone nobody waits, and
nothing is sent; if it does not wait any more, it drops the answer and counts it.  What sends one
returns False if this process can send nothing any more: then the call is to stay in hand, so that
whoever takes its inbox over answers as after a death.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from aembus.codec import encode
from aembus.errors import AembusError, JobTooLarge, text_of
from aembus.routing import Target
from aembus.sender import FULL, Job, Sender
from aembus.shm import layout

log = logging.getLogger("aembus")

CUT: Final = 40  # characters of type and text that are kept of what does not fit otherwise
TEXT_CHARACTERS_MAX: Final = 64 * 1024  # of one text: an exception may quote all that it was given
NS: Final = 1_000_000_000

_FLAGS, _SLOT, _DEADLINE_NS, _REPLY_ID, _INCARNATION = 2, 3, 7, 8, 9  # in a record's header


class Failure(NamedTuple):
    """What a call failed of, as text: an exception's type, text and traceback."""

    error_type: str
    text: str
    traceback_text: str = ""


def failure_of(error: BaseException) -> Failure:
    """Return an exception as text that can be encoded, whatever it holds."""
    trace = "".join(traceback.format_exception(error))
    return Failure(type(error).__name__, plain_text(text_of(error)), plain_text(trace))


class Answers:
    """Answers calls.

    Args:
        sender: this process's.
        waits: wait for room in the caller's reply lane, until the call's deadline; the supervisor
            does not.

    publishers: the short ways of plain results, by the caller's incarnation: see `Routes`.
    """

    def __init__(self, sender: Sender, *, waits: bool) -> None:
        self._sender = sender
        self._waits = waits
        self.publishers = sender.routes.answer_publishers

    def result(self, header: Sequence[int], value: Any, event: str) -> bool:
        """Send back what a handler returned; what cannot be sent is a failure of the call.

        Args:
            header: the call's record's.
            value: must fit msgpack.
            event: the name of the event that answers.
        """
        try:
            return self._send(header, 0, encode((value, event)))
        except Exception as error:  # whatever a subclass's conversion raises
            who = repr(event) if event else "a service's call"
            log.error("what %s returned cannot be sent to its caller: %s", who, error)
            return self.failed(header, failure_of(error), event)

    def encoded(self, header: Sequence[int], answer: bytes | Failure, event: str) -> bool:
        """Send back what another process's handler returned, encoded there with the event's name.

        Args:
            answer: a Failure if it could not be encoded.
        """
        try:
            if isinstance(answer, bytes):
                return self._send(header, 0, answer)
        except JobTooLarge as error:
            answer = failure_of(error)
        return self.failed(header, answer, event)

    def failed(self, header: Sequence[int], failure: Failure, event: str = "") -> bool:
        """Send back that a call failed."""
        texts = [plain_text(text) for text in (*failure, event)]
        cut = [texts[0][:CUT], texts[1][:CUT], "", ""]
        for fewer in (texts, [*texts[:2], "", texts[3]], cut):
            with contextlib.suppress(JobTooLarge):
                return self._send(header, layout.FLAG_FAILED, encode(fewer))
        return True

    def returned(self, header: Sequence[int]) -> bool:
        """Send back that nobody has begun the call, so that its caller calls somebody else."""
        return self._send(header, layout.FLAG_RETURNED, encode(()))

    def _send(self, header: Sequence[int], flags: int, payload: bytes) -> bool:
        # Raises JobTooLarge alone.
        slot = header[_SLOT]
        if not header[_FLAGS] & layout.FLAG_WANTS_REPLY:
            return True
        job = Job(payload, kind=layout.KIND_REPLY, flags=flags, reply_id=header[_REPLY_ID])
        target = Target(slot, 0, layout.CLASS_REPLY)
        try:
            # Not looked up here: who has just come may be unknown until an activation that this
            # interrupts is through, and then it is sent.
            sent = self._sender.try_send_to(header[_INCARNATION], target, job)
            if sent == FULL and self._waits:
                left_s = (header[_DEADLINE_NS] - time.monotonic_ns()) / NS
                self._sender.send(target, job, left_s, "an answer")
            elif sent == 1 and self._waits:  # who does not wait has no lane deliver
                self._sender.routes.make_answer_publisher(target, header[_INCARNATION])
            elif sent == FULL:
                log.error("slot %d does not take its answers; one is dropped", slot)
        except JobTooLarge:
            raise
        except (AembusError, OSError) as error:  # OSError: no descriptor, or no memory
            log.error("slot %d does not get its answer from here: %s", slot, error)
            return not self._sender.refuses
        return True


def plain_text(text: str) -> str:
    """Return a text as it can be sent: cut in the middle, and without surrogates."""
    left_out = len(text) - TEXT_CHARACTERS_MAX
    if left_out > 0:
        half = TEXT_CHARACTERS_MAX // 2
        text = f"{text[:half]} ... {left_out} characters ... {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()
