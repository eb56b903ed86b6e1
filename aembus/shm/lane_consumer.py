"""The reading end of a lane, in plain Python: see `aembus.shm.lane`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from aembus.shm import layout
from aembus.shm.lane_record import CorruptLane, Record
from aembus.shm.layout import (
    CURSOR_COUNT_MAX,
    CURSOR_OFFSET_BITS,
    CURSOR_OFFSET_MASK,
    CURSOR_RECORD,
    KIND_CALL,
    KIND_JOB,
    KIND_PAD,
    KINDS,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    STATE_ATTEMPT_MAX,
    STATE_ATTEMPT_SHIFT,
    STATE_DEAD,
    STATE_DONE,
    STATE_FAILED,
    STATE_FAILURE_MAX,
    STATE_FAILURE_SHIFT,
    STATE_FORWARDED,
    STATE_HELD,
    STATE_MASK,
    STATE_NEW,
    STATE_STARTED,
    UNIT,
    UNIT_SHIFT,
)

COUNT_MASK: Final = 0xFFFF_FFFF
COPY_UNITS: Final = 128  # at most so much is copied at once

_STARTED_FIRST: Final = STATE_STARTED | 1 << STATE_ATTEMPT_SHIFT
_SPARED: Final = layout.STATE_SPARED_MAX << layout.STATE_SPARED_SHIFT
_HEADER_AND_REST: Final = RECORD_HEADER_BYTES + UNIT - 1
_WHOLE_UNITS: Final = -UNIT
_NO_RECORD: Final = bytes(RECORD_HEADER_BYTES)

_pack_header = RECORD_HEADER.pack
_unpack_header = RECORD_HEADER.unpack_from
# What `deliver` looks at: length, kind, flags, state, sequence and event id.
_unpack_plain = struct.Struct("=IBB2xQQ32xI4x").unpack_from


class Deliverable(Protocol):
    """What `LaneConsumer.deliver` needs of an event."""

    handler: Callable[..., object]
    once: bool
    lane: LaneConsumer | None
    delivered: int


def _copy(memory: memoryview, at: int, size: int) -> bytes:
    return memory[at : at + size].tobytes()


def _is_plain(record: Record, events: Mapping[int, Deliverable], one_way: bool) -> bool:
    header = record.header
    event = events.get(header[11])
    if header[1] != KIND_JOB and not (one_way and header[1] == KIND_CALL and not header[2]):
        return False
    return header[4] == STATE_NEW and event is not None and not event.once


def _has_numbers(record: Record) -> bool:
    flags = record.flags & layout.FLAG_NUMBERS
    return record.kind == layout.KIND_CALL and bool(flags) and not record.payload


class LaneConsumer:
    """The reading end.  `deliver` runs plain jobs; `take` copies one record out, `start` and `done`
    move its state.

    A replacement of a dead consumer opens the lane the same way: it begins at `head`, finds
    records that are DONE (skipped), STARTED or HELD (`Record.attempts` says how often),
    FAILED or NEW.

    Args: as for LaneProducer.
    """

    def __init__(self, memory: memoryview, control: int, ring: int, ring_bytes: int) -> None:
        self._memory = memory
        self._words = memory.cast("Q")
        self._tail_word = (control + layout.LANE_TAIL) // 8
        self._head_word = (control + layout.LANE_HEAD) // 8
        self._dead_word = (control + layout.LANE_DEAD) // 8
        self._forwarded_word = (control + layout.LANE_FORWARDED) // 8
        self._room_word = (control + layout.LANE_ROOM_WANTED) // 8
        self._ring = ring
        self._capacity = ring_bytes >> UNIT_SHIFT
        self._payload_bytes_max = layout.payload_bytes_max(ring_bytes)
        self._head: int = self._words[self._head_word]
        self._taken = self._head  # the first record that was not taken yet
        self._tail = self._head  # the last known tail
        self._available = 0  # units between _taken and _tail
        self._returned: Record | None = None  # what was taken and left to the next `take`
        # In hand: where the record begins and ends, its state, and a copy in which it is at `at`.
        self._current: tuple[int, int, int, bytes, int] | None = None
        self.delivered = 0  # by `deliver`
        self._held: int | None = None  # where the record begins that was held last
        self._refused: int | None = None  # a tail that makes no sense; its producer's next may
        self._finished: dict[int, tuple[int, int]] = {}  # finished before those in front: begin →
        if self._head & CURSOR_OFFSET_MASK >= self._capacity:
            raise CorruptLane(f"head is outside the ring, head={self._head:#x}")

    def has_records(self) -> bool:
        """Say whether `take` would find something."""
        tail = self._words[self._tail_word]
        return self._returned is not None or tail not in (self._taken, self._refused)

    def take(self) -> Record | None:
        """Copy out the next record that is not finished, or return None.

        Its state is as it was: call `start` before it is worked on.
        Raises CorruptLane if the producer's bytes make no sense; `skip_to_tail` goes on then.
        """
        if self._returned is not None:
            record, self._returned = self._returned, None
            return record
        while True:
            begin = cursor = self._taken
            if cursor == self._tail and not self._look_for_more():
                return None
            available = self._available
            offset = cursor & CURSOR_OFFSET_MASK
            at = self._ring + (offset << UNIT_SHIFT)
            header = _unpack_header(self._memory, at)  # a private copy: only it is checked and used
            if header[1] == KIND_PAD and self._is_pad(header, offset, available):
                available -= self._capacity - offset
                cursor -= offset
                offset, at = 0, self._ring
                header = _unpack_header(self._memory, at)
            length = header[0]
            units = (length + RECORD_HEADER_BYTES + UNIT - 1) >> UNIT_SHIFT
            after = offset + units
            wrong = (
                header[5] != (cursor >> CURSOR_OFFSET_BITS) + 1
                or after > self._capacity
                or length > self._payload_bytes_max
                or units > available
                or header[1] not in KINDS
            )
            if self._taken is not begin:
                continue  # a signal handler has taken it meanwhile
            if wrong:
                what = "pad" if header[1] == KIND_PAD and cursor is begin else "record"
                raise CorruptLane(f"{what} cannot be followed, cursor={cursor:#x}, header={header}")
            self._available = available - units
            end = cursor + CURSOR_RECORD + units
            if after == self._capacity:
                end -= after  # the next record begins at the ring's start
            self._taken = end
            if header[4] & STATE_MASK >= STATE_DONE:  # finished by an earlier incarnation
                self._finish(begin, end, header[4] & STATE_MASK)
                continue
            state_word = (at + layout.RECORD_STATE) >> 3
            at += RECORD_HEADER_BYTES
            payload = self._memory[at : at + length].tobytes()
            return Record(self, begin, end, state_word, header, payload)

    def take_again(self) -> None:
        """Have `take` return again what is not finished; for who was interrupted in between."""
        self._taken = self._tail = self._head
        self._available = 0
        self._returned = None

    def take_numbers(self, budget: int) -> tuple[int, int, bytes] | None:
        """Take and finish the next records, as long as they are calls of numbers by one process.

        The first other record ends it, and `take` returns that next.

        Args:
            budget: take at most so many.

        Returns the call's id, its caller's incarnation, and each record's `reply_id` and
        `deadline_ns` as native words; None if no such record is next.  Raises CorruptLane as
        `take` does, if it is the first.
        """
        first: tuple[int, int] | None = None
        numbers: list[int] = []
        while len(numbers) < 2 * budget and self._returned is None:
            try:
                record = self.take()
            except CorruptLane:
                if not numbers:
                    raise
                break  # it is found again at the next call
            if record is None:
                break
            origin = (record.event_id, record.origin_incarnation)
            if not _has_numbers(record) or origin != (first or origin):
                self._returned = record
                break
            first = origin
            numbers += (record.reply_id, record.deadline_ns)
            self.done(record)
        return None if first is None else (*first, struct.pack(f"={len(numbers)}Q", *numbers))

    def deliver(
        self,
        events: Mapping[int, Deliverable],
        decode: Callable[[bytes], Sequence[Any]],
        budget: int,
        stopping: bytearray,
        publishers: Mapping[int, object] | None = None,
        answer: Callable[[Record, Any, Any], bool] | None = None,
    ) -> int:
        """Run the handlers of the next jobs, as long as they are plain, and mark them done.

        Plain is a new job for an event that is there and wants more than one.  The first other
        record ends the run, and `take` returns it next.  What its handler gave to `hold` stays
        held.

        Args:
            events: by id; each has `handler`, `once`, and `lane` (whose record is in hand) and
                `delivered` to be set.
            decode: makes a handler's arguments of a payload.
            budget: run at most so many.
            stopping: end the run after a handler once its only byte is not 0.
            publishers, answer: how calls are answered: by the caller's incarnation, and by
                ``answer(record, result, event)``; if that returns False the call stays in hand.
                With these calls that nobody else waits for are plain to the lane in C, and left to
                `take` here; without, in a host of services, those that get no answer are plain.

        Returns how many were run.  What a handler raises comes through; its record is `in_hand`
        then, started and not finished.  Raises CorruptLane as `take` does.
        """
        words, memory, ring, capacity = self._words, self._memory, self._ring, self._capacity
        payload_bytes_max, finished = self._payload_bytes_max, self._finished
        head_word, find_event = self._head_word, events.get
        self._current = None
        event = None
        one_way = answer is None
        run = 0
        # Records are copied out of the shared memory many at a time, and only the copy is used.
        # It goes on with the record that begins at the cursor `copied`, which is `at` in it and has
        # the sequence number after `due`.  Cursors are compared by identity where that will do:
        # Python takes its time for large numbers.
        copy, size, at, first_state_word, due = b"", 0, 0, 0, 0
        copied: int | None = None
        # What a signal handler raises may come between any two of the steps below.  Then `behind`,
        # where the first record begins that was not run, and the order of `end` before `begin`,
        # tell `_put_in_order` how far the last one has come.
        begin = end = behind = self._taken
        state_word = 0
        try:
            while True:
                if run >= budget or self._returned is not None or stopping[0]:
                    break
                cursor = self._taken
                if cursor is not copied or at >= size:
                    if cursor == self._tail:
                        self._current = None
                        if not self._look_for_more():
                            break
                    offset = cursor & CURSOR_OFFSET_MASK
                    due = cursor >> CURSOR_OFFSET_BITS
                    # Not up to the ring's end: a record that meets it is for `take`.
                    size = min(self._available, capacity - offset - 1, COPY_UNITS) << UNIT_SHIFT
                    at = ring + (offset << UNIT_SHIFT)
                    first_state_word = (at + layout.RECORD_STATE) >> 3
                    copy = _copy(memory, at, size) or _NO_RECORD
                    at = 0
                length, kind, flags, state, sequence, event_id = _unpack_plain(copy, at)
                after = at + (length + _HEADER_AND_REST & _WHOLE_UNITS)
                concerned = find_event(event_id)
                due += 1
                if (
                    (kind != KIND_JOB and (kind != KIND_CALL or flags or not one_way))
                    or state != STATE_NEW
                    or concerned is None
                    or concerned.once
                    or sequence != due
                    or length > payload_bytes_max
                    or after > size
                ):
                    copied = None
                    if at:  # perhaps it is only cut off here
                        continue
                    # Not plain, or long, or at the ring's end, or wrong: `take` knows what to do.
                    self._current = None
                    record = self.take()
                    if record is None or not _is_plain(record, events, one_way):
                        self._returned = record
                        break
                    end, state_word, payload = record.end, record.state_word, record.payload
                    begin, concerned = record.begin, events[record.event_id]
                    self._current = (
                        begin,
                        end,
                        state_word,
                        _pack_header(*record.header) + payload,
                        0,
                    )
                else:
                    units = (after - at) >> UNIT_SHIFT
                    self._taken = end = copied = cursor + (units + CURSOR_RECORD)
                    self._available -= units
                    begin = cursor
                    state_word = first_state_word + (at >> 3)
                    payload = copy[at + RECORD_HEADER_BYTES : at + RECORD_HEADER_BYTES + length]
                    self._current = (begin, end, state_word, copy, at)
                    at = after
                words[state_word] = _STARTED_FIRST
                if concerned is not event:
                    if event is not None:
                        event.lane = None
                    event = concerned
                    event.lane = self
                event.handler(event, *decode(payload))
                if self._held is not None and self._held == begin:
                    begin = behind = end  # in this order: nothing is left to be put in order
                    self._current = None
                    run += 1
                    continue
                behind = end
                self._current = None
                words[state_word] = STATE_DONE
                if begin is self._head and not finished:
                    self._head = words[head_word] = end  # SYNC POINT: gives room back
                else:
                    self._finish(begin, end, STATE_DONE)
                event.delivered += 1
                run += 1
        except CorruptLane:
            self.delivered += run
            if self._current is None and event is not None:  # it was no handler that raised
                event.lane = None
            raise
        except BaseException:
            self.delivered += run
            if self._current is None and event is not None:
                event.lane = None
            self._put_in_order(begin, end, state_word, behind)
            raise
        self.delivered += run
        self._current = None
        if event is not None:
            event.lane = None
        return run

    def _put_in_order(self, begin: int, end: int, state_word: int, behind: int) -> None:
        # After what a signal handler raised in the middle of `deliver`: a job whose handler has
        # returned is finished, and one that was not begun is taken again.
        if self._current is not None:
            return
        if end == behind and begin >= self._head and begin not in self._finished and begin != end:
            self._words[state_word] = STATE_DONE
            self._finish(begin, end, STATE_DONE)
        self._words[self._head_word] = self._head
        if self._returned is None:
            self._taken = self._tail = max(behind, self._head)
            self._available = 0

    @property
    def in_hand(self) -> Record | None:
        """The record whose handler `deliver` runs, or the last one if it raised."""
        if self._current is None:
            return None
        begin, end, state_word, copy, at = self._current
        header = RECORD_HEADER.unpack_from(copy, at)
        header = (*header[:4], _STARTED_FIRST, *header[5:])
        at += RECORD_HEADER_BYTES
        return Record(self, begin, end, state_word, header, copy[at : at + header[0]])

    def start(self, record: Record) -> int:
        """Store STARTED and one more attempt, in one word; return the attempt's number."""
        attempts = min(record.attempts + 1, STATE_ATTEMPT_MAX)  # a producer may write nonsense
        self._store_state(record, STATE_STARTED, attempts, record.failures)
        return attempts

    def fail(self, record: Record) -> int:
        """Store FAILED and one more failure, in one word; return how many there are.

        The record is not finished: `start` begins its next attempt.
        """
        failures = min(record.failures + 1, STATE_FAILURE_MAX)
        self._store_state(record, STATE_FAILED, record.attempts, failures)
        return failures

    def _store_state(self, record: Record, state: int, attempts: int, failures: int) -> None:
        spared = record.header[4] & _SPARED
        state |= attempts << STATE_ATTEMPT_SHIFT | failures << STATE_FAILURE_SHIFT | spared
        self._words[record.state_word] = state
        record.header = (*record.header[:4], state, *record.header[5:])

    def hold(self, record: Record) -> None:
        """Store HELD, and leave the record that is in hand so when its handler returns."""
        self._store_state(record, STATE_HELD, record.attempts, record.failures)
        self._held = record.begin

    def mark_done(self, record: Record) -> None:
        """Store DONE alone; any thread may.  `done` has to follow, in the thread that takes."""
        self._words[record.state_word] = STATE_DONE

    def done(self, record: Record) -> None:
        """Store DONE and move `head` over every finished record in front."""
        self._words[record.state_word] = STATE_DONE
        if record.begin == self._head and not self._finished:
            self._head = self._words[self._head_word] = record.end  # SYNC POINT: gives room back
        else:
            self._finish(record.begin, record.end, STATE_DONE)

    def dead(self, record: Record) -> None:
        """Like `done`, for a record that went to the dead letters: counted apart."""
        self._words[record.state_word] = STATE_DEAD
        self._finish(record.begin, record.end, STATE_DEAD)

    def forwarded(self, record: Record) -> None:
        """Like `done`, for a record that was sent on to another member: counted apart."""
        self._words[record.state_word] = STATE_FORWARDED
        self._finish(record.begin, record.end, STATE_FORWARDED)

    def skip_to_tail(self) -> int:
        """Give up everything between the last good record and `tail`; return how many records.

        They are counted as dead-lettered once what was taken before them is finished.  Used when
        the lane is corrupt.
        """
        tail = self._words[self._tail_word]
        begin = self._taken
        if self._units_before(tail) == 0 and tail != begin:
            self._refused, tail = tail, begin
        self._taken = self._tail = tail
        self._available = 0
        if tail != begin:
            self._finish(begin, tail, STATE_DEAD)
        return (tail >> CURSOR_OFFSET_BITS) - (begin >> CURSOR_OFFSET_BITS)

    def wants_post(self) -> bool:
        """Say whether the producer waits for room and at least half of the ring is free."""
        if not self._words[self._room_word]:
            return False
        tail = self._words[self._tail_word]
        used = (tail - self._head) & (self._capacity - 1)
        if used == 0 and tail != self._head:
            used = self._capacity
        return used * 2 <= self._capacity

    def _look_for_more(self) -> bool:
        taken = self._taken
        tail = self._words[self._tail_word]  # SYNC POINT: acquires what the producer published
        if tail in (taken, self._refused):
            return False
        available = self._units_before(tail)
        if self._taken is taken:  # else a signal handler has taken it meanwhile
            if not available:
                raise CorruptLane(f"tail makes no sense, tail={tail:#x}, taken={taken:#x}")
            self._available, self._tail = available, tail
        return True

    def _units_before(self, tail: int) -> int:
        # How much lies between what was taken and `tail`; 0 if nothing can.
        records = (tail >> CURSOR_OFFSET_BITS) - (self._taken >> CURSOR_OFFSET_BITS)
        units = ((tail - self._taken) & (self._capacity - 1)) or self._capacity
        outside = tail & CURSOR_OFFSET_MASK >= self._capacity
        uncountable = (self._taken >> CURSOR_OFFSET_BITS) + units > CURSOR_COUNT_MAX
        return 0 if outside or uncountable or not 0 < records <= units else units

    def _is_pad(self, header: tuple[int, ...], offset: int, available: int) -> bool:
        units = self._capacity - offset
        return offset > 0 and header[0] == units * UNIT - RECORD_HEADER_BYTES and available > units

    def _finish(self, begin: int, end: int, state: int) -> None:
        self._finished[begin] = (end, state)
        head = self._head
        while head in self._finished:
            before = head >> CURSOR_OFFSET_BITS
            head, state = self._finished[head]
            sequence = head >> CURSOR_OFFSET_BITS
            if state == STATE_DEAD:
                self._count(self._dead_word, sequence, sequence - before)
            elif state == STATE_FORWARDED:
                self._count(self._forwarded_word, sequence, sequence - before)
        self._words[self._head_word] = head  # SYNC POINT: gives room back
        passed, self._head = self._head, head
        while passed != head:
            passed, _ = self._finished.pop(passed)

    def _count(self, word: int, sequence: int, records: int) -> None:
        # (last sequence counted, count) in one word, stored before head moves: a replacement that
        # finds head unmoved comes by the same records again and does not count them twice.
        counted = self._words[word]
        head = self._words[self._head_word] >> CURSOR_OFFSET_BITS
        last_counted = ((counted >> 32) - head) & COUNT_MASK  # beyond head, if not from long ago
        if not counted or not (sequence - head) & COUNT_MASK <= last_counted <= self._capacity:
            self._words[word] = (sequence & COUNT_MASK) << 32 | (counted + records) & COUNT_MASK

    def close(self) -> None:
        """Let go of the memory; the lane itself stays as it is."""
        self._words.release()
