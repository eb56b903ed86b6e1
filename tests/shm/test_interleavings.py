"""The lane and the doorbell under every schedule of single loads and stores, on x86-64.

What runs is the code of `aembus` itself, `Sender` and `Inbox` included, on the memory of
`tests.support.explorer`.  Each promise is also put to a machine with a fault in it, to show that
the exploration would find one.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Any, Final, cast

import pytest

from aembus import publisher as publisher_module
from aembus import room as room_module
from aembus import sender as sender_module
from aembus.answers import Answers
from aembus.codec import encode
from aembus.event import Event
from aembus.events import EventStruct
from aembus.looking import Looking
from aembus.options import EventOptions
from aembus.picking import IN_TURN
from aembus.runner import Runner
from aembus.sender import Sender
from aembus.shm import inbox as inbox_module
from aembus.shm import lane as lane_module
from aembus.shm import lane_consumer, lane_producer, layout, sleeper
from aembus.shm.doorbell import Ringer
from aembus.shm.inbox import Inbox
from aembus.shm.lane import LaneConsumer, LaneProducer
from aembus.shm.peer import Peer
from aembus.shm.registry import RegistryReader
from tests.support.explorer import Actor, Exploration, Explorer, Memory, Processor, never
from tests.support.lanes import use

RING_BYTES: Final = 256  # four units: two records with a payload fill it
EVENT_ID: Final = 1
FOREVER_S: Final = 3600.0
INBOX_WORDS: Final = 1 << 20  # inbox n begins at word n times this
POINT: Final = "here"


class Machine:
    """Puts the code under test on the explorer's memory; its switches are the faults."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cpu = Processor(())
        self.fences = True
        self.deaf: set[int] = set()  # inboxes whose bell is not posted
        self.coarse = False
        self.ring_bytes = RING_BYTES
        use(monkeypatch, lane_module)
        monkeypatch.setattr(lane_producer, "_pack_header", _pack_header)
        monkeypatch.setattr(lane_producer, "_packers", Packers())
        monkeypatch.setattr(lane_consumer, "_unpack_header", _unpack_header)
        monkeypatch.setattr(lane_consumer, "_copy", _copy)
        # What is read off a clock goes into shared memory: it must be the same in each replay.
        clock = SimpleNamespace(monotonic=time.monotonic, monotonic_ns=lambda: 77)
        for module in (inbox_module, sleeper, publisher_module, room_module, sender_module):
            monkeypatch.setattr(module, "fence", self.fence)
        for module in (sleeper, publisher_module, sender_module):
            monkeypatch.setattr(module, "time", clock)
        # How often it looks depends on a clock; it only reads, and then does what is tested here.
        monkeypatch.setattr(Looking, "look", lambda *_: False)

    def fence(self) -> None:
        if self.fences:
            self.cpu.fence()

    def actor(self, run: Callable[[], object]) -> Actor:
        def on(cpu: Processor) -> None:
            self.cpu = cpu
            run()

        return on

    def memory(self, inbox_id: int = 0) -> Memory:
        coarse_from = layout.PAGE if self.coarse else None  # where the rings begin
        return Memory(self.cpu, inbox_id * INBOX_WORDS, coarse_from)

    # --- what the parts of aembus are given ---------------------------------------------------

    def inbox(self, inbox_id: int, slots: int) -> Inbox:
        segment = Segment(self.memory(inbox_id), slots, self.ring_bytes)
        return Inbox(cast(Any, segment), Bell(self.cpu, inbox_id))

    def peer(self, inbox_id: int, slots: int, own_slot: int) -> Peer:
        # As Peer.__init__ does, which opens the shared names.
        peer = Peer.__new__(Peer)
        segment = Segment(self.memory(inbox_id), slots, self.ring_bytes)
        peer.slot = peer.inbox_id = inbox_id
        peer._own_slot, peer._own_incarnation = own_slot, own_slot + 100
        peer._segment = cast(Any, segment)
        peer._words = cast(memoryview, segment.words)
        peer._ringer = BellRinger(self, inbox_id)
        peer._lanes = [None] * layout.LANE_CLASSES
        return peer

    def sender(self, slot: int, wait: Callable[..., bool], *peers: Peer) -> Sender:
        members = [[number, 1, number, "client", "", 0, "running"] for number in range(3)]
        document = {"members": members, "points": {POINT: [[EVENT_ID, 0, {}]]}, "services": []}
        word = RegistryReader.generation_word
        reader = SimpleNamespace(words=[1] * (word + 1), read=lambda: (1, document))
        reader.generation_word = word
        sender = Sender("bus", "nonce", slot, 1, cast(Any, reader), wait)
        sender._gate.lock = cast(Any, Lock(self))
        sender.peers.update({peer.slot: peer for peer in peers})
        return sender

    def runner(self, inbox: Inbox, sender: Sender, handler: Callable[..., object]) -> Runner:
        struct = EventStruct(0, inbox, never, sender.ring, never, Answers(sender, waits=True))
        event = Event(POINT, handler, EventOptions(name=""))
        event.id = EVENT_ID
        struct.add(event)
        return Runner(struct, inbox, cast(Any, None), never)


