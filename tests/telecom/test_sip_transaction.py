from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.telecom.sip_records import LIFE_S, TRANSITIONS, State
from examples.telecom.sip_transaction import Settings, SipServer
from tests.telecom.support import SECRET, Driver, invite, request, statuses, tag_of


def test_options_says_what_is_served() -> None:
    """OPTIONS is a 200 with Allow and the Accept headers, and a To-tag, also at hop 0."""
    [answer] = Driver().receive(request().replace(b"Forwards: 70", b"Forwards: 0"))
    assert answer.status == 200
    assert answer.get_list(b"Allow") == [
        b"INVITE", b"ACK", b"BYE", b"CANCEL", b"OPTIONS", b"REGISTER",
    ]  # fmt: skip
    for name in (b"Accept", b"Accept-Encoding", b"Accept-Language", b"Supported"):
        assert answer.get(name) is not None
    assert answer.to.tag


def test_register_answers_with_its_bindings() -> None:
    """REGISTER is a 200 that lists the contact."""
    driver = Driver()
    [answer] = driver.receive(request(b"REGISTER"))
    assert answer.get_list(b"Contact") == [b"<sip:caller@192.0.2.1:5061>;expires=3600"]
    assert driver.counted == {"registrations": 1}


def test_a_call() -> None:
    """INVITE is a 200 with Contact, Record-Route and a description; ACK is silent; BYE is a 200."""
    driver = Driver()
    [answer] = driver.receive(invite(more=[(b"Record-Route", b"<sip:p;lr>, <sip:q;lr>")]))
    assert answer.status == 200
    assert answer.get_all(b"Contact") == [b"<sip:192.0.2.9:5060>"]
    assert answer.get_list(b"Record-Route") == [b"<sip:p;lr>", b"<sip:q;lr>"]
    assert answer.get(b"Content-Type") == b"application/sdp"
    assert b"m=audio 9 RTP/AVP 0\r\n" in answer.body
    tag = tag_of([answer])
    assert driver.receive(request(b"ACK", branch=b"z9hG4bK-2", to_tag=tag)) == []
    assert driver.advance(60.0) == []
    [bye] = driver.receive(request(b"BYE", branch=b"z9hG4bK-3", cseq=2, to_tag=tag))
    assert (bye.status, bye.to.tag) == (200, tag)
    assert driver.counted == {"calls": 1, "calls_ended": 1}


def test_ringing() -> None:
    """A call that rings gets 100 and 180 at once; its timer carries the 200, keyed by Call-ID."""
    driver = Driver(ring_s=3.0)
    first = driver.receive(invite(more=[(b"Record-Route", b"<sip:p;lr>")]), connection=7)
    assert statuses(first) == [100, 180]
    assert first[0].to.tag is None
    assert first[1].get(b"Contact") == b"<sip:192.0.2.9:5060>"
    assert first[1].get(b"Record-Route") == b"<sip:p;lr>"
    [timer] = driver.timers.values()
    assert (timer.delay_s, timer.call_id, timer.connection) == (3.0, b"call-1@192.0.2.1", 7)
    driver.advance(3.0)
    [answer] = driver.fire(timer)
    assert (answer.status, answer.to.tag) == (200, first[1].to.tag)
    assert driver.sent[-1][0] == 7
    assert driver.counted == {"calls": 1}


def test_the_answer_of_a_dead_worker() -> None:
    """A worker that never saw the INVITE answers it, repeats the 200, and takes ACK and BYE."""
    dead = Driver(ring_s=3.0)
    dead.receive(invite(), connection=7)
    [timer] = dead.timers.values()
    driver = Driver(ring_s=3.0)
    [answer] = driver.fire(timer)
    assert (answer.status, driver.sent[0][0]) == (200, 7)
    assert driver.counted == {"calls": 1, "calls_taken_over": 1}
    assert statuses(driver.advance(0.6)) == [200]
    assert statuses(driver.receive(invite(), connection=8)) == [200]
    tag = tag_of([answer])
    driver.receive(request(b"ACK", branch=b"z9hG4bK-2", to_tag=tag))
    assert driver.advance(31.0) == []
    assert statuses(driver.receive(request(b"BYE", branch=b"3", cseq=2, to_tag=tag))) == [200]


