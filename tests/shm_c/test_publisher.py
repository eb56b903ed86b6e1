"""What the Publisher in C promises: all or nothing, announced, and 0 where Python is to do it."""

from __future__ import annotations

import gc
import time

import pytest

from aembus.shm import layout
from tests.support.lanes import INCARNATION, SLOT
from tests.support.publishing import GENERATION, NOT_OPEN, Member, Registry, payloads

# --- what is published ----------------------------------------------------------------------------


def test_a_job_has_all_that_a_job_has() -> None:
    """Event, key, time and origin are in the record, and nothing else."""
    member = Member()
    publisher = Registry().publisher([member.destination(0xE000_0001)])
    before = time.monotonic_ns()
    assert publisher.publish(b"payload", 0xF000_0001) == 1
    after = time.monotonic_ns()
    (record,) = member.take()
    assert record.payload == b"payload"
    assert (record.kind, record.flags, record.attempts) == (layout.KIND_JOB, 0, 1)
    assert (record.event_id, record.key_hash) == (0xE000_0001, 0xF000_0001)
    assert (record.origin_slot, record.origin_incarnation) == (SLOT, INCARNATION)
    assert (record.sequence, record.deadline_ns, record.reply_id, record.addressee) == (1, 0, 0, 0)
    assert before <= record.activated_ns <= after


def test_a_key_picks_its_member() -> None:
    """A key's hash, modulo the size of each group, says who gets it."""
    members = [Member() for _ in range(3)]
    publisher = Registry().publisher([m.destination(n) for n, m in enumerate(members)])
    for key in (0, 1, 2, 3, 4, 5, 0xFFFF_FFFF):
        assert publisher.publish(b"%d" % key, key) == 1
    assert payloads(members[0]) == [b"0", b"3", b"4294967295"]
    assert payloads(members[1]) == [b"1", b"4"]
    assert payloads(members[2]) == [b"2", b"5"]


def test_without_a_key_members_take_turns() -> None:
    """From the turn that it was made with each group goes on by one; a key takes no turn."""
    members = [Member() for _ in range(3)]
    publisher = Registry().publisher([m.destination(1) for m in members], turn=4)
    for number in range(6):
        assert publisher.publish(b"%d" % number, -1) == 1
        assert publisher.publish(b"key", 0) == 1
    assert payloads(members[2]) == [b"0", b"3"]
    assert [p for p in payloads(members[0]) if p != b"key"] == [b"1", b"4"]
    assert payloads(members[1]) == [b"2", b"5"]


def test_turns_go_on_for_ever() -> None:
    """The count of turns may pass its largest number."""
    member = Member()
    publisher = Registry().publisher([member.destination(1)] * 3, turn=(1 << 64) - 2)
    assert [publisher.publish(b"", -1) for _ in range(4)] == [1] * 4


def test_fan_out_reaches_one_of_each_group() -> None:
    """Each group's member gets the job, with the id of its event."""
    members = [Member() for _ in range(4)]
    groups = [[members[0].destination(10)], [m.destination(20 + n) for n, m in enumerate(members)]]
    publisher = Registry().publisher(*groups)
    assert publisher.publish(b"x", 3) == 2
    assert publisher.publish(b"y", 0) == 2
    assert [(r.event_id, r.payload) for r in members[0].take()] == [
        (10, b"x"),
        (10, b"y"),
        (20, b"y"),
    ]
    assert [(r.event_id, r.payload) for r in members[3].take()] == [(23, b"x")]
    assert members[1].take() == members[2].take() == []


def test_wide_fan_out() -> None:
    """Hundreds of groups get it in one go, with many events in one lane."""
    members = [Member(1 << 16) for _ in range(10)]
    groups = [[members[n % 10].destination(n)] for n in range(500)]
    publisher = Registry().publisher(*groups)
    assert publisher.publish(b"x", -1) == 500
    for number, member in enumerate(members):
        assert [r.event_id for r in member.take()] == list(range(number, 500, 10))


# --- what is left to Python, with nothing claimed -------------------------------------------------


def test_a_stale_generation() -> None:
    """Under another generation nothing is published; a turn is not taken either."""
    registry, members = Registry(), [Member(), Member()]
    publisher = registry.publisher([m.destination(1) for m in members])
    for generation in (GENERATION + 1, GENERATION - 1, layout.GENERATION_BROKEN):
        registry.publish(generation)
        assert publisher.publish(b"no", -1) == publisher.publish(b"no", 1) == 0
    registry.publish(GENERATION)
    assert publisher.publish(b"yes", -1) == 1
    assert (payloads(members[0]), payloads(members[1])) == ([], [b"yes"])
    assert all(member.unclaimed for member in members)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("trouble", ["full", "closed", "not open", "claimed", "small"])
