"""Members' calls: which id is which method of which version, and the answers.

An id is given out once and belongs to the version that a member bound.  When that version's state
passes to another one, its ids do, too; while the state is on its way, calls are kept.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import zlib
from array import array
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from aembus.answers import Answers, failure_of
from aembus.codec import decode
from aembus.errors import AembusError, ServiceNotFound
from aembus.hosting.hosted import Hosted
from aembus.sender import Sender
from aembus.services.base import Caller
from aembus.shm import layout
from aembus.shm.lanes import LaneConsumer, Record

log = logging.getLogger("aembus")

_goes_on: Final = bytearray(1)  # what tells a lane to stop; here nothing does

KEPT_CALL_BYTES: Final = 512  # what a kept call takes beside its data
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024
ID_MAX: Final = 0xFFFF_FFFF


class _Entry:
    """A call of a version; to the lane it is an event, whose handler is the method."""

    __slots__ = ("delivered", "handler", "hosted", "lane", "name", "once")

    def __init__(self, hosted: Hosted, name: str) -> None:
        self.hosted = hosted
        self.name = name
        self.handler: Callable[..., Any] = getattr(hosted.service, name)
        self.once = False
        self.lane: LaneConsumer | None = None
        self.delivered = 0  # by the lane, and not counted yet

    @property
    def is_one_way(self) -> bool:
        """Whether it gives no answer, and does not look at its caller."""
        return getattr(self.handler, "is_one_way", False)


class CallTable:
    """The calls of all versions that one process hosts.

    Args:
        sender: this process's, for the answers.
    """

    def __init__(self, sender: Sender) -> None:
        self._answers = Answers(sender, waits=False)
        self._entries: dict[int, _Entry] = {}
        self._one_way: dict[int, _Entry] = {}  # those that the lane makes by itself
        self._answering: set[asyncio.Future[None]] = set()
        self._last_caller = Caller(0, 0)
        self.calls = 0
        self.failures = 0

    def add(
        self, hosted: Hosted, known: Mapping[int, str] = MappingProxyType({})
    ) -> dict[str, int]:
        """Give ids to the calls of a version, and return them by name.

        They depend on names alone, so that calls which wait for a host that has died are those of
        its next process.

        Args:
            known: ids that reached it in the last process, with their names.
        """
        names = hosted.service.calls()
        ids = {name: number for number, name in known.items() if name in names}
        for number, name in known.items():
            if name in names:
                self._entries[number] = _Entry(hosted, name)
        for name in names:
            if name not in ids:
                ids[name] = self._free_id(f"{hosted.name} {hosted.label} {name}")
                self._entries[ids[name]] = _Entry(hosted, name)
        self.choose_one_way_calls()
        return ids

    def ids_of(self, hosted: Hosted) -> dict[int, str]:
        """Return all ids that reach a version, with the names of their calls."""
        return {n: entry.name for n, entry in self._entries.items() if entry.hosted is hosted}

    def _free_id(self, text: str) -> int:
        number = zlib.crc32(text.encode())
        while not number or number in self._entries:
            number = (number + 1) & ID_MAX
        return number

    def redirect(self, old: Hosted, new: Hosted) -> None:
        """Let all ids that reach `old` reach `new`, which has the same calls, and maybe more."""
        for number, entry in self._entries.items():
            if entry.hosted is old:
                self._entries[number] = _Entry(new, entry.name)
        self.choose_one_way_calls()

    def remove(self, hosted: Hosted) -> None:
        """Forget the ids that reach a version."""
        for number in [n for n, entry in self._entries.items() if entry.hosted is hosted]:
            del self._entries[number]
        self.choose_one_way_calls()

    def choose_one_way_calls(self) -> None:
        """Let lanes make the one-way calls of all versions that have their state by themselves."""
        self._one_way = {
            number: entry
            for number, entry in self._entries.items()
            if entry.is_one_way and entry.hosted.later is None
        }

    def take_one_way(self, lane: LaneConsumer, budget: int) -> int:
        """Make the one-way calls that are next in a lane, `budget` at most; return how many.

        Raises: CorruptLane, as `LaneConsumer.take` does.
        """
        if not self._one_way:
            return 0
        before, failed = lane.delivered, 0
        try:
            lane.deliver(self._one_way, decode, budget, _goes_on)
        except Exception as error:
            record = lane.in_hand
            if record is None:  # it was not the method
                raise
            failed = 1
            self._one_way[record.event_id].delivered += 1
            self._refuse(record, error)
            lane.done(record)
        finally:
            for entry in self._one_way.values():
                self.calls += entry.delivered
                entry.hosted.calls += entry.delivered
                entry.delivered = 0
        return lane.delivered - before + failed

    def take(self, record: Record) -> None:
        """Call what a record asks for, or keep it while the state is on its way."""
        if record.flags & layout.FLAG_NUMBERS:
            numbers = array("Q", (record.reply_id, record.deadline_ns))
            self.take_numbers(record.event_id, self._caller_of(record), numbers)
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
            self._call(hosted, entry.handler, record)
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
            self._call_numbers(entry.handler, caller, numbers)
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
        try:
            result = method(self._caller_of(record), *decode(record.payload))
        except (Exception, asyncio.CancelledError) as error:
            self._refuse(record, error)
            return
        # Asking is slow, and most calls return neither.
        if result is not True and result is not None and inspect.isawaitable(result):
            hosted.answering += 1
            future = asyncio.ensure_future(self._answer_later(hosted, record, result))
            self._answering.add(future)
            future.add_done_callback(self._answering.discard)
        elif record.flags & layout.FLAG_WANTS_REPLY:
            self._answer(record, result)

    def _caller_of(self, record: Record) -> Caller:
        last = self._last_caller  # mostly it is that one again
        if last != (record.origin_slot, record.origin_incarnation):
            self._last_caller = last = Caller(record.origin_slot, record.origin_incarnation)
        return last

    async def _answer_later(self, hosted: Hosted, record: Record, result: Awaitable[Any]) -> None:
        try:
            self._answer(record, await result)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._refuse(record, error)  # what it waited for was cancelled, and not this
        except Exception as error:
            self._refuse(record, error)
        finally:
            hosted.answering -= 1

    def _answer(self, record: Record, result: Any) -> None:
        self._answers.result(record.header, result, "")

    def _refuse(self, record: Record, error: BaseException) -> None:
        self.failures += 1
        if not isinstance(error, AembusError | ValueError):
            log.error("service call %s failed", self._title(record.event_id), exc_info=error)
        if record.flags & layout.FLAG_WANTS_REPLY:
            self._answers.failed(record.header, failure_of(error))
        else:
            log.error("one-way service call %s failed: %s", self._title(record.event_id), error)

    def _title(self, call_id: int) -> str:
        entry = self._entries.get(call_id)
        if entry is None:
            return str(call_id)
        return f"{entry.name!r} of {entry.hosted.name!r} {entry.hosted.label}"


def _no_such(call_id: int, slot: int) -> str:
    return (
        "this version of the service is not loaded any more; release it and ask for the service "
        f"again, {call_id=}, {slot=}"
    )