class Segment:
    """As much of a segment as inboxes and peers use."""

    def __init__(self, memory: Memory, slots: int, lane_bytes: int) -> None:
        self.memory, self.words = memory, memory.cast("Q")
        self.slots, self.lane_bytes = slots, lane_bytes

    def reserve(self, offset: int, size_bytes: int) -> None: ...


class Bell:
    """A semaphore without a time-out."""

    kind = layout.BELL_SEMAPHORE

    def __init__(self, cpu: Processor, semaphore: int) -> None:
        self._cpu, self._semaphore = cpu, semaphore

    def timed_wait(self, timeout_s: float) -> bool:
        self._cpu.wait(self._semaphore)
        return True

    def post(self) -> None:
        self._cpu.post(self._semaphore)

    def drain(self) -> int:
        posts = 0
        while self._cpu.count(self._semaphore):
            posts += self._cpu.try_wait(self._semaphore)
        return posts

    def close(self) -> None: ...


class BellRinger(Ringer):
    def __init__(self, machine: Machine, inbox_id: int) -> None:
        super().__init__("bus", "nonce", inbox_id)
        self._machine = machine

    def _post_semaphore(self) -> None:
        if self._inbox_id not in self._machine.deaf:
            self._machine.cpu.post(self._inbox_id)


class Lock:
    """The sender's lock, which has one thread: releasing it for good is a fence."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._depth = 0

    def acquire(self) -> None:
        self._depth += 1

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._machine.fence()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return self._depth > 0


def _pack_header(memory: Memory, at: int, *fields: int) -> None:
    memory.pack_into(layout.RECORD_HEADER, at, *fields)


def _unpack_header(memory: Memory, at: int) -> tuple[int, ...]:
    return memory.unpack_from(layout.RECORD_HEADER, at)


class Packers:
    """The packers of plain records: the header first, then the payload, as `claim` writes them."""

    def __getitem__(self, length: int) -> Callable[..., None]:
        return _pack_plain


def _pack_plain(memory: Memory, at: int, length: int, *parts: Any) -> None:
    *header, payload = parts
    memory.write(at, struct.pack("=I12sQQ28sI", length, *header))
    memory.write(at + layout.RECORD_HEADER_BYTES, payload)


def _copy(memory: Memory, at: int, size: int) -> bytes:
    copied = b""
    while len(copied) < size:
        header = _unpack_header(memory, at + len(copied))
        payload_at = at + len(copied) + layout.RECORD_HEADER_BYTES
        payload = memory[payload_at : payload_at + header[0]]
        copied += layout.RECORD_HEADER.pack(*header) + payload
        copied += bytes(-len(copied) % layout.UNIT)
    return copied[:size]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without a fault."""
    return Machine(monkeypatch)


def explore(name: str, explorer: Explorer) -> Exploration:
    """Explore, and say how much that was."""
    began = time.perf_counter()
    found = explorer.explore()
    took_s = time.perf_counter() - began
    print(f"{name}: states={found.states}, schedules={found.schedules}, took_s={took_s:.1f}")
    return found


# --- the lane alone -------------------------------------------------------------------------------

CONTROL: Final = 0
RING: Final = layout.LANE_CONTROL_BYTES
LAPS_RECORDS: Final = 3  # one more than fit: the last goes where the first was


def payload_of(number: int) -> bytes:
    """Return a payload of two words that says twice which one it is."""
    return number.to_bytes(8, "little") * 2


class Lane:
    """One producer that sends what it finds room for, one consumer that looks a few times."""

    def __init__(self, machine: Machine, producer_class: type[LaneProducer]) -> None:
        self.machine = machine
        self.producer_class = producer_class

    def produce(self) -> None:
        memory = cast(memoryview, self.machine.memory())
        lane = self.producer_class(memory, CONTROL, RING, RING_BYTES, 0, 0)
        number = 1
        for _ in range(LAPS_RECORDS + 1):
            if lane.claim(payload_of(number), layout.KIND_JOB, 0, number, 0, 0, 0, 0, 0):
                lane.commit()
                number += 1
            if number > LAPS_RECORDS:
                return

    def consume(self) -> None:
        memory = cast(memoryview, self.machine.memory())
        lane = LaneConsumer(memory, CONTROL, RING, RING_BYTES)
        number = 1
        for _ in range(LAPS_RECORDS + 1):
            record = lane.take()
            if record is not None:
                assert (record.sequence, record.event_id) == (number, number)
                assert record.payload == payload_of(number), record.payload
                lane.start(record)
                lane.done(record)
                number += 1

    def actors(self) -> dict[str, Actor]:
        machine = self.machine
        return {"producer": machine.actor(self.produce), "consumer": machine.actor(self.consume)}