def test_a_bye_before_the_answer_of_a_dead_worker() -> None:
    """A call that rang in a worker that is gone, and was ended meanwhile, gets 487 and no 200."""
    dead = Driver(ring_s=100.0)
    tag = tag_of(dead.receive(invite(), connection=7))
    [timer] = dead.timers.values()
    driver = Driver(ring_s=100.0)
    bye = request(b"BYE", branch=b"z9hG4bK-2", cseq=2, to_tag=tag)
    assert statuses(driver.receive(bye)) == [200]
    driver.advance(100.0)
    [answer] = driver.fire(timer)
    assert (answer.status, answer.to.tag, driver.sent[-1][0]) == (487, tag, 7)
    assert driver.receive(request(b"ACK", to_tag=tag)) == []
    assert driver.advance(LIFE_S + 2.0) == []
    assert driver.counted == {"calls_ended": 1, "calls_taken_over": 1, "calls_cancelled": 1}
    driver.advance(200.0)
    assert driver.server.remembered == 0


def test_the_dialog_of_a_dead_worker() -> None:
    """ACK, re-INVITE, OPTIONS and BYE fit any worker that has the secret, by their To-tag."""
    tag = tag_of(Driver().receive(invite()))
    driver = Driver()
    assert driver.receive(request(b"ACK", branch=b"z9hG4bK-2", to_tag=tag)) == []
    again = invite(branch=b"z9hG4bK-3", cseq=2, to_tag=tag)
    assert statuses(driver.receive(again)) == [200]
    ask = request(branch=b"z9hG4bK-4", cseq=3, to_tag=tag)
    assert statuses(driver.receive(ask)) == [200]
    bye = request(b"BYE", branch=b"z9hG4bK-5", cseq=4, to_tag=tag)
    assert statuses(driver.receive(bye)) == [200]
    assert "acks_unmatched" not in driver.counted


def test_the_tag_is_of_the_call_and_the_secret() -> None:
    """The To-tag depends on Call-ID, From-tag and secret, and not on the way the request took."""
    tag = tag_of(Driver().receive(request()))
    other_way = request(branch=b"z9hG4bK-9", cseq=5).replace(b"192.0.2.1:5061;", b"192.0.2.7;")
    assert tag_of(Driver().receive(other_way)) == tag
    assert tag_of(Driver().receive(request(call_id=b"x"))) != tag
    assert tag_of(Driver().receive(request().replace(b"from-1", b"from-2"))) != tag
    other = Driver(SipServer(Settings(b"another secret")))
    assert tag_of(other.receive(request())) != tag


@pytest.mark.parametrize("method", [b"BYE", b"INVITE", b"OPTIONS"])
def test_a_dialog_that_is_not_ours(method: bytes) -> None:
    """A request with a To-tag that we did not give is a 481, and so is a BYE without one."""
    driver = Driver()
    driver.receive(invite())
    data = request(method, branch=b"z9hG4bK-2", cseq=2, to_tag=b"0123456789abcdef")
    assert statuses(driver.receive(data)) == [481]
    if method == b"BYE":
        assert statuses(driver.receive(request(method, branch=b"z9hG4bK-3", cseq=2))) == [481]
    assert driver.counted["requests_refused"] == 1 + (method == b"BYE")


def test_the_200_is_repeated_until_its_ack() -> None:
    """The 200 goes out after 0.5 s again, then 1, 2, 4, 4 … s later, and no more after the ACK."""
    driver = Driver()
    tag = tag_of(driver.receive(invite()))
    started = driver.now
    repeated_at = []
    for _ in range(6):
        while not driver.advance(0.1):
            pass
        repeated_at.append(round(driver.now - started, 1))
    assert repeated_at == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5]
    driver.receive(request(b"ACK", branch=b"z9hG4bK-2", to_tag=tag))
    assert driver.advance(60.0) == []
    assert "calls_unacknowledged" not in driver.counted


def test_a_200_that_nobody_acknowledges() -> None:
    """Without an ACK the 200 is given up after 32 s, and counted."""
    driver = Driver()
    driver.receive(invite())
    assert set(statuses(driver.advance(LIFE_S + 2))) == {200}
    assert driver.counted["responses_repeated"] == 10
    assert driver.counted["calls_unacknowledged"] == 1
    assert driver.advance(1000.0) == []
    assert driver.server.remembered == 0


