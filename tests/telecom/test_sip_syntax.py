from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.telecom.sip_syntax import (
    CSEQ_MAX,
    SipError,
    SipSyntaxError,
    parse_cseq,
    parse_name_addr,
    parse_number,
    parse_params,
    parse_party,
    parse_uri,
    parse_via,
    split_head,
    split_list,
    unfold,
)


@pytest.mark.parametrize(
    ("value", "elements"),
    [
        (b"", []),
        (b"  ", []),
        (b"a", [b"a"]),
        (b"a, b ,c", [b"a", b"b", b"c"]),
        (b'"a, b" <sip:x>, <sip:y,z>', [b'"a, b" <sip:x>', b"<sip:y,z>"]),
        (b'"say \\", \\"" <sip:x>,<sip:y>', [b'"say \\", \\"" <sip:x>', b"<sip:y>"]),
    ],
)
def test_split_list_cuts_at_commas_outside_quotes_and_brackets(
    value: bytes, elements: list[bytes]
) -> None:
    """A comma separates elements unless it stands within quotes or <>."""
    assert split_list(value) == elements


@pytest.mark.parametrize("value", [b",", b"a,", b"a,,b", b'"a, b', b"<a, b", b'<a>,"', b"a, "])
def test_split_list_refuses_what_has_no_elements(value: bytes) -> None:
    """Empty elements and quotes or brackets that do not balance are errors."""
    with pytest.raises(SipSyntaxError):
        split_list(value)


def test_name_addr_with_display_name() -> None:
    """The display name stays as written, the URI comes without <>, the tag is found."""
    parsed = parse_name_addr(b'"A \\"B\\" <C>" <sip:a@b.example;x=1>;tag=t ; q=0.3')
    assert parsed.display == b'"A \\"B\\" <C>"'
    assert parsed.uri == b"sip:a@b.example;x=1"
    assert parsed.params == {b"tag": b"t", b"q": b"0.3"}
    assert parsed.tag == b"t"


def test_addr_spec_leaves_parameters_to_the_header() -> None:
    """Without <> everything behind the first semicolon belongs to the header."""
    parsed = parse_name_addr(b"sip:a@b.example ; Tag=t;lr")
    assert (parsed.uri, parsed.params) == (b"sip:a@b.example", {b"tag": b"t", b"lr": None})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"a@b",
        b"<sip:a@b",
        b"sip:a@b>",
        b'"open <sip:a@b>',
        b"< sip:a@b >",
        b"A, B <sip:a@b>",
        b"sip:a@b?Route=x",
        b"sip:a,b@c",
        b"<sip:a@b>;;",
        b"<sip:a@b>;tag=",
        b"<sip:a@b>;tag=1;TAG=2",
        b"<sip:a@b> trailing",
        b"<sip:a@b><sip:c@d>",
        b'"a" b <sip:a@b>',
        b"<sip:@b>",
        b"<sip:a b@c>",
        b"<sip:a@b:99999>",
        b"<sip:%zz@b>",
        b"\0<sip:a@b>",
    ],
)
def test_name_addr_refuses_what_the_grammar_has_not(value: bytes) -> None:
    """An address that breaks the grammar is an error, never half a result."""
    with pytest.raises(SipSyntaxError):
        parse_name_addr(value)


@pytest.mark.parametrize("tag", [b"tag", b'tag="x"', b"tag=[x]"])
def test_tags_and_branches_are_tokens(tag: bytes) -> None:
    """A tag or a branch without a value, or that is no token, is an error; elsewhere it may be."""
    with pytest.raises(SipSyntaxError):
        parse_party(b"<sip:a@b>;" + tag)
    with pytest.raises(SipSyntaxError):
        parse_via(b"SIP/2.0/TCP h;" + tag.replace(b"tag", b"branch"))
    assert b"tag" in parse_name_addr(b"<sip:a@b>;" + tag).params
    assert parse_party(b"<sip:a@b>").tag is None


def test_via_with_blanks_everywhere() -> None:
    """Blanks are allowed around the slashes, the colon, the semicolons and the equal signs."""
    via = parse_via(b"SIP / 2.0 / TCP  host.example : 5061 ; branch = z9hG4bKx ;rport")
    assert (via.transport, via.host, via.port) == (b"TCP", b"host.example", 5061)
    assert (via.branch, via.params[b"rport"]) == (b"z9hG4bKx", None)
    assert via.sent_by == b"host.example:5061"


def test_via_of_an_ipv6_address() -> None:
    """An IPv6 reference is a host, and has no port of its own."""
    via = parse_via(b"SIP/2.0/TCP [2001:DB8::1];received=2001:db8::9")
    assert (via.host, via.port, via.sent_by) == (b"[2001:DB8::1]", None, b"[2001:db8::1]")


@pytest.mark.parametrize(
    "value",
    [b"", b"SIP/2.0/TCP", b"SIP/7.0/TCP h", b"SIP/2.0/TCP h;;", b"TCP h", b"SIP/2.0/TCP h:x"],
)
def test_via_refuses_what_the_grammar_has_not(value: bytes) -> None:
    """A Via that breaks the grammar is an error."""
    with pytest.raises(SipSyntaxError):
        parse_via(value)


