from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import posix_ipc
import pytest

from aembus.errors import (
    AembusError,
    BusNotFound,
    CorruptSegment,
    NotReady,
    OpenError,
    OutOfSharedMemory,
    PermissionRefused,
    VersionMismatch,
)
from aembus.shm import layout, names
from aembus.shm.inbox import create_inbox
from aembus.shm.segment import Segment

SIZE = 2 * layout.PAGE
MAGIC = layout.REGISTRY_MAGIC


@pytest.fixture
def name(bus_name: str) -> Iterator[str]:
    """A segment's name; whatever lies under it is removed in the end."""
    found = names.shared_name(bus_name, names.new_nonce(), "test")
    yield found
    path_of(found).unlink(missing_ok=True)


def path_of(name: str) -> Path:
    """Return where a segment lies in the file system."""
    return names.DIRECTORY / name[1:]


def create(name: str, *, magic: int = MAGIC, size_bytes: int = SIZE) -> Segment:
    """Create a segment without slots, all of it reserved."""
    return Segment.create(name, magic, size_bytes, slots=0, lane_bytes=0, reserve_bytes=size_bytes)


# --- create, open, close, unlink ------------------------------------------------------------------


def test_what_one_end_writes_the_other_reads(name: str) -> None:
    """A published segment can be opened by name, and both sides see the same memory."""
    ours = create(name)
    ours.publish()
    theirs = Segment.open(name, MAGIC)
    assert (theirs.slots, theirs.lane_bytes, len(theirs.memory)) == (0, 0, SIZE)
    ours.memory[5000:5005] = b"hello"
    theirs.words[700] = 1 << 63
    assert bytes(theirs.memory[5000:5005]) == b"hello"
    assert ours.words[700] == 1 << 63
    ours.close()
    theirs.close()


