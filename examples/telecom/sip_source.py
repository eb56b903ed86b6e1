"""Where a request came from, written into its top Via (RFC 3261 section 18.2.1, RFC 3581).

What it is: one pure function. Who uses it: sip_transaction, before it answers a request.

Guarantees: the top Via gets `received` where its sent-by is another host than the source, and
where it asks for `rport`, which is filled in then. Its other parameters stay; a `received` that
the peer made up does not. So the responses tell a client behind a NAT how it is seen from here.

Not promised: that for requests that are malformed; their answers have the Via as it came.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from .sip_message import Request
from .sip_syntax import Via, split_list


def mark_source(request: Request, peer: str) -> None:
    """Write the source into the top Via of a request whose `check` passed.

    Args: peer: "host:port" or "[host]:port", as the tcp service writes it; where there is no IP
    address in it (a unix socket's peer), the request stays as it is.
    """
    via = request.vias[0]
    params = via.params
    asks = b"rport" in params and params[b"rport"] is None
    host, _, port = peer.rpartition(":")
    if not asks and b"received" not in params and via.host == host.encode():
        return  # the usual case, and nothing to be parsed
    source = _address(host)
    if source is None:
        return
    marked = {name: value for name, value in params.items() if name != b"received"}
    if asks:
        marked[b"rport"] = port.encode("ascii")
    if asks or _address(via.host.decode("ascii")) != source:
        marked[b"received"] = str(source).encode("ascii")
    _, *others = split_list(request.get_all(b"Via")[0])
    request.replace_first(b"Via", b", ".join((_written(via, marked), *others)))


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a host is; None where it is a name."""
    try:
        found = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (isinstance(found, IPv6Address) and found.ipv4_mapped) or found


def _written(via: Via, params: dict[bytes, bytes | None]) -> bytes:
    port = b"" if via.port is None else b":%d" % via.port
    value = b"SIP/2.0/%b %b%b" % (via.transport, via.host, port)
    for name, text in params.items():
        value += b";" + name + (b"" if text is None else b"=" + text)
    return value
