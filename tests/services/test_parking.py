"""Parking against a model of plain lists, and its promises one by one."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aembus.services.parking import Parking, ParkingStatistics

BYTES_MAX = 100
SLOTS = st.integers(1, 3)
SOURCES = st.integers(1, 4)


def always(_item: object) -> bool:
    """Find room for every item."""
    return True


def never(_item: object) -> bool:
    """Find room for no item."""
    return False


class ParkingMachine(RuleBasedStateMachine):
    """Each slot is a list; holding back is worked out from the whole list each time."""

    def __init__(self) -> None:
        super().__init__()
        self.parking = Parking(BYTES_MAX)
        self.parked: dict[int, list[tuple[int, int, int]]] = {1: [], 2: [], 3: []}
        self.held: dict[int, set[int]] = {1: set(), 2: set(), 3: set()}
        self.draining: set[int] = set()  # slots that were over the bound and not at half since
        self.forgotten: set[int] = set()  # items whose source was forgotten since
        self.items = 0
        self.peak = 0

    def size_bytes(self, slot: int) -> int:
        return sum(size_bytes for _, size_bytes, _ in self.parked[slot])

    def congested(self, source: int) -> bool:
        return any(source in held for held in self.held.values())

    @rule(slot=SLOTS, size_bytes=st.integers(0, 70), source=SOURCES)
    def park(self, slot: int, size_bytes: int, source: int) -> None:
        self.items += 1
        self.parking.park(slot, self.items, size_bytes, source)
        self.parked[slot].append((self.items, size_bytes, source))
        self.peak = max(self.peak, sum(map(self.size_bytes, self.parked)))
        if self.size_bytes(slot) > BYTES_MAX:
            known = [i for i in self.parked[slot] if i[0] not in self.forgotten]
            self.held[slot] |= {parked_by for _, _, parked_by in known}
            self.draining.add(slot)
        elif slot in self.draining:
            self.held[slot].add(source)

    @rule(slot=SLOTS, room=st.integers(0, 5))
    def flush(self, slot: int, room: int) -> None:
        sent: list[int] = []

        def try_send(item: int) -> bool:
            if len(sent) < room:
                sent.append(item)
                return True
            return False

        before = {source for source in range(5) if self.congested(source)}
        resumed = self.parking.flush(slot, try_send)
        assert sent == [item for item, _, _ in self.parked[slot][:room]]
        del self.parked[slot][:room]
        if self.size_bytes(slot) <= BYTES_MAX // 2:
            self.held[slot].clear()
            self.draining.discard(slot)
        assert resumed == sorted(source for source in before if not self.congested(source))

    @rule(slot=SLOTS)
    def take_all(self, slot: int) -> None:
        assert self.parking.take_all(slot) == [item for item, _, _ in self.parked[slot]]
        self.parked[slot].clear()

    @rule(source=SOURCES)
    def forget_source(self, source: int) -> None:
        self.parking.forget_source(source)
        for held in self.held.values():
            held.discard(source)
        for parked in self.parked.values():
            self.forgotten |= {item for item, _, parked_by in parked if parked_by == source}

    @invariant()
    def agrees(self) -> None:
        occupied = {slot for slot, parked in self.parked.items() if parked}
        assert {slot for slot in self.parked if self.parking.is_parked(slot)} == occupied
        assert set(self.parking.slots()) >= occupied
        assert len(self.parking) == sum(map(len, self.parked.values()))
        assert self.parking.statistics() == ParkingStatistics(
            len(self.parking), sum(map(self.size_bytes, self.parked)), len(occupied), self.peak
        )
        for source in range(5):
            assert self.parking.congested(source) == self.congested(source)

    @invariant()
    def whoever_waits_is_told_by_a_flush_of_all_slots(self) -> None:
        listed = set(self.parking.slots())
        assert all(slot in listed for slot, held in self.held.items() if held)


TestParkingMachine = ParkingMachine.TestCase
TestParkingMachine.settings = settings(stateful_step_count=40)


def test_items_leave_in_the_order_they_came() -> None:
    """A flush sends from the front and stops at the first item that finds no room."""
    parking = Parking(BYTES_MAX)
    for item in "abcd":
        parking.park(1, item, 1, source=9)
    sent: list[str] = []

    def send_two(item: str) -> bool:
        if len(sent) == 2:
            return False
        sent.append(item)
        return True

    parking.flush(1, send_two)
    assert sent == ["a", "b"]
    assert parking.take_all(1) == ["c", "d"]
    assert not parking.is_parked(1)


def test_a_full_slot_holds_up_no_other() -> None:
    """What is parked for one slot neither blocks nor congests the traffic of another."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "stuck", 500, source=9)
    parking.park(2, "on its way", 1, source=8)
    parking.flush(1, never)
    parking.flush(2, always)
    assert parking.is_parked(1)
    assert not parking.is_parked(2)
    assert not parking.congested(8)


