"""Members' calls: which id is which method of which version, and the answers.

An id is given out once and belongs to the version that a member bound.  When that version's state
passes to another one, its ids do, too; while the state is on its way, calls are kept.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import traceback
from array import array
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from aembus.codec import decode, encode
from aembus.errors import AembusError, JobTooLarge, ServiceNotFound
from aembus.hosting.hosted import Hosted
from aembus.routing import Target
from aembus.sender import FULL, Job, Sender
from aembus.services.base import Caller
from aembus.shm import layout
from aembus.shm.lanes import Record

log = logging.getLogger("aembus")

KEPT_CALL_BYTES: Final = 512  # what a kept call takes beside its data
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024


class _Entry(NamedTuple):
    hosted: Hosted
    name: str
    method: Callable[..., Any]


class CallTable:
    """The calls of all versions that one process hosts.

    Args:
        sender: this process's, for the answers.
        answer_bytes_max: how long an answer may be, encoded.
    """

    def __init__(self, sender: Sender, answer_bytes_max: int) -> None:
        self._sender = sender
        self._answer_bytes_max = answer_bytes_max
        self._entries: dict[int, _Entry] = {}
        self._ids = itertools.count(1)
        self._answering: set[asyncio.Future[None]] = set()
        self.calls = 0
        self.failures = 0

    def add(self, hosted: Hosted) -> dict[str, int]:
        """Give ids to the calls of a version, and return them by name."""
        ids = {}
        for name in hosted.service.calls():
            ids[name] = next(self._ids)
            self._entries[ids[name]] = _Entry(hosted, name, getattr(hosted.service, name))
        return ids

    def redirect(self, old: Hosted, new: Hosted) -> None:
        """Let all ids that reach `old` reach `new`, which has the same calls, and maybe more."""
        for number, entry in self._entries.items():
            if entry.hosted is old:
                method = getattr(new.service, entry.name)
                self._entries[number] = _Entry(new, entry.name, method)

    def remove(self, hosted: Hosted) -> None:
        """Forget the ids that reach a version."""
        for number in [n for n, entry in self._entries.items() if entry.hosted is hosted]:
            del self._entries[number]

    def take(self, record: Record) -> None:
        """Call what a record asks for, or keep it while the state is on its way."""
        if record.flags & layout.FLAG_NUMBERS:
            caller = Caller(record.origin_slot, record.origin_incarnation)
            numbers = array("Q", (record.reply_id, record.deadline_ns))
            self.take_numbers(record.event_id, caller, numbers)
            return
        self.calls += 1
        entry = self._entries.get(record.event_id)
        if entry is None:
            error = ServiceNotFound(_no_such(record.event_id, record.origin_slot))
            self._refuse(record, error)
            return
        hosted = entry.hosted
        hosted.calls += 1
        if hosted.later is None:
            self._call(hosted, entry.method, record)
            return
        name = entry.name
        hosted.calls_kept += 1
        hosted.later_bytes += len(record.payload) + KEPT_CALL_BYTES
        hosted.later.append(lambda now: self._call(now, getattr(now.service, name), record))

    def take_numbers(self, call_id: int, caller: Caller, numbers: array[int]) -> None:
        """Make calls of two numbers each, or keep them while the state is on its way."""
        count = len(numbers) // 2
        self.calls += count
        entry = self._entries.get(call_id)
        if entry is None:
            self.failures += count
            log.error("one-way service calls failed: %s", _no_such(call_id, caller.slot))
            return
        hosted = entry.hosted
        hosted.calls += count
        if hosted.later is None:
            self._call_numbers(entry.method, caller, numbers)
            return
        name = entry.name
        hosted.calls_kept += count
        hosted.later_bytes += count * KEPT_CALL_BYTES
        hosted.later.append(
            lambda now: self._call_numbers(getattr(now.service, name), caller, numbers)
        )

    def _call_numbers(
        self, method: Callable[..., Any], caller: Caller, numbers: array[int]
    ) -> None:
        try:
            method(caller, numbers)
        except Exception:
            self.failures += 1
            log.exception("service calls of numbers failed, slot=%d", caller.slot)

    @staticmethod
    def keeps_too_much(hosted: Hosted) -> bool:
        """Say whether so many calls are kept for a version that no more should be taken."""
        return hosted.later_bytes > KEPT_BYTES_MAX

    def _call(self, hosted: Hosted, method: Callable[..., Any], record: Record) -> None:
        caller = Caller(record.origin_slot, record.origin_incarnation)
        try:
            result = method(caller, *decode(record.payload))
        except Exception as error:
            self._refuse(record, error)
            return
        if inspect.isawaitable(result):
            hosted.answering += 1
            future = asyncio.ensure_future(self._answer_later(hosted, record, result))
            self._answering.add(future)
            future.add_done_callback(self._answering.discard)
        else:
            self._answer(record, result)

    async def _answer_later(self, hosted: Hosted, record: Record, result: Awaitable[Any]) -> None:
        try:
            self._answer(record, await result)
        except Exception as error:
            self._refuse(record, error)
        finally:
            hosted.answering -= 1

    def _answer(self, record: Record, result: Any) -> None:
        if not record.flags & layout.FLAG_WANTS_REPLY:
            return
        try:
            payload = encode((result,))
        except Exception as error:  # what cannot be sent is refused, like what was not made
            self._refuse(record, error)
            return
        if len(payload) > self._answer_bytes_max:
            size = len(payload)
            self._refuse(
                record,
                JobTooLarge(
                    "the answer is larger than half a lane; return less, or give the supervisor "
                    f"larger lanes (lane_bytes), {size=}, max={self._answer_bytes_max}"
                ),
            )
            return
        self._reply(record, 0, payload)

    def _refuse(self, record: Record, error: Exception) -> None:
        self.failures += 1
        if not isinstance(error, AembusError | ValueError):
            log.error("service call %d failed", record.event_id, exc_info=error)
        if record.flags & layout.FLAG_WANTS_REPLY:
            # With small lanes there may be no room for all of it; its end says most.
            room = self._answer_bytes_max // 2
            trace = "".join(traceback.format_exception(error))[-room // 2 :]
            text = str(error)[:room]
            self._reply(record, layout.FLAG_FAILED, encode((type(error).__name__, text, trace)))
        else:
            log.error("one-way service call %d failed: %s", record.event_id, error)

    def _reply(self, record: Record, flags: int, payload: bytes) -> None:
        job = Job(payload, kind=layout.KIND_REPLY, flags=flags, reply_id=record.reply_id)
        target = Target(record.origin_slot, 0, layout.CLASS_REPLY)
        try:
            if self._sender.try_send(target, job) == FULL:
                log.error("slot %d does not take its replies; one is dropped", target.slot)
        except AembusError as error:  # the turn goes on: the others must not wait for this one
            log.error("slot %d cannot get its replies; one is dropped: %s", target.slot, error)


def _no_such(call_id: int, slot: int) -> str:
    return (
        "this version of the service is not loaded any more; release it and ask for the service "
        f"again, {call_id=}, {slot=}"
    )
