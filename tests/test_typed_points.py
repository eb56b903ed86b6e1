from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest

import aembus
from aembus.typed import Shape


class Media(enum.Enum):
    AUDIO = "audio"
    VIDEO = "video"


@dataclass
class Party:
    name: str
    port: int | None = None


@dataclass
class CallSetup:
    call_id: str
    caller: Party
    media: list[Media] = field(default_factory=list)
    at: dt.datetime | None = None
    price: Decimal = Decimal(0)
    hops: tuple[int, str] = (0, "")
    via: tuple[Party, ...] = ()
    tags: frozenset[str] = frozenset()
    seen: dict[str, Party] = field(default_factory=dict)
    way: Literal["in", "out"] = "in"
    answer: CallSetup | None = None
    rest: Any = None
    share: float = 0.0


FULL = CallSetup(
    "c1",
    Party("alice", 5060),
    [Media.AUDIO, Media.VIDEO],
    dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
    Decimal("0.10"),
    (3, "x"),
    (Party("p"), Party("q", 1)),
    frozenset({"a", "b"}),
    {"k": Party("k")},
    "out",
    CallSetup("c0", Party("bob")),
    [1, {"two": 3}],
    1,
)


@pytest.fixture
def bus(bus_name: str, tmp_path: Path) -> Iterator[str]:
    """A bus without workers; its name."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path):
        yield bus_name


def test_handlers_get_the_instance(bus: str) -> None:
    """Nested dataclasses, enums, optional and repeated fields arrive in another member as sent."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        seen: list[tuple[str, CallSetup]] = []

        @receiver.on(receiver.point("call.setup", CallSetup), group="calls")
        def setup(event: aembus.Event, call: CallSetup) -> None:
            seen.append((event.point, call))

        point = sender.point("call.setup", CallSetup)
        assert point.activate(FULL, key="c1") == 1
        assert point.try_activate(CallSetup("c2", Party("b")))
        while len(seen) < 2:
            assert receiver.poll(5.0)
        assert seen == [("call.setup", FULL), ("call.setup", CallSetup("c2", Party("b")))]
        assert "setup" in receiver.events[0].name


def test_untyped_ends_get_and_give_a_map(bus: str) -> None:
    """A typed and an untyped program can share a point."""
    with aembus.connect(bus) as member:
        typed: list[Party] = []
        plain: list[object] = []
        member.register(
            member.point("p", Party), lambda event, party: typed.append(party), name="typed"
        )
        member.register("p", lambda event, party: plain.append(party), name="plain")
        member.activate("p", {"name": "x"})
        member.point("p", Party).activate(Party("y", 2))
        while len(typed) + len(plain) < 4:
            assert member.poll(5.0)
        assert typed == [Party("x"), Party("y", 2)]
        assert plain == [{"name": "x"}, {"name": "y", "port": 2}]


def test_what_does_not_fit_is_sent_to_nobody(bus: str) -> None:
    """The activator gets the point, the class and the field; the inbox stays empty."""
    with aembus.connect(bus) as member:
        member.register("p", lambda event, party: None)
        wrong: Any = Party("x", "5060")  # type: ignore[arg-type]
        with pytest.raises(
            aembus.DataMismatch, match=r"str '5060'; point='p', class=Party, field='port'"
        ):
            member.point("p", Party).activate(wrong)
        assert member.poll() == 0