def test_a_source_resumes_at_half() -> None:
    """A congested source may send again when its slot is down to half, and is named once."""
    parking = Parking(BYTES_MAX)
    for item in range(11):
        parking.park(1, item, 10, source=9)
        assert parking.congested(9) == (item == 10)
    assert parking.flush(1, lambda item: item < 5) == []  # 60 bytes stay
    assert parking.congested(9)
    assert parking.flush(1, lambda item: item < 6) == [9]  # 50 bytes stay
    assert not parking.congested(9)
    assert parking.flush(1, always) == []


def test_a_source_waits_for_all_its_slots() -> None:
    """One that is held back by two slots is named when the second one has room."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "a", 101, source=9)
    parking.park(2, "b", 101, source=9)
    assert parking.flush(1, always) == []
    assert parking.flush(2, always) == [9]


def test_a_newcomer_cannot_overtake_those_who_wait() -> None:
    """While a slot is on its way down to half, whoever parks there has to wait too."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "a", 60, source=1)
    parking.park(1, "b", 60, source=2)
    parking.flush(1, lambda item: item == "a")
    parking.park(1, "c", 1, source=3)
    assert [parking.congested(source) for source in (1, 2, 3)] == [True, True, True]
    assert parking.flush(1, always) == [1, 2, 3]


def test_a_source_that_parked_nothing_is_never_congested() -> None:
    """A source that the full slot knows nothing of goes on reading."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "a", 500, source=9)
    assert not parking.congested(8)


def test_a_forgotten_source_leaves_its_items() -> None:
    """When a connection closes, what was received is still sent, and nobody is told of room."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "a", 500, source=9)
    parking.forget_source(9)
    assert parking.congested(9) is False
    assert parking.is_parked(1)
    assert parking.flush(1, always) == []
    assert not parking.is_parked(1)


def test_what_waits_of_a_source_is_known_by_slot() -> None:
    """As long as it waits there, and for no other slot or source."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "a", 10, 1)
    parking.park(1, "b", 10, 2)
    parking.park(2, "c", 10, 2)
    waiting = [(slot, source) for slot in (1, 2, 3) for source in (1, 2, 3)]
    assert [w for w in waiting if parking.waits_for(*w)] == [(1, 1), (1, 2), (2, 2)]
    parking.flush(1, always)
    assert [w for w in waiting if parking.waits_for(*w)] == [(2, 2)]


def test_a_number_used_again_is_another_source() -> None:
    """What a forgotten source left behind does not count against the next one of its number."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "a", 60, source=9)
    parking.forget_source(9)
    parking.park(2, "b", 1, source=9)
    parking.park(1, "c", 60, source=8)
    assert not parking.congested(9)
    assert parking.congested(8)


def test_sources_of_a_slot_that_has_gone_are_told() -> None:
    """After `take_all` the slot stays listed until a flush has named whom it held back."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "a", 500, source=9)
    assert parking.take_all(1) == ["a"]
    assert parking.slots() == [1]
    assert parking.congested(9)
    assert parking.flush(1, never) == [9]
    assert parking.slots() == []
    assert not parking.congested(9)


def test_items_parked_while_sending_wait_for_the_next_flush() -> None:
    """A send that routes an item anew may park it again, even here, and the flush still ends."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "a", 10, source=9)

    def park_again(item: str) -> bool:
        parking.park(1, item + "'", 10, source=9)
        parking.park(2, item + "''", 10, source=9)
        return True

    parking.flush(1, park_again)
    assert parking.take_all(1) == ["a'"]
    assert parking.take_all(2) == ["a''"]


def test_a_send_that_raises_loses_nothing() -> None:
    """The item whose send failed with an exception stays the first one."""
    parking = Parking(BYTES_MAX)
    parking.park(1, "a", 10, source=9)
    parking.park(1, "b", 10, source=9)

    def fail(_item: str) -> bool:
        raise OSError("lane")

    with pytest.raises(OSError, match="lane"):
        parking.flush(1, fail)
    assert parking.take_all(1) == ["a", "b"]


def test_nothing_is_kept_of_what_has_left() -> None:
    """An empty parking knows no slots and no sources, whoever has been there."""
    parking = Parking(BYTES_MAX)
    for number in range(1000):
        parking.park(number % 7, number, number % 50, source=number)
    parking.park(8, "small", 1, source=2000)
    for slot in parking.slots():
        parking.flush(slot, always)
    assert parking.slots() == []
    assert parking._sources == {}
    assert len(parking) == 0


def test_parking_without_room_is_refused() -> None:
    """A bound of no bytes is an error that names it."""
    with pytest.raises(ValueError, match=r"bytes_max=0$"):
        Parking(0)
