"""What `activate` and `decode` do in C for plain data is what msgpack and Python do."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aembus import codec
from aembus.shm import layout
from tests.support.c_lane import lane_in_c
from tests.support.lanes import LaneMemory

lane_c = lane_in_c()

GENERATION: Final = 7
EVENT: Final = 5
LEFT: Final = "left to Python"  # what the Python function returns here
EDGES: Final = sorted(
    sign * (1 << bits) + more for bits in (5, 7, 8, 15, 16, 31, 32, 63) for sign in (1, -1)
    for more in (-1, 0, 1)
)  # fmt: skip

leaves = (
    st.none()
    | st.booleans()
    | st.sampled_from(EDGES)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(leaves, inner, max_size=20)
    ),
    max_leaves=20,
)
arguments = st.lists(values, max_size=20)


class Scene:
    """A point of one member, whose lane is ordinary memory."""

    def __init__(self) -> None:
        self.lane = LaneMemory(lane_c, 1 << 16)
        self.consumer = self.lane.consumer()
        registry = memoryview(bytearray(layout.REGISTRY_HALVES))
        registry.cast("Q")[layout.GENERATION // layout.WORD] = GENERATION
        inbox = memoryview(bytearray(512))
        group = [(self.lane.producer(), self, inbox, layout.SLEEPING, EVENT, False)]
        publisher = lane_c.Publisher(registry, layout.GENERATION, GENERATION, 0, [group])
        self._route = SimpleNamespace(publisher=publisher)

    @lane_c.PlainActivate  # type: ignore[untyped-decorator]
    def activate(
        self, *data: Any, key: Any = None, timeout: float = 1.0, ttl: float | None = None
    ) -> object:
        """Say that it was left to Python."""
        return LEFT

    @lane_c.PlainActivate  # type: ignore[untyped-decorator]
    def tell(self, *data: Any, key: Any = None) -> object:
        """Take fewer options."""
        return LEFT

    def take(self) -> Any:
        record = self.consumer.take()
        if record is not None:
            self.consumer.done(record)
        return record


def outcome(function: Callable[[bytes], Any], data: bytes) -> object:
    """Return what a function says to bytes, or which error it raises."""
    try:
        return repr(function(data))  # so that NaN equals itself, and 1 is not 1.0
    except Exception as error:
        return type(error), str(error)


@settings(max_examples=80, deadline=None)
@given(data=arguments)
@example(data=[bytes(255), bytes(256), bytes(1000), "x" * 31, "x" * 32, "x" * 255, "x" * 256])
@example(data=[[0] * 15, [0] * 16, dict.fromkeys(range(15)), dict.fromkeys(range(16))])
@example(data=[*EDGES[:15], float("inf"), -0.0])
def test_an_activation_writes_what_msgpack_makes(data: list[Any]) -> None:
    """What C encodes is msgpack's, byte for byte; what it leaves, it has not touched."""
    scene = Scene()
    jobs = scene.activate(*data)
    record = scene.take()
    if jobs == 1:
        assert record.payload == codec.encode_plain(data)
        assert (record.event_id, record.key_hash) == (EVENT, 0)
        assert codec.decode(record.payload) == codec.decode.__wrapped__(record.payload)  # type: ignore[attr-defined]
    else:
        assert (jobs, record) == (LEFT, None)


def test_plain_data_are_not_left_to_python() -> None:
    """Each plain type is one that C encodes; so the test above is not about nothing."""
    for value in (None, True, -(2**63), 2**63 - 1, 1.5, "ä", b"b", [1, (2,)], {1: {"k": None}}):
        assert Scene().activate(value) == 1, value


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [2**63, 2**64, Text("x"), bytearray(1), {1}, 1j, "\udc80", bytes(9000), [[[1j]]]],
    ids=repr,
)
def test_what_is_not_plain_is_left_to_python(value: object) -> None:
    """Whole, with nothing done: subclasses, large numbers, what cannot be sent, long data."""
    scene = Scene()
    assert scene.activate("before", value, key="k", timeout=2) == LEFT
    assert scene.take() is None
    assert scene.activate("x") == 1


def test_nesting_without_end_is_left_to_python() -> None:
    """A list in itself ends nowhere; msgpack says so."""
    endless: list[Any] = []
    endless.append(endless)
    assert Scene().activate(endless) == LEFT


