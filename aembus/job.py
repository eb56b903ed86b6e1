"""A job, as its handler sees it."""

from __future__ import annotations

from typing import NamedTuple

from aembus.shm.lanes import Record


class Identity(NamedTuple):
    """What tells a job from every other on its bus: the lane, and its number there."""

    slot: int
    lane_class: int
    origin_slot: int
    sequence: int


class Job(NamedTuple):
    """The job that a handler works on (`event.job`).

    origin: (slot, incarnation) of the member that activated.
    activated_ns: when, on CLOCK_MONOTONIC.
    attempt: 1, or more if earlier attempts did not survive their worker.
    key: the hash of the key given, 0 without one.
    """

    origin: tuple[int, int]
    activated_ns: int
    attempt: int
    key: int
    identity: Identity


def job_from_record(record: Record, slot: int, lane_class: int) -> Job:
    """Return the job that `record`, started by the member in `slot`, carries."""
    return Job(
        origin=(record.origin_slot, record.origin_incarnation),
        activated_ns=record.activated_ns,
        attempt=record.attempts + 1,
        key=record.key_hash,
        identity=Identity(slot, lane_class, record.origin_slot, record.sequence),
    )