def test_fan_out_is_all_or_nothing(place: int, trouble: str) -> None:
    """Whatever keeps one lane from taking the job, no other lane has it or a claim for it."""
    members = [Member() for _ in range(3)]
    payload = b"x" * 300
    if trouble == "small":
        members[place] = Member(512)
    destinations = [member.destination(1) for member in members]
    if trouble == "full":
        members[place].fill()
        members[place].take()
        members[place].fill()
    elif trouble == "closed":
        members[place].producer.close()
    elif trouble == "not open":
        destinations[place] = NOT_OPEN
    elif trouble == "claimed":
        assert members[place].producer.claim(b"mine", layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0)
    for member in members:
        member.sleep()
    publisher = Registry().publisher(*([d] for d in destinations))
    for _ in range(2):
        assert publisher.publish(payload, -1) == 0
    assert [member.rings for member in members] == [0, 0, 0]
    for number, member in enumerate(members):
        if number != place:
            assert member.unclaimed
            assert payloads(member) == [b""]
    if trouble == "claimed":
        members[place].producer.commit()
        assert payloads(members[place]) == [b"mine"]


def test_who_drops_goes_without_and_the_others_do_not() -> None:
    """A full lane whose event drops is counted there; every other trouble is as without that."""
    members = [Member() for _ in range(3)]
    members[1].fill()
    full = len(members[1].take())
    members[1].fill()
    groups = [[m.destination(1, drops=n == 1)] for n, m in enumerate(members)]
    publisher = Registry().publisher(*groups)
    for member in members:
        member.sleep()
    assert [publisher.publish(b"x", -1) for _ in range(3)] == [2, 2, 2]
    assert [member.dropped for member in members] == [0, 3, 0]
    assert [payloads(members[n]) for n in (0, 2)] == [[b"x"] * 3] * 2
    assert len(members[1].take()) == full
    assert publisher.publish(b"y", -1) == 3
    members[2].producer.close()
    assert publisher.publish(b"z", -1) == 0
    assert [member.dropped for member in members] == [0, 3, 0]
    assert members[0].unclaimed


def test_if_all_go_without_python_counts_it() -> None:
    """Nothing published is 0, and the other way then finds the lanes as full and counts."""
    members = [Member() for _ in range(2)]
    for member in members:
        member.fill()
    publisher = Registry().publisher(*([m.destination(1, drops=True)] for m in members))
    assert publisher.publish(b"x", -1) == 0
    assert [member.dropped for member in members] == [0, 0]
    assert [member.rings for member in members] == [0, 0]


def test_a_claim_of_somebody_else_is_not_published() -> None:
    """Python's claim in a lane keeps the Publisher off it, though it has used the lane before."""
    member = Member()
    publisher = Registry().publisher([member.destination(1)])
    assert publisher.publish(b"1", -1) == 1
    assert member.producer.claim(b"2", layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0)
    assert publisher.publish(b"no", -1) == 0
    assert payloads(member) == [b"1"]
    member.producer.commit()
    assert publisher.publish(b"3", -1) == 1
    assert member.producer.claim(b"no", layout.KIND_JOB, 0, 1, 0, 0, 0, 0, 0)
    member.producer.abort()
    assert publisher.publish(b"4", -1) == 1
    assert payloads(member) == [b"2", b"3", b"4"]


def test_two_events_of_one_member() -> None:
    """Both jobs are in its lane, in order, or neither is."""
    member = Member(512)
    publisher = Registry().publisher([member.destination(1)], [member.destination(2)])
    size = 100  # three units of the eight
    assert publisher.publish(bytes(size), -1) == 2
    assert publisher.publish(bytes(size), -1) == 0
    assert [record.event_id for record in member.take()] == [1, 2]
    for _ in range(20):
        assert publisher.publish(bytes(size), -1) == 2
        assert [record.event_id for record in member.take()] == [1, 2]
    sequence = member.producer.sent()
    assert member.unclaimed
    assert [record.sequence for record in member.take()] == [sequence + 1]


def test_the_largest_payload_and_one_byte_more() -> None:
    """Up to half a lane goes; more is left to Python, which says how much too much it is."""
    member = Member()
    publisher = Registry().publisher([member.destination(1)])
    largest = member.producer.payload_bytes_max
    for _ in range(5):
        assert publisher.publish(bytes(largest + 1), -1) == 0
        assert publisher.publish(bytes(largest), -1) == 1
        assert [len(payload) for payload in payloads(member)] == [largest]


def test_without_groups_there_is_nothing_to_publish() -> None:
    """A point without events makes no job."""
    assert Registry().publisher().publish(b"x", -1) == 0


class Bytes(bytes):
    def __len__(self) -> int:
        return 1 << 20

    def __bytes__(self) -> bytes:
        raise AssertionError


