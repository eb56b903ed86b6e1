from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from aembus.errors import BusBroken, CorruptSegment, OutOfSharedMemory
from aembus.shm import layout, names
from aembus.shm.registry import READS_MAX, ROLE, RegistryReader, RegistryWriter, break_registry
from tests.support.registry_writer import DOCUMENTS, HALF_BYTES, document, is_whole
from tests.support.running import ROOT

BODIES = layout.REGISTRY_HALVES + layout.REGISTRY_HALF_HEADER


@pytest.fixture
def name(bus_name: str) -> str:
    """The registry's name."""
    return names.shared_name(bus_name, names.new_nonce(), ROLE)


@pytest.fixture
def writer(name: str) -> Iterator[RegistryWriter]:
    """A registry with its first generation published."""
    found = RegistryWriter(name, HALF_BYTES)
    found.publish(document(1))
    yield found
    found.close()


@pytest.fixture
def reader(writer: RegistryWriter, name: str) -> Iterator[RegistryReader]:
    """The same registry, as a member sees it."""
    found = RegistryReader.open(name)
    yield found
    found.close()


def test_what_is_published_is_read(writer: RegistryWriter, reader: RegistryReader) -> None:
    """Each generation brings its document, and the reader sees the number change by one word."""
    for generation in range(2, 6):
        assert writer.publish(document(generation)) == generation
        assert reader.generation == reader.words[reader.generation_word] == generation
        assert reader.read() == (generation, document(generation))


def test_nobody_can_open_it_before_the_first_generation(name: str) -> None:
    """A registry is ready with its first document, so no member ever sees an empty one."""
    writer = RegistryWriter(name, HALF_BYTES)
    with pytest.raises(Exception, match="not ready"):
        RegistryReader.open(name)
    writer.publish({})
    reader = RegistryReader.open(name)
    assert reader.read() == (1, {})
    reader.close()
    writer.close()


def test_a_document_that_is_too_long_changes_nothing(
    writer: RegistryWriter, reader: RegistryReader
) -> None:
    """The current generation stays, its document whole, and the next one gets the next number."""
    room = HALF_BYTES - layout.REGISTRY_HALF_HEADER
    longest = {"filler": b"x" * (room - len(msgpack.packb({"filler": b"x" * 300})) + 300)}
    assert len(msgpack.packb(longest)) == room
    writer.publish(longest)
    too_long = {"filler": longest["filler"] + b"x"}
    with pytest.raises(OutOfSharedMemory, match=f"registry_bytes, need={room + 1}, room={room}"):
        writer.publish(too_long)
    assert reader.read() == (2, longest)
    assert writer.publish(document(3)) == 3
    assert reader.read() == (3, document(3))


def test_broken_raises_at_every_read(writer: RegistryWriter, reader: RegistryReader) -> None:
    """After `publish_broken` no document can be had any more."""
    writer.publish_broken()
    assert reader.generation == layout.GENERATION_BROKEN
    for _ in range(2):
        with pytest.raises(BusBroken):
            reader.read()


def test_a_registry_without_a_supervisor_can_be_broken(
    writer: RegistryWriter, reader: RegistryReader, name: str
) -> None:
    """`break_registry` does for a killed supervisor what it could not do itself."""
    break_registry(name)
    with pytest.raises(BusBroken):
        reader.read()