def test_an_ack_that_fits_nothing() -> None:
    """An ACK with another tag or CSeq stops nothing; it is counted and never answered."""
    driver = Driver()
    tag = tag_of(driver.receive(invite()))
    assert driver.receive(request(b"ACK", branch=b"z9hG4bK-2", to_tag=b"other")) == []
    assert driver.receive(request(b"ACK", branch=b"z9hG4bK-3", cseq=2, to_tag=tag)) == []
    assert driver.counted["acks_unmatched"] == 2
    assert statuses(driver.advance(0.6)) == [200]


def test_cancel_of_a_call_that_rings() -> None:
    """CANCEL is a 200, the INVITE gets 487, the ring timer stops; a late one changes nothing."""
    driver = Driver(ring_s=3.0)
    ringing = driver.receive(invite(), connection=7)
    [timer] = driver.timers.values()
    answers = driver.receive(request(b"CANCEL"), connection=8)
    assert [(answer.status, answer.cseq.method) for answer in answers] == [
        (200, b"CANCEL"),
        (487, b"INVITE"),
    ]
    assert [connection for connection, _ in driver.sent[-2:]] == [8, 7]
    assert {answer.to.tag for answer in answers} == {ringing[1].to.tag}
    assert driver.cancelled == [timer.timer]
    assert driver.fire(timer) == []
    assert statuses(driver.receive(request(b"CANCEL"))) == [200]
    assert statuses(driver.receive(invite())) == [487]
    assert driver.receive(request(b"ACK", to_tag=tag_of(answers))) == []
    assert driver.counted == {"calls_cancelled": 1, "requests_repeated": 2}


def test_cancel_that_comes_too_late() -> None:
    """CANCEL of a call that is answered is a 200 and nothing else."""
    driver = Driver()
    driver.receive(invite())
    assert statuses(driver.receive(request(b"CANCEL"))) == [200]
    assert driver.cancelled == []


def test_cancel_that_matches_nothing() -> None:
    """CANCEL with another branch, or of another process's call, is a 481."""
    driver = Driver(ring_s=3.0)
    driver.receive(invite())
    assert statuses(driver.receive(request(b"CANCEL", branch=b"z9hG4bK-2"))) == [481]
    assert statuses(Driver().receive(request(b"CANCEL"))) == [481]
    assert len(driver.timers) == 1


def test_bye_of_a_call_that_rings() -> None:
    """BYE within the early dialog is a 200, and the INVITE gets 487."""
    driver = Driver(ring_s=3.0)
    tag = tag_of(driver.receive(invite()))
    bye = request(b"BYE", branch=b"z9hG4bK-2", cseq=2, to_tag=tag)
    assert statuses(driver.receive(bye)) == [200, 487]
    assert driver.timers == {}


def test_bye_stops_the_200() -> None:
    """After a BYE the 200 is not repeated, though its ACK never came."""
    driver = Driver()
    tag = tag_of(driver.receive(invite()))
    driver.receive(request(b"BYE", branch=b"z9hG4bK-2", cseq=2, to_tag=tag))
    assert driver.advance(40.0) == []
    assert "calls_unacknowledged" not in driver.counted


def test_a_call_that_is_over() -> None:
    """After its BYE a dialog is gone: another BYE is a 481, the same one its 200 again."""
    driver = Driver()
    tag = tag_of(driver.receive(invite()))
    bye = request(b"BYE", branch=b"z9hG4bK-2", cseq=2, to_tag=tag)
    assert statuses(driver.receive(bye)) == [200]
    assert statuses(driver.receive(bye)) == [200]
    another = request(b"BYE", branch=b"z9hG4bK-3", cseq=3, to_tag=tag)
    assert statuses(driver.receive(another)) == [481]
    assert driver.counted["calls_ended"] == 1


def test_order_within_a_dialog() -> None:
    """A CSeq lower than the last is a 500."""
    driver = Driver()
    tag = tag_of(driver.receive(invite(cseq=5)))
    bye = request(b"BYE", branch=b"z9hG4bK-2", cseq=4, to_tag=tag)
    assert statuses(driver.receive(bye)) == [500]


def test_an_invite_by_two_ways() -> None:
    """The same INVITE under another branch came by another way: 482; a new CSeq is a new call."""
    driver = Driver()
    driver.receive(invite())
    assert statuses(driver.receive(invite(branch=b"z9hG4bK-2"))) == [482]
    assert statuses(driver.receive(invite(branch=b"z9hG4bK-3", cseq=2))) == [200]


