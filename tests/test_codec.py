from __future__ import annotations

import datetime as dt
import enum
import gc
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import msgpack
import pytest

import aembus
from aembus import codec
from aembus.testing import InProcessBus


@aembus.portable
class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@aembus.portable
class Level(enum.IntEnum):
    HIGH = 3


@aembus.portable
class Right(enum.Flag):
    READ = 1
    WRITE = 2


@aembus.portable
@dataclass(frozen=True)
class Inner:
    pair: tuple[int, tuple[str, ...]]
    level: Level


@aembus.portable
@dataclass
class Outer:
    inner: Inner
    colours: dict[Colour, list[Any]]


EAST = dt.timezone(dt.timedelta(hours=5, minutes=30))
INNER = Inner((1, ("a", "b")), Level.HIGH)
VALUES = [
    *(2**63, 2**64, -(2**63) - 1, 2**1000, -(2**1000)),
    dt.datetime(2024, 2, 29, 12, 30, 15, 123456),
    dt.datetime(2024, 2, 29, 12, 30, 15, tzinfo=EAST),
    dt.datetime(1, 1, 1, tzinfo=dt.UTC),
    dt.date(9999, 12, 31),
    dt.time(1, 2, 3, 4),
    dt.timedelta(days=-1, microseconds=5),
    Decimal("1.20"),
    {1, "two", (3, (4,))},
    frozenset({frozenset({1}), frozenset()}),
    {(1, (2, 3)): [1, [2]]},
    Colour.BLUE,
    Right.READ,
    Right.READ | Right.WRITE,
    Right(0),
    INNER,
    {INNER: {Colour.RED}},
    [Outer(INNER, {Colour.RED: [2**70, (1,)]})],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_not_plain_arrives_as_it_was(value: object) -> None:
    """Equal, and of the same type."""
    (arrived,) = codec.decode(codec.encode((value,)))
    assert arrived == value
    assert type(arrived) is type(value)


class Pair(NamedTuple):
    left: int
    right: int


@aembus.portable
@dataclass
class Box:
    content: list[Any]


def test_a_tuple_of_a_subclass_travels_in_a_dataclass() -> None:
    """As a tuple, as one of any class does."""
    value = Box([Pair(1, 2), {Pair(3, 4): ()}])
    (arrived,) = codec.decode(codec.encode((value,)))
    assert arrived == value
    assert [type(item) for item in (arrived.content[0], *arrived.content[1])] == [tuple, tuple]


def test_plain_data_is_plain_msgpack() -> None:
    """Other programs can read it, and a tuple arrives as a list."""
    data = (1, "two", b"three", [4.5, None], {"k": (True,)})
    assert codec.encode(data) == codec.encode_plain(data) == msgpack.packb(data)
    assert codec.decode(codec.encode(data)) == [1, "two", b"three", [4.5, None], {"k": [True]}]


class Mask(enum.IntFlag):
    LAST = 1 << 80


@pytest.mark.parametrize("value", [Mask.LAST, -Mask.LAST, Mask(1)], ids=repr)
def test_an_int_of_a_subclass_arrives_as_an_int(value: int) -> None:
    """However large it is."""
    (arrived,) = codec.decode(codec.encode((value,)))
    assert (type(arrived), arrived) == (int, int(value))
    assert codec.decode(codec.encode(({value: {value}},))) == [{int(value): {int(value)}}]


class Unknown:
    pass


@dataclass
class Undeclared:
    x: int = 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Unknown(), "Unknown"),
        ({"deep": [Unknown()]}, "Unknown"),
        (Undeclared(), "@aembus.portable.*Undeclared"),
        ({1j}, "builtins.complex"),
    ],
)
def test_what_cannot_be_sent_is_named(value: object, said: str) -> None:
    """The error names the type and says what to do."""
    with pytest.raises(TypeError, match=said):
        codec.encode((value,))
    assert codec.decode(codec.encode((1,))) == [1]  # and nothing of it is left


def test_a_class_that_is_not_known_here_is_named() -> None:
    """Nothing is imported on a job's word."""
    data = msgpack.packb(["os.system", {"command": "true"}])
    with pytest.raises(TypeError, match=r"does not know.*class='os.system'"):
        codec.decode(msgpack.packb([msgpack.ExtType(codec.EXT_DATACLASS, data)]))


