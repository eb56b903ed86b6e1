"""What victims do, and the state of the lane that they do it in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from aembus.bus import Bus
from tests.crash.points.world import (
    BOTH,
    BYSTANDER,
    CONSUMER,
    FILLER,
    JOBS,
    PRODUCER,
    SECOND,
    UNITS,
    World,
)

STATES: Final = ("empty", "one", "middle", "wrap-1", "wrap", "full")
DRAINED: Final = ("empty", "wrap-1", "wrap")  # states in which the consumer may be asleep
LONGER: Final = FILLER * 4  # a record of three units; with FILLER it takes two


class Members:
    """The members of a world, all in the helper process, brought into a state."""

    def __init__(self, world: World, state: str) -> None:
        self.world = world
        self.consumer = world.member(CONSUMER)
        self.second = world.member(SECOND)
        self.producer = world.member(PRODUCER)
        self.bystander = world.member(BYSTANDER)
        self.state = state
        self.asleep = False
        getattr(self, "_bring_" + state.replace("-", "_"))()

    def close(self) -> None:
        """Let go of everything."""
        for bus in (self.consumer, self.second, self.producer, self.bystander):
            bus._membership.close()

    def send(self, count: int, filler: bytes = FILLER) -> None:
        """Have the producer send jobs."""
        for _ in range(count):
            assert self.world.send(self.producer, JOBS, filler) == 1

    def take_all(self) -> None:
        """Have the consumer empty the lane."""
        self.consumer.poll()

    def fall_asleep(self) -> None:
        """Have the consumer announce that it sleeps."""
        assert self.consumer._inbox is not None
        assert self.consumer._inbox.announce_sleep(lambda: False)
        self.asleep = True

    # --- the states: where the lane's next record goes, and what is queued before it --------------

    def _bring_empty(self) -> None:
        self.send(1)
        self.take_all()

    def _bring_one(self) -> None:
        self._bring_empty()
        self.send(1)

    def _bring_middle(self) -> None:
        self.send(3)
        self.take_all()
        self.send(2)

    def _bring_wrap_1(self) -> None:
        self.send(UNITS // 2 - 1)  # the next one ends where the ring ends
        self.take_all()

    def _bring_wrap(self) -> None:
        self.send(UNITS // 2 - 2)
        self.take_all()
        self.send(1, LONGER)  # the next one does not fit before the ring's end
        self.take_all()

    def _bring_full(self) -> None:
        self._bring_empty()
        self.send(UNITS // 2)
        assert self.world.send(self.producer, JOBS, timeout_s=0) == 0


class Scenario(NamedTuple):
    """What one victim does.

    victim: whose member.
    act: what it does, until it is killed; for a replacement it begins with joining.
    prepare: done to the members beforehand, after the state was reached.
    point: where everybody sends in the end.
    sleeps: whether the consumer is asleep meanwhile, in states that allow it.
    boots: the act begins with joining, and lanes stay as they are until it asks for jobs.
    jobs: how many an activation makes.
    states: of the lane, in which it makes a difference.
    """

    victim: int
    act: Callable[[Members], object]
    prepare: Callable[[Members], object] = lambda members: None
    point: str = JOBS
    sleeps: bool = False
    boots: bool = False
    jobs: int = 1
    states: Sequence[str] = STATES


def _send(members: Members) -> None:
    members.world.send(members.producer, JOBS, timeout_s=0)


def _send_both(members: Members) -> None:
    members.world.send(members.producer, BOTH, timeout_s=0)


def _open(members: Members) -> None:
    # A producer that took over the slot: it opens its lane behind what the last one left.
    members.producer = members.world.member(PRODUCER)


def _open_both(members: Members) -> None:
    _open(members)
    assert members.world.send(members.bystander, BOTH) == 2


def _fill_second(members: Members) -> None:
    # CONSUMER has room (unless the state is full), SECOND has not.
    sender = members.producer
    while members.world.send(sender, BOTH, timeout_s=0):
        members.take_all()


def _warm_both(members: Members) -> None:
    # The short way to both, where the lane has room for it.
    if members.world.send(members.producer, BOTH, timeout_s=0):
        members.consumer.poll()
        members.second.poll()


def _queue_more(members: Members) -> None:
    if members.state.startswith("wrap"):
        members.send(2)  # before and behind the place that the state is about
    if members.state != "full":
        members.world.send(members.bystander, JOBS)


def _deliver(members: Members) -> None:
    members.world.ledger.taking = True
    members.consumer.poll()


def boot(members: Members) -> None:
    """Be the replacement of the consumer: join, register, and ask for jobs."""
    members.consumer = replacement = members.world.member(CONSUMER)
    members.world.ledger.taking = True
    replacement.poll()


SCENARIOS: Final = {
    "put": Scenario(PRODUCER, _send, sleeps=True),
    "open": Scenario(PRODUCER, _send, _open, sleeps=True),
    "fan-out": Scenario(PRODUCER, _send_both, _warm_both, BOTH, sleeps=True, jobs=2),
    "open both": Scenario(PRODUCER, _send_both, _open_both, BOTH, jobs=2),
    "half full": Scenario(
        PRODUCER, _send_both, _fill_second, BOTH, jobs=2, states=("empty", "full")
    ),
    "deliver": Scenario(CONSUMER, _deliver, _queue_more),
    "boot": Scenario(CONSUMER, boot, _queue_more, boots=True),
}


def own_bus(members: Members, slot: int) -> Bus:
    """Return the bus object of the member in `slot`."""
    buses = (members.consumer, members.producer, members.bystander, members.second)
    return buses[slot]