def test_an_invite_while_another_rings() -> None:
    """A second INVITE in a dialog whose first one rings is a 500 with Retry-After."""
    driver = Driver(ring_s=3.0)
    tag = tag_of(driver.receive(invite()))
    [answer] = driver.receive(invite(branch=b"z9hG4bK-2", cseq=2, to_tag=tag))
    assert answer.status == 500
    assert answer.get(b"Retry-After") is not None


def test_reinvite_does_not_ring() -> None:
    """A re-INVITE is answered at once."""
    driver = Driver(ring_s=3.0)
    tag = tag_of(driver.receive(invite()))
    [timer] = driver.timers.values()
    driver.fire(timer)
    assert statuses(driver.receive(invite(branch=b"z9hG4bK-2", cseq=2, to_tag=tag))) == [200]
    driver.receive(request(b"ACK", branch=b"z9hG4bK-3", cseq=2, to_tag=tag))
    assert set(statuses(driver.advance(LIFE_S))) == {200}  # those of the first, still without ACK


@pytest.mark.parametrize("method", [b"OPTIONS", b"REGISTER", b"INVITE"])
def test_repeated_requests(method: bytes) -> None:
    """A request that comes again gets the same bytes again, for 32 s."""
    driver = Driver()
    data = invite() if method == b"INVITE" else request(method)
    [first] = driver.receive(data)
    driver.receive(request(b"ACK", branch=b"z9hG4bK-2", to_tag=tag_of([first])))
    driver.advance(30.0)
    [again] = driver.receive(data, connection=2)
    assert again.headers == first.headers
    assert driver.sent[-1][0] == 2
    assert driver.counted["requests_repeated"] == 1
    driver.advance(60.0)
    assert driver.server.remembered == 0


def test_branches_are_told_apart_by_sender() -> None:
    """The same branch from another sent-by is another transaction."""
    driver = Driver()
    driver.receive(request())
    driver.receive(request().replace(b"TCP 192.0.2.1:5061", b"TCP 192.0.2.2:5061"))
    assert "requests_repeated" not in driver.counted


def test_requests_of_the_old_rfc() -> None:
    """Without the cookie a transaction is known by its headers; the cookie alone is a 400."""
    driver = Driver(ring_s=3.0)
    for branch in (b"1", b"z9hG4b"):
        call_id = b"call-" + branch
        first = driver.receive(invite(branch=branch, call_id=call_id))
        assert statuses(driver.receive(invite(branch=branch, call_id=call_id))) == [180]
        assert statuses(driver.receive(request(b"CANCEL", branch=branch, call_id=call_id))) == [
            200,
            487,
        ]
        ack = request(b"ACK", branch=branch, call_id=call_id, to_tag=tag_of(first))
        assert driver.receive(ack) == []
    assert "acks_unmatched" not in driver.counted
    assert statuses(driver.receive(request(branch=b"z9hG4bK"))) == [400]


def test_expires_of_an_invite() -> None:
    """A call that is not answered before its Expires gets 487, from any worker."""
    driver = Driver(ring_s=10.0)
    driver.receive(invite(more=[(b"Expires", b"4")]))
    [timer] = driver.timers.values()
    assert timer.delay_s == 4.0
    assert statuses(Driver().fire(timer)) == [487]
    assert statuses(driver.fire(timer)) == [487]
    for expires in (b"11", b"soon"):
        driver.receive(invite(call_id=expires, branch=b"z9hG4bK" + expires,
                              more=[(b"Expires", expires)]))  # fmt: skip
    assert {timer.delay_s for timer in driver.timers.values()} == {10.0}


def test_a_ring_timer_that_fires_twice() -> None:
    """A timer that is delivered a second time answers nothing."""
    driver = Driver(ring_s=3.0)
    driver.receive(invite())
    [timer] = driver.timers.values()
    assert statuses(driver.fire(timer)) == [200]
    assert driver.fire(timer) == []
    assert driver.counted["calls"] == 1


def test_a_ring_timer_that_never_fires() -> None:
    """A call whose ring has no end is forgotten 32 s after it should have had one."""
    driver = Driver(ring_s=3.0)
    driver.receive(invite())
    driver.advance(3.0 + LIFE_S + 2.0)
    assert driver.server.remembered == 0
    assert len(driver.cancelled) == 1