def test_the_header_says_who_made_it_and_when(name: str) -> None:
    """The header tells layout version, size, creator and time of creation."""
    before_ns = time.time_ns()
    segment = create(name)
    words = segment.words
    assert words[layout.HEADER_VERSION // 8] == layout.LAYOUT_VERSION
    assert words[layout.HEADER_SIZE // 8] == SIZE
    assert words[layout.HEADER_CREATOR_PID // 8] == os.getpid()
    assert before_ns <= words[layout.HEADER_CREATED_NS // 8] <= time.time_ns()
    segment.close()


def test_a_segment_is_for_its_user_alone(name: str) -> None:
    """The mode is 0600, whatever the umask."""
    umask = os.umask(0)
    try:
        create(name).close()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path_of(name).stat().st_mode) == 0o600


def test_what_exists_is_not_taken_over(name: str) -> None:
    """Creation is exclusive, and leaves what was there as it is."""
    first = create(name)
    first.publish()
    with pytest.raises(FileExistsError, match=name):
        create(name, magic=layout.INBOX_MAGIC)
    first.close()
    Segment.open(name, MAGIC).close()


def test_closing_leaves_the_name_and_unlinking_the_memory(name: str) -> None:
    """`close` ends this process's mapping, `unlink` the name; either may be repeated."""
    first = create(name)
    first.publish()
    second = Segment.open(name, MAGIC)
    first.close()
    first.close()
    assert path_of(name).exists()
    second.unlink()
    second.unlink()
    assert not path_of(name).exists()
    second.words[100] = 7
    assert second.words[100] == 7
    second.close()


def test_closing_waits_for_nobody_who_still_looks(name: str) -> None:
    """A segment can be closed while a lane's view of it is in use; the view stays good."""
    segment = create(name)
    view = segment.memory.cast("Q")
    segment.close()
    view[100] = 7
    assert view[100] == 7
    view.release()


def test_reserving_gives_memory_to_a_part(name: str) -> None:
    """Only what was reserved takes space; `reserve` adds to it and keeps what is there."""
    segment = Segment.create(
        name, MAGIC, 100 * layout.PAGE, slots=0, lane_bytes=0, reserve_bytes=layout.PAGE
    )
    assert path_of(name).stat().st_blocks * 512 == layout.PAGE
    segment.memory[64:70] = b"before"
    segment.reserve(50 * layout.PAGE, 3 * layout.PAGE)
    assert path_of(name).stat().st_blocks * 512 == 4 * layout.PAGE
    assert bytes(segment.memory[64:70]) == b"before"
    segment.close()


def test_reserving_in_a_segment_without_a_name_is_one_of_our_errors(name: str) -> None:
    """A member whose inbox was removed meanwhile is told so by an AembusError."""
    segment = create(name)
    segment.unlink()
    with pytest.raises(AembusError, match=name):
        segment.reserve(0, layout.PAGE)
    segment.close()


# --- too little space -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EDQUOT])
def test_too_little_space_leaves_nothing_behind(
    name: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """If the space cannot be had, the error says how much, the name is gone and no file is open."""
    descriptors = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    with pytest.raises(OutOfSharedMemory, match=rf"shm-size.*need={SIZE}, free=\d+, size=\d+"):
        create(name)
    assert not path_of(name).exists()
    assert os.listdir("/proc/self/fd") == descriptors


@pytest.mark.parametrize("call", ["ftruncate", "posix_fallocate"])
def test_another_error_of_the_system_is_told_as_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What has nothing to do with space is not called so; nothing is left behind either."""
    monkeypatch.setattr(os, call, failing(errno.EIO))
    with pytest.raises(OSError, match="test") as caught:
        create(name)
    assert caught.value.errno == errno.EIO
    assert not path_of(name).exists()


def test_too_little_space_later_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `reserve` that fails leaves the segment usable."""
    segment = Segment.create(
        name, MAGIC, 10 * layout.PAGE, slots=0, lane_bytes=0, reserve_bytes=layout.PAGE
    )
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
        with pytest.raises(OutOfSharedMemory, match=f"need={layout.PAGE}, .*name={name}"):
            segment.reserve(5 * layout.PAGE, layout.PAGE)
    assert path_of(name).stat().st_blocks * 512 == layout.PAGE
    segment.reserve(5 * layout.PAGE, layout.PAGE)
    segment.close()


def failing(number: int) -> Callable[..., None]:
    """Return a system call that fails with this error."""

    def fail(*_: object) -> None:
        raise OSError(number, "as the test wants it")

    return fail


# --- what opening refuses -------------------------------------------------------------------------


def test_no_such_segment(name: str) -> None:
    """A name that does not exist is BusNotFound."""
    with pytest.raises(BusNotFound, match=f"name={name}"):
        Segment.open(name, MAGIC)


def test_another_users_segment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment of another user is PermissionRefused."""

    def refuse(*_: object) -> None:
        raise posix_ipc.PermissionsError("as the test wants it")

    monkeypatch.setattr(posix_ipc, "SharedMemory", refuse)
    with pytest.raises(PermissionRefused, match=f"name={name}"):
        Segment.open(name, MAGIC)


def test_a_segment_is_not_open_to_others_before_it_is_published(name: str) -> None:
    """A segment whose creator has not finished is NotReady, and can be opened afterwards."""
    segment = create(name)
    with pytest.raises(NotReady, match="ready=0"):
        Segment.open(name, MAGIC)
    segment.publish()
    Segment.open(name, MAGIC).close()
    segment.close()


@pytest.mark.parametrize("size", [0, 8, layout.HEADER_BYTES - 1])
def test_a_segment_without_a_header_is_not_ready(name: str, size: int) -> None:
    """A creator that was killed before it gave the segment its size left something NotReady."""
    path_of(name).write_bytes(bytes(size))
    with pytest.raises(NotReady, match=f"size={size}"):
        Segment.open(name, MAGIC)


@pytest.mark.parametrize(
    ("offset", "value", "kind", "message"),
    [
        (layout.HEADER_MAGIC, 4711, CorruptSegment, f"want={MAGIC:#x}, got=0x1267"),
        (layout.HEADER_MAGIC, layout.INBOX_MAGIC, CorruptSegment, "wrong magic"),
        (layout.HEADER_VERSION, layout.LAYOUT_VERSION + 1, VersionMismatch, "same release"),
        (layout.HEADER_VERSION, 0, VersionMismatch, f"want={layout.LAYOUT_VERSION}, got=0"),
        (layout.HEADER_SIZE, SIZE - 8, CorruptSegment, f"header={SIZE - 8}, file={SIZE}"),
        (layout.HEADER_READY, 2, NotReady, "ready=2"),
    ],
)
def test_a_wrong_header_is_refused(
    name: str, offset: int, value: int, kind: type[OpenError], message: str
) -> None:
    """Each field of the header that is not as it must be has its error, with the values."""
    segment = create(name)
    segment.publish()
    segment.words[offset // 8] = value
    segment.close()
    with pytest.raises(kind, match=message):
        Segment.open(name, MAGIC)


@pytest.mark.parametrize(
    ("slots", "lane_bytes"), [(3, 512), (2, 1024), (0, 512), (2, 0), (2, 500), (1 << 60, 1 << 60)]
)
def test_an_inbox_that_cannot_have_its_lanes_is_refused(
    name: str, slots: int, lane_bytes: int
) -> None:
    """An inbox whose slots and lanes do not add up to its size is CorruptSegment."""
    segment = create_inbox(name, 2, 512)
    segment.words[layout.HEADER_SLOTS // 8] = slots
    segment.words[layout.HEADER_LANE_BYTES // 8] = lane_bytes
    segment.close()
    with pytest.raises(CorruptSegment, match=f"slots={slots}, lane_bytes={lane_bytes}"):
        Segment.open(name, layout.INBOX_MAGIC)


@pytest.mark.parametrize("cut", [1, 8, layout.PAGE])
def test_a_file_of_another_size_is_refused(name: str, cut: int) -> None:
    """A file that was cut is CorruptSegment, were it by one byte."""
    segment = create(name)
    segment.publish()
    segment.close()
    os.truncate(path_of(name), SIZE - cut)
    with pytest.raises(CorruptSegment, match=f"header={SIZE}, file={SIZE - cut}"):
        Segment.open(name, MAGIC)


def test_refusing_leaves_nothing_open(name: str) -> None:
    """A segment that was refused is neither mapped nor open."""
    create(name).close()
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(NotReady):
        Segment.open(name, MAGIC)
    assert os.listdir("/proc/self/fd") == descriptors
    assert name not in Path("/proc/self/maps").read_text()


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bus", ["a", "A-b_9", "x" * names.BUS_NAME_MAX])
def test_good_bus_names(bus: str) -> None:
    """Letters, digits, '-' and '_' make a bus name."""
    assert names.check_bus_name(bus) == bus


@pytest.mark.parametrize(
    "bus", ["", "x" * (names.BUS_NAME_MAX + 1), "a.b", "a/b", "a b", "a\n", "ä", "*", "a\0"]
)
def test_bad_bus_names(bus: str) -> None:
    """Anything else is refused by an error that shows it."""
    with pytest.raises(OpenError, match="name=") as caught:
        names.check_bus_name(bus)
    assert repr(bus) in str(caught.value)


def test_every_name_of_a_bus_can_be_found_again(bus_name: str) -> None:
    """`leftovers` finds what a bus left, the lock and the socket apart; others' names it leaves."""
    nonce = names.new_nonce()
    assert nonce != names.new_nonce()
    own = [
        path_of(names.shared_name(bus_name, nonce, "inbox3")),
        names.pipe_path(bus_name, nonce, "pipe3"),
        names.DIRECTORY / f"sem.{names.shared_name(bus_name, nonce, 'bell3')[1:]}",
    ]
    other = path_of(names.shared_name(f"{bus_name}-x", nonce, "inbox3"))
    found_by = [names.lock_path(bus_name), names.control_path(bus_name)]
    made = [*own, other, *found_by]
    try:
        for path in made:
            path.touch()
        assert names.leftovers(bus_name) == sorted(own)
        assert bus_name in names.buses()
        assert f"{bus_name}-x" not in names.buses()
    finally:
        for path in made:
            path.unlink(missing_ok=True)
    assert names.leftovers(bus_name) == []
    assert bus_name not in names.buses()


def test_a_bus_is_found_by_its_lock_or_its_socket(bus_name: str) -> None:
    """Either of the two is enough for `buses`, and each bus is named once."""
    for path in (names.lock_path(bus_name), names.control_path(bus_name)):
        path.touch()
        try:
            assert names.buses().count(bus_name) == 1
        finally:
            path.unlink()
