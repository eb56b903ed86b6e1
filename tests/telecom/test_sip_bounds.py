"""What the responder keeps is bounded, whatever is forgotten for want of room."""

from __future__ import annotations

from examples.telecom.sip_records import LIFE_S
from tests.telecom.support import Driver, invite, request, statuses, tag_of


def test_state_is_bounded_in_number() -> None:
    """Ten times as many calls as there is room for leave no more than the room for them."""
    driver = Driver(records_max=20)
    for number in range(200):
        tag = tag_of(driver.receive(invite(call_id=b"%d" % number, branch=b"z9hG4bK%d" % number)))
        driver.receive(request(b"ACK", branch=b"z9hG4bKa%d" % number, call_id=b"%d" % number,
                               to_tag=tag))  # fmt: skip
    assert driver.server.remembered <= 40
    assert driver.counted["calls"] == 200


def test_the_200s_that_are_repeated_are_bounded_in_number() -> None:
    """Of many calls that nobody acknowledges, those are repeated that there is room for."""
    driver = Driver(records_max=20)
    for number in range(200):
        driver.receive(invite(call_id=b"%d" % number, branch=b"z9hG4bK%d" % number))
    repeated = driver.advance(LIFE_S + 2.0)
    assert {answer.call_id for answer in repeated} == {b"%d" % n for n in range(180, 200)}
    assert driver.counted["calls_unacknowledged"] == 20


def test_a_wake_up_that_was_lost_is_asked_for_again() -> None:
    """Whoever carries the actions out may fail: the next message brings the wake-ups back."""
    driver = Driver()
    driver.receive(invite())
    driver.wake_at = None
    driver.now += 40.0
    driver.receive(invite(call_id=b"next", branch=b"z9hG4bKnext"))
    assert statuses(driver.advance(0.6)) == [200]


def test_calls_that_ring_are_never_forgotten_for_room() -> None:
    """Too many ringing calls at once: 503 with Retry-After for new ones, the others stay."""
    driver = Driver(ring_s=60.0, records_max=20)
    for number in range(30):
        found = driver.receive(invite(call_id=b"%d" % number, branch=b"z9hG4bK%d" % number))
        assert statuses(found) == ([100, 180] if number < 10 else [503])
        driver.advance(0.5)
        driver.receive(request(call_id=b"o%d" % number, branch=b"z9hG4bKo%d" % number))
    for timer in list(driver.timers.values()):
        assert statuses(driver.fire(timer)) == [200]
    assert statuses(driver.receive(invite(call_id=b"x", branch=b"z9hG4bKx"))) == [100, 180]
    assert "calls_taken_over" not in driver.counted


def test_a_late_ring_that_is_forgotten_for_room_is_not_counted_for_ever() -> None:
    """Its timer is taken over when it comes; until then, and after it, there is room for others."""
    driver = Driver(ring_s=1.0, records_max=4)
    tag = tag_of(driver.receive(invite(call_id=b"late", branch=b"z9hG4bKlate")))
    [late] = driver.timers.values()
    driver.advance(2.0)
    for number in range(8):
        driver.receive(request(call_id=b"o%d" % number, branch=b"z9hG4bKo%d" % number))
    for number in range(2):
        found = driver.receive(invite(call_id=b"%d" % number, branch=b"z9hG4bK%d" % number))
        assert statuses(found) == [100, 180]
    assert statuses(driver.fire(late)) == [200]
    ack = request(b"ACK", branch=b"z9hG4bKa", call_id=b"late", to_tag=tag)
    driver.receive(ack)
    assert "acks_unmatched" not in driver.counted
    bye = request(b"BYE", branch=b"z9hG4bKb", call_id=b"late", cseq=2, to_tag=tag)
    assert statuses(driver.receive(bye)) == [200]


def test_a_call_that_is_over_before_its_late_ring_has_one_end() -> None:
    """A ring that never ended is given up once, also where BYE comes behind that."""
    driver = Driver(ring_s=1.0, records_max=2)
    for number in range(3):
        call_id = b"%d" % number
        tag = tag_of(driver.receive(invite(call_id=call_id, branch=b"z9hG4bK%d" % number)))
        driver.advance(LIFE_S)
        ask = request(call_id=call_id, branch=b"z9hG4bKo%d" % number, cseq=2, to_tag=tag)
        driver.receive(ask)
        driver.advance(2.0)
        bye = request(b"BYE", branch=b"z9hG4bKb%d" % number, call_id=call_id, cseq=3, to_tag=tag)
        assert statuses(driver.receive(bye)) == [200]


def test_wake_ups_are_few() -> None:
    """However many calls there are, an idle process is woken a few times and then no more."""
    driver = Driver()
    for number in range(500):
        tag = tag_of(driver.receive(invite(call_id=b"%d" % number, branch=b"z9hG4bK%d" % number)))
        driver.receive(request(b"ACK", branch=b"z9hG4bKa%d" % number, call_id=b"%d" % number,
                               to_tag=tag))  # fmt: skip
        driver.advance(0.01)
    woken = 0
    while driver.wake_at is not None and woken < 100:
        driver.advance(driver.wake_at - driver.now)
        woken += 1
    assert woken < 20
    assert driver.server.remembered == 0