def test_what_does_not_fit_on_arrival_is_a_dead_letter_that_says_so(
    bus: str, tmp_path: Path
) -> None:
    """The handler is not called, and the next job is delivered."""
    with aembus.connect(bus) as member:
        seen: list[Party] = []
        member.register(member.point("p", Party), lambda event, party: seen.append(party))
        member.activate("p", {"name": "x", "prt": 1})
        member.activate("p", {"name": "y"})
        while not seen:
            assert member.poll(5.0)
        assert seen == [Party("y")]
        with aembus.DeadLetterBox(bus, state_directory=tmp_path) as box:
            (letter,) = box.list(point="p")
    assert "DataMismatch" in letter["detail"]
    assert "an extra field ['prt']; point='p', class=Party" in letter["detail"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (({},), r"a value for \['call_id', 'caller'\]"),
        ((), "0 arguments"),
        (("c1", "alice"), "2 arguments"),
        ((5,), "a map of the fields of CallSetup was expected, and not int 5"),
        (({"call_id": 1, "caller": {"name": "a"}},), "str was expected.*field='call_id'"),
        (({"call_id": "1", "caller": {}},), r"\['name'\].*field='caller'"),
        (({"call_id": "1", "caller": {"name": "a", "port": True}},), "field='caller.port'"),
        (
            ({"call_id": "1", "caller": {"name": "a"}, "media": ["AUDIO", "TEXT"]},),
            r"one of \['AUDIO', 'VIDEO'\].*field='media\[1\]'",
        ),
        (
            ({"call_id": "1", "caller": {"name": "a"}, "seen": {"k": {"name": 1}}},),
            r"""field="seen\['k'\].name""",
        ),
        (({"call_id": "1", "caller": {"name": "a"}, "way": "up"},), "field='way'"),
        (({"call_id": "1", "caller": {"name": "a"}, "hops": [1]},), "field='hops'"),
    ],
)
def test_an_arrival_that_does_not_fit_names_the_field(data: tuple[Any, ...], said: str) -> None:
    """Missing, extra and wrong fields are told by their path."""
    with pytest.raises(aembus.DataMismatch, match=said):
        Shape("p", CallSetup).from_data(data)


def test_what_cannot_be_checked_is_refused_when_the_point_is_made() -> None:
    """Not at the first job."""

    @dataclass
    class Odd:
        thing: complex

    @dataclass
    class Either:
        one: Media | Party | CallSetup

    @dataclass
    class Word:
        one: str | Media

    @dataclass
    class Map:
        one: dict[str, int] | Party

    for ambiguous in (Word, Map):
        with pytest.raises(TypeError, match="field='one'"):
            Shape("p", ambiguous)
    with pytest.raises(TypeError, match=r"point='p', class=.*Odd, field='thing'"):
        Shape("p", Odd)
    with pytest.raises(TypeError, match="field='one'"):
        Shape("p", Either)
    with pytest.raises(TypeError, match="takes a dataclass"):
        Shape("p", int)


@dataclass
class Table:
    seats: set[tuple[int, tuple[str, ...]]]
    prices: dict[tuple[int, Media | None], list[int]]
    both: frozenset[frozenset[int] | str]


def test_tuples_in_sets_and_as_keys_arrive_as_what_they_were(bus: str) -> None:
    """As they may be there in Python."""
    table = Table(
        {(1, ("a", "b")), (2, ())}, {(1, Media.VIDEO): [1], (2, None): []}, frozenset({"x"})
    )
    arrived: list[Table] = []
    with aembus.connect(bus) as member:
        point = member.point("table", Table)
        member.register(point, lambda event, data: arrived.append(data))
        point.activate(table)
        assert member.poll(5.0) == 1
    assert arrived == [table]


@dataclass(frozen=True)
class Seat:
    number: int


@pytest.mark.parametrize("hint", [set[Seat], dict[Seat, int], frozenset[tuple[Seat | None, int]]])
def test_what_travels_as_a_map_is_refused_where_it_must_be_hashed(hint: Any) -> None:
    """When the point is made, by a text that names the field."""
    cls = make_dataclass("Room", [("seats", hint)])
    with pytest.raises(TypeError, match=r"as keys of dicts nothing that .*field='seats'"):
        Shape("p", cls)


def test_a_field_with_a_default_may_be_added_on_one_side() -> None:
    """What an older sender does not know gets its default."""
    assert Shape("p", Party).from_data(({"name": "x"},)) == Party("x", None)


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Grant:
    rights: Right


@pytest.mark.parametrize("rights", [Right.READ, Right.READ | Right.WRITE, Right(0)])
def test_several_flags_arrive_as_what_they_were(rights: Right) -> None:
    """They are no member that could be named; what is none of the flags does not fit."""
    shape = Shape("p", Grant)
    assert shape.from_data((shape.to_data(Grant(rights)),)) == Grant(rights)
    with pytest.raises(aembus.DataMismatch, match="rights"):
        shape.from_data(({"rights": 8},))
