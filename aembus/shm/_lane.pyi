from collections.abc import Callable, Sequence
from typing import Any, TypeVar, final

from aembus.shm import lane

IMPLEMENTATION: str
LAYOUT: dict[str, int]

class CorruptLane(lane.CorruptLane): ...
class LaneProducer(lane.LaneProducer): ...
class LaneConsumer(lane.LaneConsumer): ...
class Record(lane.Record): ...

# One of a group: the lane to its member (None where it is not open yet), what posts the member's
# doorbell, the member's inbox with the offset of `sleeping` in it, the event's id, and whether it
# goes without where there is no room.
_Destination = tuple[lane.LaneProducer | None, Any, memoryview | None, int, int, bool]

@final
class Publisher:
    """Publishes to the events of one point, in one step, under one generation of the registry.

    Args:
        registry, offset: the registry's memory, and where its generation is.
        generation: under which `groups` holds.
        turn: where to go on in turn, for activations without a key.
        groups: of each group one destination gets a job.
        kind, flags, addressee: of each record; a plain job's by default.
    """

    def __init__(
        self,
        registry: memoryview,
        offset: int,
        generation: int,
        turn: int,
        groups: list[list[_Destination]],
        kind: int = ...,
        flags: int = ...,
        addressee: int = ...,
        /,
    ) -> None: ...
    def publish(self, payload: bytes, key_hash: int, /) -> int:
        """Return how many jobs were published and announced; 0: nothing was, use the other way.

        It is 0 when the generation is another, a lane is full (unless its event goes without),
        closed, not open or in use by another thread, all events go without, or the payload is too
        long or no bytes.  `key_hash` is -1 for the next in turn.

        What `ring` raises comes through, after all who sleep were rung, the one that raised twice.
        """

    def call(
        self,
        data: tuple[Any, ...],
        key_hash: int,
        deadline_ns: int,
        reply_id: int,
        waiting: object,
        lanes: Sequence[lane.LaneConsumer | None],
        moment_ns: int,
        /,
    ) -> tuple[Any] | tuple[int, bytes] | int:
        """Publish a call to the only group, and look for its answer for a moment.

        Args:
            data: the arguments, if they are plain.
            key_hash: as for `publish`.
            waiting: once its `answer` is not None, another thread has taken that.
            lanes: of each of the group, a list, by which it answers; None: not known.
            moment_ns: for how long to look; each look gives others the core.

        Returns the result alone if it is plain, or flags and payload of the answer, which is
        finished then; else the place in the group, from 1 on, of who got the call; 0 if nothing
        was published, as `publish`, or the data are not plain.  Another record that is next in
        the lane is left to `take`.
        """

    def publish_numbers(self, first: int, second: int, /) -> int:
        """Publish a record that has two numbers, in `reply_id` and `deadline_ns`, and no payload.

        Returns and raises what `publish` does, whose next in turn gets it.
        """

_Function = TypeVar("_Function", bound=Callable[..., Any])

def PlainActivate(function: _Function, /) -> _Function:
    """Return `function`, ActivationPoint's `activate`, with a short way in C for plain data."""

def PlainDecode(function: _Function, /) -> _Function:
    """Return `function`, which decodes a payload, with a short way in C for plain data."""