def test_refusals_are_answered_alike_each_time() -> None:
    """A refused request is not remembered: the same one gets the same answer, its ACK silence."""
    driver = Driver()
    data = invite(more=[(b"Require", b"x")])
    [first], [again] = driver.receive(data), driver.receive(data)
    assert first.headers == again.headers
    assert driver.receive(request(b"ACK", to_tag=tag_of([first]))) == []
    assert driver.server.remembered == 0


def test_malformed_messages() -> None:
    """A malformed request gets 400 and counts, an ACK no answer; where trust is gone, close."""
    driver = Driver()
    assert statuses(driver.receive(request().replace(b"From: ", b"From: <"))) == [400]
    assert driver.receive(request(b"ACK").replace(b"From: ", b"From: <")) == []
    assert driver.closed == []
    assert statuses(driver.receive(request(more=[(b"X", b"y")] * 200), connection=9)) == [513]
    assert driver.closed == [9]
    assert driver.counted == {"bad_messages": 3}


def test_responses_are_dropped() -> None:
    """A response matches no transaction of ours: dropped, counted, never answered."""
    driver = Driver()
    assert driver.receive(b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n") == []
    assert driver.counted == {"responses_dropped": 1}


def test_contact_without_an_address_of_our_own() -> None:
    """Where the address is not known, Contact and description name what the caller called."""
    driver = Driver(SipServer(Settings(SECRET)))
    [answer] = driver.receive(invite())
    assert answer.get(b"Contact") == b"<sip:127.0.0.1:5060;transport=tcp>"
    assert b"c=IN IP4 127.0.0.1\r\n" in answer.body


def test_a_body_that_is_no_description_is_no_offer() -> None:
    """An INVITE whose body is optional and another thing gets an offer of our own."""
    more = [(b"Content-Type", b"text/plain"), (b"Content-Disposition", b"x;handling=optional")]
    data = request(b"INVITE", more=more).replace(b"Length: 0\r\n\r\n", b"Length: 5\r\n\r\nhello")
    [answer] = Driver().receive(data)
    assert answer.status == 200
    assert b"\r\nm=audio 9 RTP/AVP 0\r\n" in answer.body


def test_the_table_is_whole() -> None:
    """Every state has a row, and no state of the table is without a way in."""
    assert set(TRANSITIONS) == set(State)
    reached = {state for row in TRANSITIONS.values() for state in row.values()}
    assert reached | {State.PROCEEDING} == set(State)


METHODS = [b"INVITE", b"ACK", b"BYE", b"CANCEL", b"OPTIONS", b"REGISTER", b"MESSAGE"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*METHODS, b"ring", b"wait"]),
            st.integers(1, 3),
            st.integers(1, 3),
            st.sampled_from(["", "right", "wrong"]),
        ),
        max_size=25,
    ),
    st.sampled_from([0.0, 2.0]),
)
def test_whatever_comes_in_whatever_order(
    steps: list[tuple[bytes, int, int, str]], ring_s: float
) -> None:
    """Any order of requests and timers: each request but ACK is answered, an ACK never."""
    driver = Driver(ring_s=ring_s, records_max=4)
    tag = tag_of(Driver().receive(request()))
    tags = {"": b"", "right": tag, "wrong": b"wrong"}
    for method, branch, cseq, which in steps:
        if method == b"ring":
            for timer in list(driver.timers.values())[:1]:
                driver.advance(timer.delay_s)
                driver.fire(timer)
        elif method == b"wait":
            driver.advance(7.0 * cseq)
        else:
            data = request(method, branch=b"z9hG4bK-%d" % branch, cseq=cseq, to_tag=tags[which])
            answered = statuses(driver.receive(data))
            assert bool(answered) == (method != b"ACK")
    assert driver.server.remembered <= 8
    driver.advance(200.0)
    assert driver.server.remembered == 0
    assert driver.wake_at is None


@given(st.lists(st.binary(max_size=6), max_size=6), st.integers(0, 300))
def test_receive_raises_nothing(junk: list[bytes], position: int) -> None:
    """Junk put into a good message at places is answered or dropped, and never raises."""
    data = invite()
    for number, part in enumerate(junk):
        at = (position + 37 * number) % len(data)
        data = data[:at] + part + data[at + len(part) :]
    driver = Driver()
    assert len(driver.receive(data)) <= 2