@pytest.mark.parametrize("key", ["", "call-1", "ä", b"", b"bytes\0", "x" * 1000], ids=repr)
def test_a_key_is_hashed_as_python_does(key: str | bytes) -> None:
    """The same key picks the same member, whoever activates."""
    scene = Scene()
    assert scene.activate(1, key=key, timeout=3, ttl=None) == 1
    assert scene.take().key_hash == codec.key_hash(key)
    assert scene.activate(1, key=None) == 1
    assert scene.take().key_hash == 0


@pytest.mark.parametrize("options", [{"key": 5}, {"key": 1.5}, {"key": "\udc80"}, {"ttl": 5}])
def test_other_options_are_left_to_python(options: dict[str, Any]) -> None:
    """Keys that are numbers, what is no key, and a job that is not worth doing later."""
    scene = Scene()
    assert scene.activate(1, **options) == LEFT
    assert scene.take() is None


def test_a_wrong_keyword_is_told_by_the_function() -> None:
    """As for any function in Python."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        Scene().activate(1, other=2)
    with pytest.raises(TypeError):
        Scene.activate()


def test_a_keyword_that_the_function_has_not_is_told_by_it() -> None:
    """Also one that other functions have, and whatever its value."""
    scene = Scene()
    assert scene.tell(1, key="k") == 1
    assert scene.take().key_hash == codec.key_hash("k")
    for options in ({"timeout": 1.0}, {"ttl": None}, {"key": "k", "ttl": None}):
        with pytest.raises(TypeError, match=r"unexpected keyword argument '(timeout|ttl)'"):
            scene.tell(1, **options)
    assert scene.take() is None


def test_a_function_stays_recognizable() -> None:
    """Signature, name and documentation are the function's."""
    assert str(inspect.signature(Scene.activate)) == (
        "(self, *data: 'Any', key: 'Any' = None, timeout: 'float' = 1.0, "
        "ttl: 'float | None' = None) -> 'object'"
    )
    assert str(inspect.signature(Scene().activate)).startswith("(*data: 'Any', key")
    assert Scene.activate.__name__ == "activate"
    assert inspect.getdoc(Scene.activate) == "Say that it was left to Python."


def test_a_point_without_a_publisher_is_left_to_python() -> None:
    """Of another lane, none, or no point at all."""
    scene = Scene()
    for route in (SimpleNamespace(publisher=None), SimpleNamespace(publisher=object()), None):
        scene._route = route  # type: ignore[assignment]
        assert scene.activate(1) == LEFT
    assert Scene.activate(object(), 1) == LEFT


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_decoding_is_msgpacks_whatever_the_bytes(data: st.DataObject) -> None:
    """Whole, cut, changed or random: the same arguments, or the same error."""
    whole = codec.encode(data.draw(arguments))
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)))
    for payload in (whole, bytes(changed), bytes(changed[:cut]), whole + b"\xc0"):
        assert outcome(codec.decode, payload) == outcome(codec.decode.__wrapped__, payload)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\x90", b"\x91", b"\x90\xc0", b"\xdc\x00\x01\x05", b"\xdd\x00\x00\x00\x01\x05"),
        *(b"\x91\xca" + struct.pack(">f", 1.5), b"\x91\xc1", b"\x91\xd6\xff\0\0\0\0", b"\x05"),
        *(b"\x91\xdd\xff\xff\xff\xff", b"\x91\xdf\xff\xff\xff\xff", b"\x91\xdb\xff\xff\xff\xff"),
        *(b"\x91\x81\x90\x05", b"\x91\x81\x80\x05", b"\x91\xa1\xff", b"\x91\x81\xcb\x7f\xf8"),
        *(b"\x91" * 40 + b"\x90", b"\x91" * 2000 + b"\x90", b"\x91" + b"\x81\x01" * 40 + b"\x01"),
    ],
    ids=lambda payload: payload[:12].hex(),
)
def test_odd_payloads_are_decoded_as_python_does(payload: bytes) -> None:
    """Sizes that lie, what is missing, unhashable keys, deep nesting, rare types."""
    assert outcome(codec.decode, payload) == outcome(codec.decode.__wrapped__, payload)  # type: ignore[attr-defined]