def test_a_class_that_differs_here_is_named() -> None:
    """Fields and members that the receiver's class has not got are told."""
    name = f"{Inner.__module__}.Inner"
    data = msgpack.packb([name, {"pair": [1], "colour": 1}])
    with pytest.raises(TypeError, match=r"Inner.*sent=\['colour', 'pair'\]"):
        codec.decode(msgpack.packb([msgpack.ExtType(codec.EXT_DATACLASS, data)]))
    data = msgpack.packb([f"{Colour.__module__}.Colour", "GREEN"])
    with pytest.raises(TypeError, match=r"Colour.*sent='GREEN'"):
        codec.decode(msgpack.packb([msgpack.ExtType(codec.EXT_ENUM, data)]))


def test_numbers_of_the_application_arrive_as_they_are() -> None:
    """Aembus keeps 0 to 31; one of those that it does not know is an error."""
    mine = msgpack.ExtType(32, b"mine")
    assert codec.decode(codec.encode((mine,))) == [mine]
    with pytest.raises(ValueError, match="extension type 31"):
        codec.decode(msgpack.packb([msgpack.ExtType(31, b"")]))


def test_only_dataclasses_and_enums_are_portable() -> None:
    """Another class is refused when it is declared."""
    with pytest.raises(TypeError, match="Unknown"):
        aembus.portable(Unknown)


def test_threads_that_encode_at_once_do_not_mix() -> None:
    """What one thread sends does not turn up in what another one does."""
    interval = sys.getswitchinterval()
    mixed: list[object] = []

    def encode_often(value: object) -> None:
        for _ in range(3000):
            arrived = codec.decode(codec.encode([value, value]))
            if arrived != [value, value]:
                mixed.append(arrived)

    threads = [threading.Thread(target=encode_often, args=(v,)) for v in (VALUES[5], "plain")]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert mixed == []


class OwnItems(dict[str, int]):
    """Looks at its items in its own way."""

    def __init__(self, look: Callable[[], object]) -> None:
        super().__init__(x=1)
        self.look = look

    def items(self) -> Any:
        self.look()
        return super().items()


def test_what_is_encoded_may_encode() -> None:
    """Code of a subclass that runs in the middle finds none of what is being encoded."""
    inner = []
    own = OwnItems(lambda: inner.append(codec.encode(["inner"])))
    outer = codec.encode(["before", own, "after"])
    assert codec.decode(outer) == ["before", {"x": 1}, "after"]
    assert [codec.decode(data) for data in inner] == [["inner"]]


def test_what_is_activated_may_activate() -> None:
    """The same where an activation encodes by itself."""
    with InProcessBus() as bus:
        seen: list[tuple[object, ...]] = []
        bus.connect().register("p", lambda event, *data: seen.append(data))
        point = bus.connect().point("p")
        for _ in range(3):
            point.activate("before", OwnItems(lambda: point.activate("inner")), "after")
            bus.deliver()
        assert seen == [("inner",), ("before", {"x": 1}, "after")] * 3


def test_what_is_encoded_may_let_other_threads_encode() -> None:
    """Code of a subclass that waits for another thread, which encodes, does not mix the two."""
    inner = []

    def look() -> None:
        thread = threading.Thread(target=lambda: inner.append(codec.encode(["inner"])))
        thread.start()
        thread.join()

    assert codec.decode(codec.encode([OwnItems(look), "after"])) == [{"x": 1}, "after"]
    assert [codec.decode(data) for data in inner] == [["inner"]]


def test_a_finalizer_may_encode_in_the_middle() -> None:
    """The collector may run while what is not plain is refused, and finalizers with it."""
    inner = []

    class Encodes:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            inner.append(codec.encode(["inner"]))

    data = ["before", {1}]
    threshold = gc.get_threshold()
    gc.disable()
    Encodes()
    try:
        gc.set_threshold(1)
        gc.enable()
        outer = codec.encode(data)
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    gc.collect()  # where encoding does not run the collector
    assert codec.decode(outer) == data
    assert [codec.decode(data) for data in inner] == [["inner"]]
