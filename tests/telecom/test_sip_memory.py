from __future__ import annotations

from dataclasses import dataclass
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from examples.telecom.sip_memory import Memory


@dataclass(eq=False)
class Item:
    key: bytes
    forget_at: float


def test_a_record_is_kept_until_its_time() -> None:
    """A record is found until forget_at, and given back once when it is forgotten."""
    memory: Memory[Item] = Memory(10)
    item = Item(b"a", 5.0)
    assert memory.put(item) is None
    assert memory.next_at() == 5.0
    assert memory.forget(4.9) == []
    assert memory.get(b"a") is item
    assert memory.forget(5.0) == [item]
    assert memory.get(b"a") is None
    assert memory.forget(99.0) == []
    assert (len(memory), memory.next_at()) == (0, inf)


def test_a_later_time_counts() -> None:
    """A forget_at written into a record later on is honoured."""
    memory: Memory[Item] = Memory(10)
    item = Item(b"a", 5.0)
    memory.put(item)
    item.forget_at = 7.0
    assert memory.forget(6.0) == []
    assert memory.forget(7.0) == [item]


def test_a_record_in_place_of_another() -> None:
    """A record put under the same key takes the place of the older one and keeps its own time."""
    memory: Memory[Item] = Memory(10)
    memory.put(Item(b"a", 5.0))
    newer = Item(b"a", 8.0)
    memory.put(newer)
    assert memory.forget(6.0) == []
    assert memory.get(b"a") is newer
    assert len(memory) == 1


def test_the_limit() -> None:
    """Above the limit the record goes that would have been forgotten first."""
    memory: Memory[Item] = Memory(2)
    first, second = Item(b"a", 5.0), Item(b"b", 6.0)
    memory.put(first)
    memory.put(second)
    first.forget_at = 9.0
    assert memory.put(Item(b"c", 7.0)) is second
    assert len(memory) == 2


def test_replacing_does_not_pile_up() -> None:
    """Records replaced over and over take no more room than the limit allows for."""
    memory: Memory[Item] = Memory(4)
    for number in range(1000):
        memory.put(Item(b"a", 100.0 + number))
    assert len(memory._queue) <= 8
    assert [item.forget_at for item in memory] == [1099.0]


@given(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 9), st.booleans()),
        max_size=30,
    )
)
def test_against_a_plain_dict(steps: list[tuple[bytes, int, bool]]) -> None:
    """It holds what a dict would that is searched for old records at each step."""
    memory: Memory[Item] = Memory(100)
    model: dict[bytes, Item] = {}
    for now, (key, life, forgets) in enumerate(steps):
        item = Item(key, now + life)
        memory.put(item)
        model[key] = item
        if forgets:
            gone = {key for key, kept in model.items() if kept.forget_at <= now}
            assert {item.key for item in memory.forget(now)} == gone
            for key in gone:
                del model[key]
        assert {item.key: item for item in memory} == model