class TailFirst(LaneProducer):
    """A producer that publishes first and writes afterwards."""

    def claim(self, payload: bytes, *fields: int) -> bool:
        memory = cast(Memory, self._memory)
        late: list[tuple[int, bytes]] = []
        self._memory = cast(memoryview, _Late(late))
        try:
            if not super().claim(payload, *fields):
                return False
        finally:
            self._memory = cast(memoryview, memory)
        self.commit()
        for begin, data in late:
            memory.write(begin, data)
        return True


class _Late(Memory):
    def __init__(self, writes: list[tuple[int, bytes]]) -> None:
        super().__init__(Processor(()))
        self._writes = writes

    def write(self, begin: int, data: bytes) -> None:
        self._writes.append((begin, data))


def test_records_are_whole_and_in_order_under_every_schedule(machine: Machine) -> None:
    """Over more than a lap, nothing that is taken is torn, out of order, or overwritten."""
    found = explore("lane", Explorer(Lane(machine, LaneProducer).actors()))
    assert found.violation is None, str(found.violation)
    assert found.schedules > 1000


def test_a_tail_stored_too_early_is_found(machine: Machine) -> None:
    """The exploration finds the schedule that tears a record, if `tail` comes first."""
    found = explore("tail first", Explorer(Lane(machine, TailFirst).actors()))
    assert found.violation is not None


# --- the doorbell ---------------------------------------------------------------------------------


class Doorbell:
    """Senders that activate, and an owner that sleeps when there is nothing to do."""

    def __init__(self, machine: Machine, *, senders: int, jobs: int, opened: bool = False) -> None:
        self.machine = machine
        machine.ring_bytes = 2 * RING_BYTES  # so that the second job goes the short way
        self.senders = senders
        self.jobs = jobs
        self.opened = opened  # have the lanes been opened before?

    def send(self, slot: int) -> None:
        machine = self.machine
        peer = machine.peer(0, self.senders, slot)
        sender = machine.sender(slot, never, peer)
        if self.opened:
            control = layout.lane_control_offset(self.senders, slot)
            ring = layout.ring_offset(self.senders, machine.ring_bytes, slot)
            memory = cast(memoryview, machine.memory())
            peer._lanes[0] = LaneProducer(memory, control, ring, machine.ring_bytes, slot, 0)
        route = sender.route(POINT)
        for number in range(self.jobs):
            assert sender.try_activate(route, encode((slot, number)), IN_TURN) == 1

    def send_in_refresh(self) -> None:
        # As a signal handler does that comes while this thread holds the lock.
        machine = self.machine
        sender = machine.sender(0, never, machine.peer(0, self.senders, 0))
        route = sender.route(POINT)
        for number in range(self.jobs):
            with sender._gate.lock:
                assert sender.try_activate(route, encode((0, number)), IN_TURN) == 1

    def receive(self) -> None:
        machine = self.machine
        inbox = machine.inbox(0, self.senders)
        due = {slot: iter(range(self.jobs)) for slot in range(self.senders)}
        left = self.senders * self.jobs

        def handle(event: Event, slot: int, number: int) -> None:
            nonlocal left
            assert number == next(due[slot])
            left -= 1

        runner = machine.runner(inbox, machine.sender(9, never), handle)
        while left:
            if not runner._event_struct.deliver():
                assert inbox.wait(inbox.has_jobs, FOREVER_S)

    def actors(self) -> dict[str, Actor]:
        actors = {"owner": self.machine.actor(self.receive)}
        for slot in range(self.senders):
            actors[f"sender {slot}"] = self.machine.actor(functools.partial(self.send, slot))
        return actors


def test_no_schedule_leaves_a_job_with_a_sleeper(machine: Machine) -> None:
    """The owner never waits for ever with a job in its inbox, from the opening of the door on."""
    found = explore("doorbell", Explorer(Doorbell(machine, senders=1, jobs=2).actors()))
    assert found.violation is None, str(found.violation)
    assert found.schedules > 1000