def test_cseq_holds_32_bits() -> None:
    """The highest number that fits is taken, with leading zeros too; the next is an error."""
    assert parse_cseq(b"%d INVITE" % CSEQ_MAX) == (CSEQ_MAX, b"INVITE")
    assert parse_cseq(b"0009 \t ACK") == (9, b"ACK")
    for value in (b"%d INVITE" % (CSEQ_MAX + 1), b"1", b"1 A B", b"-1 A", b"1A", b"\xd9\xa1 A"):
        with pytest.raises(SipSyntaxError):
            parse_cseq(value)


def test_number_of_many_digits_costs_nothing() -> None:
    """A number of 100,000 digits is refused before anybody computes it, zeros in front are not."""
    with pytest.raises(SipSyntaxError):
        parse_number(b"9" * 100_000, 2**64, "Number")
    assert parse_number(b"0" * 100_000 + b"7", 255, "Number") == 7
    assert parse_number(b"000", 255, "Number") == 0


def test_sip_uri_in_all_its_parts() -> None:
    """User, host, port, parameters and headers of a sip URI are told apart."""
    uri = parse_uri(b"SIPS:al%69ce;day=1:pa$s@Host.example:5061;lr;x=%41?Route=%3Csip:a%3E&b=")
    assert uri.scheme == b"sips"
    assert (uri.user, uri.host, uri.port) == (b"al%69ce;day=1", b"Host.example", 5061)
    assert (uri.params, uri.headers) == (b";lr;x=%41", b"Route=%3Csip:a%3E&b=")
    assert uri.is_sip


def test_uri_of_another_scheme_is_kept_opaque() -> None:
    """Other schemes are URIs all the same; nothing is read into them."""
    uri = parse_uri(b"soap.beep://192.0.2.103:3002")
    assert (uri.scheme, uri.opaque, uri.is_sip) == (b"soap.beep", b"//192.0.2.103:3002", False)


@pytest.mark.parametrize(
    "value",
    [b"", b"sip", b"sip:", b"<sip:a@b>", b"sip:a@b;", b"sip:a@b?", b"sip:a@b c", b"tel:", b"1:2"],
)
def test_uri_refuses_what_the_grammar_has_not(value: bytes) -> None:
    """A URI that breaks the grammar is an error."""
    with pytest.raises(SipSyntaxError):
        parse_uri(value)


def test_params_with_quoted_values() -> None:
    """A quoted value may hold a semicolon and an escaped quote."""
    assert parse_params(b' ; a = "x;\\"y" ;b') == {b"a": b'"x;\\"y"', b"b": None}


def test_unfold_joins_continuation_lines() -> None:
    """A line that begins with a blank belongs to the one before."""
    lines = split_head(b"A b SIP/2.0\r\nVia: 1\r\n\t2\r\n  3\r\nTo :\r\n x")
    assert unfold(lines) == [b"A b SIP/2.0", b"Via: 1 2 3", b"To : x"]


@pytest.mark.parametrize(
    "head", [b"A b SIP/2.0\r\n c: d", b"A b SIP/2.0\r\nVia\r\n : x", b" A b SIP/2.0\r\nVia: x"]
)
def test_unfold_refuses_folds_that_hide_a_header(head: bytes) -> None:
    """A fold behind the start line or before a colon ends the connection: readers differ there."""
    with pytest.raises(SipSyntaxError) as caught:
        unfold(split_head(head))
    assert caught.value.close


@pytest.mark.parametrize("head", [b"A\nb", b"A\rb", b"A\r\nb\n", b"A\r\r\nb", b"A\n\r\nb"])
def test_split_head_refuses_bare_line_ends(head: bytes) -> None:
    """A CR or LF of its own ends the connection: readers differ about what it means."""
    with pytest.raises(SipSyntaxError) as caught:
        split_head(head)
    assert caught.value.close


PARSERS: list[Callable[[bytes], object]] = [
    parse_party,
    split_list,
    parse_name_addr,
    parse_via,
    parse_cseq,
    parse_params,
    parse_party,
    parse_uri,
]
NEAR_GRAMMAR = st.text('"\\<>,;:=@?/%[] \tsipSIP2.0TCPtag019aZ-', max_size=60).map(str.encode)


@given(st.sampled_from(PARSERS), st.binary(max_size=60) | NEAR_GRAMMAR)
def test_parsers_raise_nothing_but_sip_errors(
    parser: Callable[[bytes], object], value: bytes
) -> None:
    """Whatever the bytes are, a parser returns or raises SipError."""
    status, reason = 400, ""
    try:
        parser(value)
    except SipError as error:
        status, reason = error.status, error.reason
    assert 400 <= status < 700
    assert reason.isascii()


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "unit", [b" ", b"a", b'"', b'"\\', b"<", b";", b";a", b";a=", b"%41", b"a:", b"a@", b"[", b","]
)
def test_parsers_take_linear_time(parser: Callable[[bytes], object], unit: bytes) -> None:
    """Sixteen kilobytes of whatever might cause backtracking are dealt with at once."""
    starts = [b"", b"sip:", b"<sip:", b'"', b"SIP/2.0/TCP ", b"1 "]
    started = time.perf_counter()
    for start in starts:
        value = start + unit * (16384 // len(unit)) + b"\x01"
        try:
            parser(value)
        except SipError:
            pass
    assert time.perf_counter() - started < 1.0  # microseconds, in truth; quadratic takes minutes
