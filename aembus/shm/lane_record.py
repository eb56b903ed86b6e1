"""One record of a lane, as its consumer has taken it; and what is said where none can be."""

from __future__ import annotations

from typing import Any

from aembus.shm.layout import state_attempts, state_failures


class CorruptLane(Exception):
    """What the producer wrote cannot be followed; the message says where and why."""


class _Field:
    def __init__(self, position: int) -> None:
        self._position = position

    def __get__(self, record: Record, owner: type[Record]) -> int:
        return record.header[self._position]


class Record:
    """One taken record: a private copy of its header and payload, and where it lies."""

    __slots__ = ("begin", "end", "header", "lane", "payload", "state_word")

    def __init__(
        self,
        lane: Any,
        begin: int,
        end: int,
        state_word: int,
        header: tuple[int, ...],
        payload: bytes,
    ) -> None:
        self.lane = lane  # its LaneConsumer
        self.begin = begin
        self.end = end
        self.state_word = state_word
        self.header = header
        self.payload = payload

    # Positions in the header, in the order of layout.RECORD_HEADER.
    kind = _Field(1)
    flags = _Field(2)
    origin_slot = _Field(3)
    sequence = _Field(5)
    activated_ns = _Field(6)
    deadline_ns = _Field(7)
    reply_id = _Field(8)
    origin_incarnation = _Field(9)
    addressee = _Field(10)  # the incarnation that the record is meant for, 0 for any
    event_id = _Field(11)
    key_hash = _Field(12)

    @property
    def attempts(self) -> int:
        """How often the record was started; with this time, once it is."""
        return state_attempts(self.header[4])

    @property
    def failures(self) -> int:
        """How many of the attempts ended with its handler raising."""
        return state_failures(self.header[4])