def test_payloads_that_are_no_bytes() -> None:
    """A subclass of bytes is what it holds; anything else is left to Python."""
    member = Member()
    publisher = Registry().publisher([member.destination(1)])
    assert publisher.publish(Bytes(b"subclass"), -1) == 1
    for payload in (bytearray(b"x"), memoryview(b"x"), "x", None, 5):
        assert publisher.publish(payload, -1) == 0
    assert payloads(member) == [b"subclass"]


def test_a_key_that_is_no_hash() -> None:
    """What is no 32-bit number is left to Python, and no number at all is refused."""
    member = Member()
    publisher = Registry().publisher([member.destination(1)])
    assert publisher.publish(b"x", 1 << 32) == 0
    assert publisher.publish(b"x", -5) == 1
    for key in ("x", None, 1.5):
        with pytest.raises(TypeError):
            publisher.publish(b"x", key)
    with pytest.raises(OverflowError):
        publisher.publish(b"x", 1 << 64)
    with pytest.raises(TypeError):
        publisher.publish(b"x")
    assert payloads(member) == [b"x"]


# --- bells ----------------------------------------------------------------------------------------


def test_exactly_the_sleepers_are_rung() -> None:
    """Whoever sleeps, by whatever bell, is rung once a job; whoever is awake is not."""
    members = [Member() for _ in range(4)]
    publisher = Registry().publisher(*([m.destination(1)] for m in members))
    members[1].sleep()
    members[3].sleep((1 << 63) | layout.BELL_DESCRIPTOR)
    assert publisher.publish(b"x", -1) == 4
    assert [m.rings for m in members] == [0, 1, 0, 1]
    members[1].sleep(layout.AWAKE)
    assert publisher.publish(b"x", -1) == 4
    assert [m.rings for m in members] == [0, 1, 0, 2]


def test_only_the_chosen_are_rung() -> None:
    """Of a group nobody is rung but the one that gets the job."""
    members = [Member() for _ in range(3)]
    publisher = Registry().publisher([m.destination(1) for m in members])
    for member in members:
        member.sleep()
    for key, rings in ((1, [0, 1, 0]), (2, [0, 1, 1]), (4, [0, 2, 1])):
        assert publisher.publish(b"x", key) == 1
        assert [m.rings for m in members] == rings


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("times", [1, 2])
def test_a_ring_that_raises_is_repeated(times: int) -> None:
    """What a signal handler raises in the middle comes through, when all sleepers were rung."""
    members = [Member() for _ in range(3)]
    publisher = Registry().publisher(*([m.destination(1)] for m in members))
    for member in members:
        member.sleep()
    errors = [Interrupted("first"), Interrupted("second")]
    left = errors[:times]

    def interrupt() -> None:
        if left:
            raise left.pop(0)

    members[1].on_ring = interrupt
    with pytest.raises(Interrupted) as caught:
        publisher.publish(b"x", -1)
    assert caught.value is errors[0]
    assert [m.rings for m in members] == [1, 2, 1]
    assert [payloads(m) for m in members] == [[b"x"]] * 3


def test_the_first_of_several_errors_comes_through() -> None:
    """Each ring that raises is repeated, and the first error is the one that is told."""
    members = [Member() for _ in range(3)]
    publisher = Registry().publisher(*([m.destination(1)] for m in members))
    for number, member in enumerate(members):
        member.sleep()

        def interrupt(number: int = number) -> None:
            raise Interrupted(number)

        member.on_ring = interrupt
    with pytest.raises(Interrupted) as caught:
        publisher.publish(b"x", -1)
    assert caught.value.args == (0,)
    assert [m.rings for m in members] == [2, 2, 2]


def test_a_ring_may_publish() -> None:
    """What runs inside ring() may activate the same point; each job is published once."""
    members = [Member() for _ in range(3)]
    publisher = Registry().publisher(
        [m.destination(1) for m in members[:2]], [members[2].destination(2)]
    )
    for member in members:
        member.sleep()
    left = [b"b", b"c"]

    def activate() -> None:
        if left:
            assert publisher.publish(left.pop(0), -1) == 2

    for member in members:
        member.on_ring = activate
    assert publisher.publish(b"a", -1) == 2
    assert payloads(members[1]) == [b"a", b"c"]
    assert payloads(members[0]) == [b"b"]
    assert payloads(members[2]) == [b"a", b"b", b"c"]
    assert [m.rings for m in members] == [1, 2, 3]


def test_a_ring_may_close_everything() -> None:
    """What runs inside ring() may close the lanes and drop the Publisher's last owner."""
    members = [Member() for _ in range(3)]
    publishers = [Registry().publisher(*([m.destination(1)] for m in members))]

    def close() -> None:
        publishers.clear()
        gc.collect()
        for member in members:
            member.producer.close()

    for member in members:
        member.sleep()
        member.on_ring = close
    assert publishers[0].publish(b"x", -1) == 3
    assert [m.rings for m in members] == [1, 1, 1]
    assert [payloads(m) for m in members] == [[b"x"]] * 3
