"""A bus without a supervisor: real shared memory, real members, and a desk for their requests.

The helper process makes the world, brings it into some state by what its members really do, and
keeps an image of the shared memory.  For each case it restores the image and forks; each child goes
on as one of the members, with that member's private memory as it was.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack
import posix_ipc
import pytest

from aembus import forks
from aembus import membership as membership_module
from aembus.bus import Bus
from aembus.errors import CorruptSegment, InboxFull
from aembus.event import Event
from aembus.shm import layout, names, registry
from aembus.shm.doorbell import create_bell, semaphore_name, unlink_bell
from aembus.shm.inbox import create_inbox, inbox_role
from aembus.shm.lane import LaneCounts
from aembus.shm.registry import RegistryReader, RegistryWriter
from tests.crash.points.ledger import BEGAN, BURIED, ENDED, SENT, Entry, Ledger

NONCE: Final = "0000dead"
CONSUMER: Final = 0
PRODUCER: Final = 1
BYSTANDER: Final = 2  # another producer
SECOND: Final = 3  # another consumer, for activations that concern two
SLOTS: Final = 4
LANE_BYTES: Final = 1024
UNITS: Final = LANE_BYTES // layout.UNIT

JOBS: Final = "jobs"  # concerns CONSUMER
BOTH: Final = "both"  # concerns CONSUMER and SECOND
EVENTS: Final = {(CONSUMER, JOBS): 1, (CONSUMER, BOTH): 2, (SECOND, BOTH): 3}
FILLER: Final = b"\xa5\x5a" * 8
LAST: Final = b"last"


class Desk:
    """Stands in for the connection to the supervisor: answers what a member asks of it."""

    def __init__(self, world: World, bus: str, *_: object, **__: object) -> None:
        self._world = world
        self._slot = world.joining

    def request(self, op: str, **fields: Any) -> dict[str, Any]:
        """As ControlClient.request."""
        answer: dict[str, Any] = getattr(self, f"_{op}")(**fields)
        return answer

    def tell(self, op: str, **fields: Any) -> None:
        """As ControlClient.tell."""

    def close(self) -> None:
        """As ControlClient.close."""

    def forget_parent(self) -> None:
        """As ControlClient.forget_parent."""

    def _join(self, **_: Any) -> dict[str, Any]:
        return {
            "nonce": NONCE,
            "name": f"member-{self._slot}",
            "slot": self._slot,
            "incarnation": next(self._world.incarnations),
            "inbox_id": self._slot,
        }

    def _register(self, events: list[list[Any]]) -> dict[str, Any]:
        return {"ids": [EVENTS[self._slot, event[0]] for event in events]}

    def _publish(self, **_: Any) -> dict[str, Any]:
        return {"generation": 1}

    def _undeliverable(self, header: list[int], payload: bytes, **_: Any) -> dict[str, Any]:
        attempts = layout.state_attempts(header[4])
        number, whole = 0, 0
        with contextlib.suppress(ValueError, TypeError):  # it is damaged
            number, whole = msgpack.unpackb(payload)[1], 1
        self._world.ledger.note(
            self._slot, Entry(BURIED, self._slot, header[3], 0, number, header[5], attempts, whole)
        )
        return {"forwarded": False}


class Image(NamedTuple):
    """The shared memory at one moment."""

    inboxes: list[bytes]
    bells: list[int]


class World:
    """The shared memory of one bus, and members of it in this process.

    Args:
        bus: its name.
    """

    def __init__(self, bus: str) -> None:
        self.bus = bus
        self.ledger = Ledger()
        self.joining = -1
        self.incarnations = itertools.count(100)
        self.in_handler: Callable[[int], None] | None = None  # between a handler's two notes
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._writer = RegistryWriter(names.shared_name(bus, NONCE, registry.ROLE))
            stack.callback(self._writer.close)
            self._inboxes = []
            self._bells = []
            for slot in range(SLOTS):
                name = names.shared_name(bus, NONCE, inbox_role(slot))
                segment = create_inbox(name, SLOTS, LANE_BYTES)
                stack.callback(segment.unlink)
                stack.callback(segment.close)
                self._inboxes.append(segment)
                create_bell(bus, NONCE, slot, layout.BELL_SEMAPHORE)
                stack.callback(unlink_bell, bus, NONCE, slot)
                bell = posix_ipc.Semaphore(semaphore_name(bus, NONCE, slot))
                stack.callback(bell.close)
                self._bells.append(bell)
            self.publish_registry()
            self.blank = self.image()
            patch = pytest.MonkeyPatch()
            stack.callback(patch.undo)
            patch.setattr(membership_module, "ControlClient", functools.partial(Desk, self))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Remove every name."""
        self._stack.close()

    # --- members --------------------------------------------------------------------------------

    def member(self, slot: int) -> Bus:
        """Join as the member in `slot`, as its process's next incarnation does."""
        self.joining = slot
        bus = Bus(self.bus)
        forks._known.discard(bus)  # a forked child is to go on as this member
        for registered, point in EVENTS:
            if registered == slot:
                bus.register(point, functools.partial(self._handle, bus), name="handler")
        return bus

    def send(self, bus: Bus, point: str, filler: bytes = FILLER, timeout_s: float = 5.0) -> int:
        """Send the member's next job, or note that there was no room; return how many that made."""
        number = self.ledger.intend(bus.slot)
        entry = Entry(SENT, -1, bus.slot, bus.incarnation, number, 0, 0, 1)
        data = (bus.slot, number, filler, _sum(bus.slot, number, filler))
        try:
            jobs = bus.activate(point, *data, timeout=timeout_s)
        except InboxFull:
            jobs = 0
        self.ledger.note(bus.slot, entry._replace(attempt=jobs))
        return jobs

    def _handle(
        self, bus: Bus, event: Event, origin: int, number: int, filler: bytes, checksum: int
    ) -> None:
        job = event.job
        assert job is not None
        whole = checksum == _sum(origin, number, filler) and job.origin[0] == origin
        entry = Entry(
            BEGAN,
            bus.slot,
            origin,
            bus.incarnation,
            number,
            job.identity.sequence,
            job.attempt,
            whole + (filler == LAST),
        )
        self.ledger.note(bus.slot, entry)
        if self.in_handler is not None:
            self.in_handler(number)
        self.ledger.note(bus.slot, entry._replace(what=ENDED))

    def finished_last(self, origins: set[int], consumer: int) -> bool:
        """Say whether the consumer has had the LAST job of each of these senders."""
        had = {
            e.origin
            for e in self.ledger.entries()
            if e.what == ENDED and e.consumer == consumer and e.whole == 2
        }
        return origins <= had

    # --- the registry ---------------------------------------------------------------------------

    def publish_registry(self) -> int:
        """Publish the next generation; its document says which one it is."""
        members = [[s, 1, s, "client", f"member-{s}", 0, "running"] for s in range(SLOTS)]
        document = {
            "members": members,
            "points": {
                JOBS: [[EVENTS[CONSUMER, JOBS], CONSUMER, {"group": "one"}]],
                BOTH: [[EVENTS[slot, BOTH], slot, {}] for slot in (CONSUMER, SECOND)],
            },
            "services": [],
            "generation": self._writer.generation + 1,
            "padding": "x" * (self._writer.generation * 37 % 100),
        }
        return self._writer.publish(document)

    def read_registry(self) -> None:
        """Read the registry, and check that the generation and the document belong together."""
        reader = RegistryReader.open(names.shared_name(self.bus, NONCE, registry.ROLE))
        try:
            self.check_registry(reader)
        finally:
            reader.close()

    @staticmethod
    def check_registry(reader: RegistryReader) -> int:
        """Read once, and check it; return the generation."""
        try:
            generation, document = reader.read()
        except CorruptSegment as error:
            raise AssertionError("the registry cannot be read") from error
        assert document["generation"] == generation, (document["generation"], generation)
        return generation

    # --- memory ---------------------------------------------------------------------------------

    def image(self) -> Image:
        """Return what the shared memory holds."""
        return Image([bytes(s.memory) for s in self._inboxes], [b.value for b in self._bells])

    def differs(self, image: Image) -> bool:
        """Say whether the shared memory holds anything else."""
        # As bytes: memoryviews are compared item by item.
        return any(
            bytes(s.memory) != old for s, old in zip(self._inboxes, image.inboxes, strict=True)
        ) or any(b.value != old for b, old in zip(self._bells, image.bells, strict=True))

    def restore(self, image: Image) -> None:
        """Make the shared memory what it was."""
        for segment, old in zip(self._inboxes, image.inboxes, strict=True):
            segment.memory[:] = old
        for bell, value in zip(self._bells, image.bells, strict=True):
            while bell.value > value:
                bell.acquire(0)
            while bell.value < value:
                bell.release()

    def lanes_alone(self, image: Image) -> list[bytes]:
        """Return an image's lanes: their controls and rings."""
        begin = layout.lane_controls_offset(SLOTS)
        return [inbox[begin:] for inbox in image.inboxes]

    def word(self, slot: int, offset: int) -> int:
        """Return a word of an inbox."""
        return int(self._inboxes[slot].words[offset // layout.WORD])

    def posts(self, slot: int) -> int:
        """Return how often a bell was posted and not waited for."""
        return int(self._bells[slot].value)

    def counts(self, consumer: int, producer: int) -> LaneCounts:
        """Return what the words of a lane say."""
        lane = layout.lane_index(SLOTS, layout.CLASS_NORMAL, producer)
        return LaneCounts(self._inboxes[consumer].words, layout.lane_control_offset(SLOTS, lane))


def _sum(origin: int, number: int, filler: bytes) -> int:
    return zlib.crc32(b"%d %d " % (origin, number) + filler)
