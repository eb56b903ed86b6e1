"""Pure: who may connect, and when to look at whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aembus.services.tcp_limits import REFUSED, REFUSED_PER_ADDRESS, STALE_KEPT, Census, Deadlines

NUMBERS = st.integers(0, 4)
TIMES = st.integers(0, 50)


class DeadlinesMachine(RuleBasedStateMachine):
    """Against a plain dictionary of the earliest time asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.deadlines = Deadlines()
        self.times: dict[int, int] = {}

    @rule(number=NUMBERS, at_ns=TIMES)
    def look_at(self, number: int, at_ns: int) -> None:
        self.deadlines.look_at(number, at_ns)
        self.times[number] = min(at_ns, self.times.get(number, at_ns))

    @rule(number=NUMBERS)
    def forget(self, number: int) -> None:
        self.deadlines.forget(number)
        self.times.pop(number, None)

    @rule(now_ns=TIMES)
    def take_due(self, now_ns: int) -> None:
        due = self.deadlines.take_due(now_ns)
        assert sorted(due) == sorted(n for n, at_ns in self.times.items() if at_ns <= now_ns)
        assert [self.times[n] for n in due] == sorted(self.times[n] for n in due)
        for number in due:
            del self.times[number]

    @invariant()
    def the_next_is_the_earliest(self) -> None:
        assert self.deadlines.next_ns() == min(self.times.values(), default=None)


TestDeadlinesMachine = DeadlinesMachine.TestCase


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", ""]))),
    st.integers(1, 4),
    st.none() | st.integers(1, 3),
)
def test_a_census_counts(
    steps: list[tuple[bool, str]], in_all_max: int, per_address_max: int | None
) -> None:
    """Nobody is counted in beyond a limit, who is refused says by which, and leaving makes room."""
    census = Census(in_all_max, per_address_max)
    inside: list[str] = []
    for enters, address in steps:
        if not enters:
            if inside:
                census.leave(inside.pop(0))
            continue
        refused_as = census.enter(address)
        if len(inside) >= in_all_max:
            assert refused_as == REFUSED
        elif per_address_max is not None and address and inside.count(address) >= per_address_max:
            assert refused_as == REFUSED_PER_ADDRESS
        else:
            assert refused_as is None
            inside.append(address)
        assert census.in_all == len(inside)


def test_nothing_is_kept_of_who_has_left() -> None:
    """A million addresses that came and went leave nothing behind."""
    census = Census(10, 2)
    for number in range(1000):
        assert census.enter(str(number)) is None
        census.leave(str(number))
    assert not census._per_address


def test_looks_that_nobody_wants_any_more_do_not_pile_up() -> None:
    """Connections that come and go leave nothing behind, and the others are looked at in time."""
    deadlines = Deadlines()
    deadlines.look_at(1, 1000)
    for number in range(2, 10_000):
        deadlines.look_at(number, 1000 + number)
        deadlines.look_at(number, 999)
        deadlines.forget(number)
    assert len(deadlines._heap) < 4 * STALE_KEPT
    assert deadlines.next_ns() == 1000
    assert deadlines.take_due(5000) == [1]
