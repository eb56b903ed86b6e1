"""Framers: where the stream is cut, however its bytes arrive, and how its faults are told."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aembus.services.framing import (
    Answer,
    Framer,
    FramingError,
    LengthFramer,
    LineFramer,
    Message,
    RawFramer,
    Resumable,
    load_framer,
)

MESSAGE_BYTES_MAX = 6


def feed_like_the_service(framer: Framer, pieces: list[bytes]) -> tuple[list[bytes], str | None]:
    """Return the messages that come, and the text of the fault that ends the stream, if any."""
    got: list[bytes] = []
    try:
        for piece in pieces:
            data = piece
            while messages := framer.feed(data):
                got += [message.data for message in messages]
                data = b""
    except FramingError as error:
        return got, str(error)
    return got, None


def lines_of(stream: bytes) -> tuple[list[bytes], bool]:
    """Say in the plainest way what LineFramer has to find: lines, and whether a fault follows."""
    lines: list[bytes] = []
    *ended, rest = stream.split(b"\n")
    for line in ended:
        line = line.removesuffix(b"\r")
        if len(line) > MESSAGE_BYTES_MAX:
            return lines, True
        lines.append(line)
    return lines, len(rest.removesuffix(b"\r")) > MESSAGE_BYTES_MAX


def prefix_all(messages: list[bytes]) -> bytes:
    """Return messages as LengthFramer wants them."""
    return b"".join(len(message).to_bytes(4, "big") + message for message in messages)


def prefixed_of(stream: bytes) -> tuple[list[bytes], bool]:
    """The same for LengthFramer."""
    messages: list[bytes] = []
    while len(stream) >= 4:
        size_bytes = int.from_bytes(stream[:4], "big")
        if size_bytes > MESSAGE_BYTES_MAX:
            return messages, True
        if len(stream) < 4 + size_bytes:
            break
        messages.append(stream[4 : 4 + size_bytes])
        stream = stream[4 + size_bytes :]
    return messages, False


def length_prefixed(data: bytes) -> bytes:
    """Make a message of LengthFramer's."""
    return len(data).to_bytes(4, "big") + data


LINE_STREAMS = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"bcdef", b"ghijkl"])).map(
    b"".join
)
LENGTH_STREAMS = st.lists(
    st.one_of(
        st.binary(max_size=MESSAGE_BYTES_MAX).map(length_prefixed),
        st.binary(max_size=MESSAGE_BYTES_MAX + 1).map(length_prefixed),
        st.sampled_from([b"\0", b"\0\0\0\1", b"\xff"]),
    ),
    max_size=8,
).map(b"".join)


