"""Real shared memory for tests: inboxes with their bells, and members that talk, without a bus."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from aembus.shm import layout
from aembus.shm.doorbell import create_bell, fence, unlink_bell
from aembus.shm.inbox import Inbox, create_inbox, inbox_role
from aembus.shm.lane import Record
from aembus.shm.names import shared_name
from aembus.shm.peer import Peer

NONCE: Final = "00c0ffee"
SLOTS: Final = 8
LANE_BYTES: Final = 4096


@contextlib.contextmanager
def inbox_made(
    bus: str, inbox_id: int = 0, *, lane_bytes: int = LANE_BYTES, slots: int = SLOTS
) -> Iterator[str]:
    """Create an inbox and its bell, as the supervisor does; yield the inbox's name."""
    name = shared_name(bus, NONCE, inbox_role(inbox_id))
    segment = create_inbox(name, slots, lane_bytes)
    try:
        create_bell(bus, NONCE, inbox_id, layout.BELL_SEMAPHORE)
        yield name
    finally:
        unlink_bell(bus, NONCE, inbox_id)
        segment.close()
        segment.unlink()


@contextlib.contextmanager
def inbox_open(bus: str, inbox_id: int = 0) -> Iterator[Inbox]:
    """Open an inbox as its owner."""
    name = shared_name(bus, NONCE, inbox_role(inbox_id))
    inbox = Inbox.open(bus, NONCE, inbox_id, layout.BELL_SEMAPHORE, name)
    try:
        yield inbox
    finally:
        inbox.close()


@contextlib.contextmanager
def peer_open(bus: str, slot: int, inbox_id: int = 0) -> Iterator[Peer]:
    """Open an inbox as the member in `slot`, who writes into it."""
    peer = Peer(bus, NONCE, inbox_id, inbox_id, slot, 100 + slot)
    try:
        yield peer
    finally:
        peer.close()


class Household:
    """An inbox, its owner's end of it, and producers in slots 0, 1, 2 and 3."""

    def __init__(self, bus: str, stack: contextlib.ExitStack) -> None:
        self.bus = bus
        self.name = stack.enter_context(inbox_made(bus))
        self.inbox = stack.enter_context(inbox_open(bus))
        self.peers = [stack.enter_context(peer_open(bus, slot)) for slot in range(4)]

    def word(self, offset: int) -> int:
        """Return one of the owner's words."""
        return int(self.inbox._words[offset // layout.WORD])

    def send(
        self, slot: int, payload: bytes = b"job", lane_class: int = layout.CLASS_NORMAL
    ) -> None:
        """Send and ring, as a member does."""
        assert put(self.peers[slot], payload, lane_class)
        fence()
        self.peers[slot].ring()


def put(peer: Peer, payload: bytes, lane_class: int = layout.CLASS_NORMAL) -> bool:
    """Send one record without ringing; return whether there was room."""
    lane = peer.lane(lane_class)
    if not lane.claim(payload, layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0):
        return False
    lane.commit()
    return True


def take_turn(inbox: Inbox) -> list[Record]:
    """Take and finish what one turn gives."""
    found = []
    for lane, budget in inbox.turn():
        for _ in range(budget):
            record = inbox.take(lane)
            if record is None:
                break
            lane.start(record)
            lane.done(record)
            found.append(record)
    return found


def payloads(inbox: Inbox) -> list[bytes]:
    """Take and finish what one turn gives; return the payloads."""
    return [record.payload for record in take_turn(inbox)]
