from __future__ import annotations

import pytest

from examples.telecom.sip_message import Header, Request, parse
from examples.telecom.sip_registrar import (
    CONTACTS_BYTES_MAX,
    CONTACTS_MAX,
    EXPIRES_MIN_S,
    Registrar,
)
from tests.telecom.support import request

NOW = 500.0


class Phone:
    """Sends REGISTERs to a registrar, with a CSeq that goes up."""

    def __init__(self, registrar: Registrar, call_id: bytes = b"phone") -> None:
        self.registrar = registrar
        self.call_id = call_id
        self.cseq = 0

    def register(
        self, *contacts: bytes, expires: bytes | None = None, now: float = NOW
    ) -> tuple[int, list[bytes]]:
        """Returns the status, and the values of the headers that came with it."""
        self.cseq += 1
        more: list[Header] = [(b"Contact", contact) for contact in contacts]
        if expires is not None:
            more.append((b"Expires", expires))
        data = request(b"REGISTER", call_id=self.call_id, cseq=self.cseq, more=more)
        data = data.replace(b"Contact: <sip:caller@192.0.2.1:5061>\r\n", b"")
        message = parse(data)
        assert isinstance(message, Request)
        message.check()
        status, headers = self.registrar.register(message, now)
        return status, [value for _, value in headers]


@pytest.fixture
def phone() -> Phone:
    """A phone with a registrar of its own."""
    return Phone(Registrar())


def test_binding_and_query(phone: Phone) -> None:
    """A 200 lists all bindings with the seconds they have left; without Contact it only asks."""
    assert phone.register(b"<sip:a@h;x>;q=0.5", b"sip:b@h;y") == (
        200,
        [b"<sip:a@h;x>;q=0.5;expires=3600", b"<sip:b@h>;y;expires=3600"],
    )
    assert phone.register(now=NOW + 600) == (
        200,
        [b"<sip:a@h;x>;q=0.5;expires=3000", b"<sip:b@h>;y;expires=3000"],
    )
    assert phone.register(now=NOW + 3600) == (200, [])


def test_a_contact_that_is_given_twice(phone: Phone) -> None:
    """The second one counts: what the same request has just bound is no older binding."""
    assert phone.register(b"<sip:a@h>;q=0.1", b"<sip:a@H>;q=0.2") == (
        200,
        [b"<sip:a@H>;q=0.2;expires=3600"],
    )


def test_contacts_are_bounded_in_bytes(phone: Phone) -> None:
    """Long contacts are refused before their list is longer than a message may be."""
    long = b"<sip:a@h>;x=" + b"x" * (CONTACTS_BYTES_MAX // 2)
    assert phone.register(long)[0] == 200
    assert phone.register(long.replace(b"a@", b"b@")) == (503, [b"60"])
    assert len(phone.register()[1]) == 1


def test_which_expires_counts(phone: Phone) -> None:
    """A contact's own expires goes before the header Expires, and that before 3600."""
    status, contacts = phone.register(
        b"<sip:a@h>;expires=120", b"<sip:b@h>", b"<sip:c@h>;expires=soon", expires=b"240"
    )
    assert (status, contacts) == (
        200,
        [
            b"<sip:a@h>;expires=120",
            b"<sip:b@h>;expires=240",
            b"<sip:c@h>;expires=3600",
        ],
    )


def test_removal(phone: Phone) -> None:
    """Zero seconds remove a binding, and the star with Expires 0 all of them."""
    phone.register(b"<sip:a@h>", b"<sip:b@h>", b"<sip:c@h>")
    assert phone.register(b"<sip:a@H>;expires=0")[1] == [
        b"<sip:b@h>;expires=3600",
        b"<sip:c@h>;expires=3600",
    ]
    assert phone.register(b"*", expires=b"0") == (200, [])
    assert len(phone.registrar) == 0


@pytest.mark.parametrize(
    ("contacts", "expires"),
    [((b"*",), None), ((b"*",), b"60"), ((b"*", b"<sip:a@h>"), b"0"), ((b"*, *",), b"0")],
)
def test_star_stands_alone(
    phone: Phone, contacts: tuple[bytes, ...], expires: bytes | None
) -> None:
    """A star with another contact, or without Expires 0, is a 400 and changes nothing."""
    phone.register(b"<sip:a@h>")
    assert phone.register(*contacts, expires=expires) == (400, [])
    assert phone.register()[1] == [b"<sip:a@h>;expires=3600"]


def test_too_short_is_refused_as_a_whole(phone: Phone) -> None:
    """An interval that is too brief is a 423 with Min-Expires, and no contact is bound."""
    answer = phone.register(b"<sip:a@h>", b"<sip:b@h>;expires=5")
    assert answer == (423, [b"%d" % EXPIRES_MIN_S])
    assert phone.register() == (200, [])


def test_order_of_requests(phone: Phone) -> None:
    """Within a Call-ID the CSeq must go up: 500, nothing changed; another Call-ID is free."""
    phone.register(b"<sip:a@h>")
    phone.cseq = 0
    assert phone.register(b"<sip:b@h>", b"<sip:a@h>;expires=0") == (500, [])
    phone.cseq = 0
    assert phone.register(b"*", expires=b"0") == (500, [])
    other = Phone(phone.registrar, b"other")
    assert other.register(b"<sip:a@h>;expires=0") == (200, [])


def test_contacts_are_told_apart(phone: Phone) -> None:
    """An escaped NUL, the case of the user and the URI's parameters make another contact."""
    uris = (b"%00@h", b"%00%00@h", b"A@h", b"a@h", b"a@h;x", b"a@h?Route=%3Csip:r%3E", b"a@h:1")
    contacts = [b"<sip:" + uri + b">" for uri in uris]
    assert phone.register(*contacts)[1] == [contact + b";expires=3600" for contact in contacts]


def test_other_schemes_may_be_contacts_but_not_addresses(phone: Phone) -> None:
    """A tel contact is kept; a To that is neither sip nor sips is a 400."""
    assert phone.register(b"<tel:+1234>") == (200, [b"<tel:+1234>;expires=3600"])
    data = request(b"REGISTER").replace(b"To: <sip:service@127.0.0.1:5060>", b"To: isbn:2983792873")
    message = parse(data)
    assert isinstance(message, Request)
    assert Registrar().register(message, NOW).status == 400


def test_limits() -> None:
    """Contacts of one address are limited, and so are addresses; expired ones make room."""
    registrar = Registrar(addresses_max=1)
    phone = Phone(registrar)
    contacts = [b"<sip:%d@h>" % number for number in range(CONTACTS_MAX + 1)]
    assert phone.register(*contacts)[0] == 503
    assert phone.register(*contacts[1:])[0] == 200
    data = request(b"REGISTER").replace(b"To: <sip:service@", b"To: <sip:other@")
    message = parse(data)
    assert isinstance(message, Request)
    assert registrar.register(message, NOW).status == 503
    assert registrar.register(message, NOW + 3600).status == 200
    assert len(registrar) == 1