def test_two_senders_at_one_doorbell_lose_nothing(machine: Machine) -> None:
    """Two producers may post, or leave it to each other, in any order."""
    machine.coarse = True
    actors = Doorbell(machine, senders=2, jobs=1, opened=True).actors()
    open_doors = {layout.DOORS // 8: layout.DOOR_OPEN * 0x0101}
    found = explore("two senders", Explorer(actors, memory=open_doors, reduced=True))
    assert found.violation is None, str(found.violation)


def test_a_signal_handler_in_the_midst_of_a_refresh_loses_nothing(machine: Machine) -> None:
    """An activation fences for itself: releasing a lock that is held further out is no fence."""
    doorbell = Doorbell(machine, senders=1, jobs=2)
    actors = doorbell.actors()
    actors["sender 0"] = machine.actor(doorbell.send_in_refresh)
    found = explore("in a refresh", Explorer(actors, reduced=True))
    assert found.violation is None, str(found.violation)


@pytest.mark.parametrize(("fences", "deaf"), [(False, ()), (True, (0,))])
def test_a_doorbell_with_a_fault_is_found(
    machine: Machine, fences: bool, deaf: tuple[int, ...]
) -> None:
    """Without the fences, or without the post, the exploration finds a sleeper with a job."""
    machine.fences, machine.deaf = fences, set(deaf)
    actors = Doorbell(machine, senders=1, jobs=1).actors()
    found = explore(f"doorbell, fences={fences}, deaf={deaf}", Explorer(actors))
    assert found.violation is not None
    assert "owner: Operation(verb='wait', number=0)" in found.violation.what


# --- waiting for room -----------------------------------------------------------------------------


class Room:
    """A sender with one job too many for a lane that is full, and the lane's owner at work."""

    OWNER, SENDER = 0, 1  # slots, and numbers of the inboxes and their semaphores
    FULL = 2  # records

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def send(self) -> None:
        machine = self.machine
        inbox = machine.inbox(self.SENDER, 2)
        sender = machine.sender(self.SENDER, inbox.wait, machine.peer(self.OWNER, 2, self.SENDER))
        route = sender.route(POINT)
        assert sender.activate(route, encode((self.FULL,)), IN_TURN, FOREVER_S) == 1

    def receive(self) -> None:
        machine = self.machine
        inbox = machine.inbox(self.OWNER, 2)
        sender = machine.sender(self.OWNER, never, machine.peer(self.SENDER, 2, self.OWNER))
        due = iter(range(self.FULL + 1))
        left = self.FULL + 1

        def handle(event: Event, number: int) -> None:
            nonlocal left
            assert number == next(due)
            left -= 1

        runner = machine.runner(inbox, sender, handle)
        while left:
            if not runner._deliver():
                assert inbox.wait(runner.has_work, FOREVER_S)

    def memory(self) -> dict[int, int]:
        """Return the words of the owner's inbox, its lane full."""
        memory = memoryview(bytearray(layout.inbox_bytes(2, RING_BYTES)))
        control = layout.lane_control_offset(2, self.SENDER)
        ring = layout.ring_offset(2, RING_BYTES, self.SENDER)
        with pytest.MonkeyPatch.context() as plain:
            plain.setattr(lane_producer, "_pack_header", layout.RECORD_HEADER.pack_into)
            lane = LaneProducer(memory, control, ring, RING_BYTES, self.SENDER, 0)
            for number in range(self.FULL):
                assert lane.claim(encode((number,)), layout.KIND_JOB, 0, EVENT_ID, 0, 0, 0, 0, 0)
            assert not lane.claim(b"", layout.KIND_JOB, 0, EVENT_ID, 0, 0, 0, 0, 0)
            lane.commit()
        memory[layout.DOORS + self.SENDER] = layout.DOOR_OPEN
        return {word: value for word, value in enumerate(memory.cast("Q")) if value}

    def actors(self) -> dict[str, Actor]:
        machine = self.machine
        return {"sender": machine.actor(self.send), "owner": machine.actor(self.receive)}


def test_no_schedule_leaves_a_sender_waiting_for_room_that_there_is(machine: Machine) -> None:
    """A sender that waits at a full lane is woken when half of it is free, whatever the order."""
    room = Room(machine)
    explorer = Explorer(room.actors(), memory=room.memory(), semaphores=2, reduced=True)
    found = explore("room", explorer)
    assert found.violation is None, str(found.violation)


@pytest.mark.parametrize(("fences", "deaf"), [(False, ()), (True, (Room.SENDER,))])
def test_a_fault_in_waiting_for_room_is_found(
    machine: Machine, fences: bool, deaf: tuple[int, ...]
) -> None:
    """Without the fences, or without the post, the exploration finds a sender that waits on."""
    machine.fences, machine.deaf = fences, set(deaf)
    room = Room(machine)
    explorer = Explorer(room.actors(), memory=room.memory(), semaphores=2, reduced=True)
    found = explore(f"room, fences={fences}, deaf={deaf}", explorer)
    assert found.violation is not None
    assert "sender: Operation(verb='wait', number=1)" in found.violation.what