@pytest.mark.parametrize(
    ("half", "offset", "value"),
    [
        (1, 0, HALF_BYTES),  # the length: longer than a half
        (1, 0, (1 << 64) - 1),
        (1, 0, 3),
        (1, 8, 0),  # the checksum
        (1, 16, 0),  # the document
    ],
)
def test_a_damaged_document_is_corrupt(
    writer: RegistryWriter, reader: RegistryReader, half: int, offset: int, value: int
) -> None:
    """Damage is told as such, with the generation, and not taken for a document."""
    reader.words[(layout.REGISTRY_HALVES + half * HALF_BYTES + offset) // 8] = value
    with pytest.raises(CorruptSegment, match="checksum is wrong, generation=1"):
        reader.read()


def test_damage_in_the_other_half_is_nobodys_business(
    writer: RegistryWriter, reader: RegistryReader
) -> None:
    """Only the half of the current generation is looked at; the next one overwrites the other."""
    reader.words[BODIES // 8] = (1 << 64) - 1
    assert reader.read() == (1, document(1))
    writer.publish(document(2))
    assert reader.read() == (2, document(2))


def test_the_sizes_may_be_odd(name: str) -> None:
    """Any number of bytes for the document works, as the supervisor's `registry_bytes` may ask."""
    for half_bytes in range(1024, 1033):
        writer = RegistryWriter(name, half_bytes)
        for generation in range(1, 5):
            writer.publish(document(generation))
            reader = RegistryReader.open(name)
            assert reader.read() == (generation, document(generation)), half_bytes
            reader.close()
        writer.close()


# --- a writer that does not wait ------------------------------------------------------------------


def overtaken(monkeypatch: pytest.MonkeyPatch, publish: Callable[[], object]) -> None:
    """Run `publish` between each reader's look at the generation and its copy of the document."""
    copy = RegistryReader._copy

    def late(reader: RegistryReader, generation: int) -> Any:
        publish()
        return copy(reader, generation)

    monkeypatch.setattr(RegistryReader, "_copy", late)


def test_a_reader_that_is_overtaken_reads_again(
    writer: RegistryWriter, reader: RegistryReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document is never returned under the number of another one, whole though it may be."""
    due = [2, 3]

    def publish_due() -> None:
        while due:
            writer.publish(document(due.pop(0)))

    overtaken(monkeypatch, publish_due)
    assert reader.read() == (3, document(3))


def test_without_the_second_look_the_wrong_document_is_returned(
    writer: RegistryWriter, reader: RegistryReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test before this one can fail: it does if the generation is not read again."""

    class Careless(RegistryReader):
        generation = 1  # whatever is published meanwhile

    overtaken(monkeypatch, lambda: [writer.publish(document(g)) for g in (2, 3)])
    careless = Careless(reader._segment)
    assert careless.read() == (1, document(3))


def test_a_reader_does_not_follow_a_writer_for_ever(
    writer: RegistryWriter, reader: RegistryReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If every single copy is overtaken, the reader gives up with an error in the end."""
    overtaken(monkeypatch, lambda: writer.publish({}))
    with pytest.raises(CorruptSegment, match=f"reads={READS_MAX}, busy"):
        reader.read()
    assert reader.generation == 1 + READS_MAX


def test_no_wrong_document_while_another_process_publishes(name: str) -> None:
    """Beside a process that publishes as fast as it can, every document read is the right one."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.support.registry_writer", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    with writer:
        assert writer.stdout.readline() == b"ready\n"
        reader = RegistryReader.open(name)
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
        reads = overtaken_reads = generation = 0
        seen: set[int] = set()
        while generation < DOCUMENTS:
            reads += 1
            try:
                last, (generation, found) = generation, reader.read()
            except CorruptSegment as error:
                if "busy" not in str(error):  # a thousand copies, and each was overtaken
                    raise
                overtaken_reads += 1
                continue
            assert generation >= last
            assert is_whole(found, generation), found
            seen.add(generation)
        print(f"reads={reads}, overtaken={overtaken_reads}, documents seen={len(seen)}")
        assert len(seen) > 10
        reader.close()
        writer.stdin.close()
    assert writer.returncode == 0


def test_the_document_of_the_test_shows_when_it_is_mixed() -> None:
    """Documents that are put together from two are not taken for whole."""
    one, other = document(7), document(9)
    mixed: dict[str, Any] = {**one, "tail": other["tail"]}
    assert is_whole(one, 7)
    assert not is_whole(one, 9)
    assert not is_whole(mixed, 7)
    assert not is_whole(mixed, 9)