@st.composite
def cut(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """A stream, and the pieces that it arrives in."""
    stream = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    ends = [*cuts, len(stream)]
    return stream, [stream[a:b] for a, b in zip([0, *cuts], ends, strict=True)]


@given(cut(LINE_STREAMS))
def test_lines_do_not_depend_on_how_the_bytes_arrive(stream: tuple[bytes, list[bytes]]) -> None:
    """Whole, in pieces or byte by byte, the same lines come, and the same fault after them."""
    whole, pieces = stream
    lines, fault = lines_of(whole)
    for arriving in ([whole], pieces, [whole[i : i + 1] for i in range(len(whole))]):
        got, text = feed_like_the_service(LineFramer(MESSAGE_BYTES_MAX), arriving)
        assert got == lines
        assert (text is not None) == fault


@given(cut(LENGTH_STREAMS))
def test_lengths_do_not_depend_on_how_the_bytes_arrive(stream: tuple[bytes, list[bytes]]) -> None:
    """Whole, in pieces or byte by byte, the same messages come, and the same fault after them."""
    whole, pieces = stream
    messages, fault = prefixed_of(whole)
    for arriving in ([whole], pieces, [whole[i : i + 1] for i in range(len(whole))]):
        got, text = feed_like_the_service(LengthFramer(MESSAGE_BYTES_MAX), arriving)
        assert got == messages
        assert (text is not None) == fault


@given(st.lists(st.binary(max_size=20)))
def test_raw_loses_and_adds_nothing(pieces: list[bytes]) -> None:
    """The raw messages are the stream, none of them empty or larger than the limit."""
    got, text = feed_like_the_service(RawFramer(MESSAGE_BYTES_MAX), pieces)
    assert b"".join(got) == b"".join(pieces)
    assert all(0 < len(message) <= MESSAGE_BYTES_MAX for message in got)
    assert text is None


def test_raw_makes_one_message_of_what_arrives_together() -> None:
    """What fits arrives as it is; only what is larger than the limit is cut."""
    framer = RawFramer(4)
    assert framer.feed(b"abcd") == (Message(b"abcd"),)
    assert framer.feed(b"abcdefghi") == [Message(b"abcd"), Message(b"efgh"), Message(b"i")]
    assert framer.feed(b"") == ()


@pytest.mark.parametrize(
    ("framer", "head"),
    [(LineFramer(1 << 21), b""), (LengthFramer(1 << 21), (1 << 21).to_bytes(4, "big"))],
)
def test_one_byte_more_copies_nothing(framer: Framer, head: bytes) -> None:
    """What has arrived of a message is not copied again for each piece that follows."""
    framer.feed(head + bytes(1 << 20))
    copied = []
    tracemalloc.start()
    try:
        for _ in range(10):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            framer.feed(b"x")
            _, peak = tracemalloc.get_traced_memory()
            copied.append(peak - before)
    finally:
        tracemalloc.stop()
    assert sorted(copied)[-2] < 10_000  # the buffer itself may have to grow once


def test_messages_before_a_fault_come_first() -> None:
    """The feed that meets a fault returns what was whole before it; the next one raises."""
    framer = LineFramer(3)
    assert framer.feed(b"one\ntwo\nthree\nfour\n") == [Message(b"one"), Message(b"two")]
    with pytest.raises(FramingError, match=r"message_bytes_max=3$"):
        framer.feed(b"")


@pytest.mark.parametrize(
    ("framer", "bad", "good"),
    [(LineFramer(3), b"three\n", b"one\n"), (LengthFramer(3), b"\0\0\0\4", b"\0\0\0\1a")],
)
def test_after_a_fault_nothing_else_comes(framer: Framer, bad: bytes, good: bytes) -> None:
    """A stream that has lost its sense does not find it again."""
    for data in (bad, good, b""):
        with pytest.raises(FramingError):
            framer.feed(data)


def test_a_length_too_large_is_told_before_its_message_arrives() -> None:
    """Four bytes suffice to refuse a message, and the text names both values."""
    with pytest.raises(FramingError, match=r"message_bytes_max=10, size_bytes=4294967295$"):
        LengthFramer(10).feed(b"\xff\xff\xff\xff")


def test_a_line_too_long_is_told_before_it_ends() -> None:
    """A line without an end is refused when it has grown too long, not kept for ever."""
    framer = LineFramer(3)
    assert not framer.feed(b"abc")
    with pytest.raises(FramingError):
        framer.feed(b"d")


def test_the_end_of_a_line_takes_no_room() -> None:
    """A line of the greatest size may end in either way, in any pieces."""
    framer = LineFramer(3)
    pieces = [b"abc\r", b"\ndef", b"\n"]
    assert feed_like_the_service(framer, pieces) == ([b"abc", b"def"], None)


def test_only_one_return_is_stripped() -> None:
    """A return that is not the last byte before the end belongs to the line."""
    assert LineFramer(9).feed(b"a\rb\r\r\n") == [Message(b"a\rb\r")]


def test_an_error_carries_its_answer() -> None:
    """What the peer is to be told is part of the error, and nothing is said by default."""
    assert FramingError("too long", b"413\r\n").answer == b"413\r\n"
    assert FramingError("too long").answer == b""
    assert str(FramingError("too long", b"413\r\n")) == "too long"


@pytest.mark.parametrize("framer_class", [RawFramer, LineFramer, LengthFramer])
def test_a_limit_without_room_is_refused(framer_class: Callable[[int], Framer]) -> None:
    """No message fits into no bytes."""
    with pytest.raises(ValueError, match=r"message_bytes_max=0$"):
        framer_class(0)


# --- finding a framer ------------------------------------------------------------------------

OWN_FRAMER = """
from aembus.services.framing import Answer, Message

class Echo:
    def __init__(self, message_bytes_max):
        self.message_bytes_max = message_bytes_max

    def feed(self, data):
        return [Answer(b"ok"), Message(data, key=data[:1])]

class NoFramer:
    pass

def feed(data):
    return []
"""


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of a user's: one with a framer, one that fails, one that wants to end the process."""
    sources = {
        "framing_own": OWN_FRAMER,
        "framing_failing": "import framing_that_is_missing",
        "framing_leaving": "raise SystemExit(3)",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("spec", "framer_class"), [("raw", RawFramer), ("line", LineFramer), ("length", LengthFramer)]
)
def test_a_built_in_framer_is_found_by_its_name(spec: str, framer_class: type[Framer]) -> None:
    """The three built-in names give their classes."""
    assert load_framer(spec) is framer_class


@pytest.mark.usefixtures("own_modules")
def test_a_framer_of_your_own_is_found_by_its_path() -> None:
    """`module:Class` gives the class, which is made with the limit and may answer and route."""
    framer = load_framer("framing_own:Echo")(77)
    assert framer.feed(b"xyz") == [Answer(b"ok"), Message(b"xyz", key=b"x")]
    assert vars(framer) == {"message_bytes_max": 77}


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "no such framer"),
        ("lines", "no such framer"),
        (":Echo", "no such framer"),
        ("framing_own:", "no such framer"),
        ("framing_own:Missing", "has no 'Missing'"),
        ("framing_own:NoFramer", "has no feed method"),
        ("framing_own:feed", "is not a class"),
        ("framing_nowhere:Echo", "cannot be imported"),
        (".relative:Echo", "cannot be imported"),
    ],
)
def test_a_framer_that_is_none_is_refused(spec: str, problem: str) -> None:
    """The error says what is wrong, which framers there are, and what was asked for."""
    with pytest.raises(ValueError, match=problem) as caught:
        load_framer(spec)
    assert str(caught.value).endswith(
        f"; known are raw, line, length, module:Class; framer={spec!r}"
    )


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    ("spec", "cause", "text"),
    [
        (
            "framing_failing:Echo",
            ModuleNotFoundError,
            "ModuleNotFoundError: No module named 'framing_that_is_missing'",
        ),
        ("framing_leaving:Echo", SystemExit, "SystemExit: 3"),
    ],
)
def test_the_cause_of_a_failed_import_is_shown(
    spec: str, cause: type[BaseException], text: str
) -> None:
    """A module that fails while it is imported is named together with its own error."""
    with pytest.raises(ValueError, match="cannot be imported") as caught:
        load_framer(spec)
    assert isinstance(caught.value.__cause__, cause)
    assert text in str(caught.value)


@pytest.mark.parametrize("make", [RawFramer, LineFramer, LengthFramer])
@given(stream=st.binary(max_size=40) | st.lists(st.binary(max_size=6)).map(prefix_all),
       cut=st.integers(0, 40))  # fmt: skip
def test_another_framer_goes_on_where_one_stopped(
    make: Callable[[int], Resumable], stream: bytes, cut: int
) -> None:
    """What is unfinished, fed to a new framer, completes nothing, and the rest is cut the same."""
    whole, fault = feed_like_the_service(make(MESSAGE_BYTES_MAX), [stream[:cut], stream[cut:]])
    first = make(MESSAGE_BYTES_MAX)
    before, first_fault = feed_like_the_service(first, [stream[:cut]])
    if first_fault is not None:
        return
    second = make(MESSAGE_BYTES_MAX)
    assert feed_like_the_service(second, [first.unfinished()]) == ([], None)
    assert second.unfinished() == first.unfinished()
    after, second_fault = feed_like_the_service(second, [stream[cut:]])
    assert (before + after, second_fault) == (whole, fault)
