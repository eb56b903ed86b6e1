"""The header of the PROXY protocol, version 2: whose connection a proxy passes on.  Pure.

A proxy in front of the service (HAProxy and others) sends it once, before everything else:

```
 0                 12    13    14          16                       16 + length
 ├─ signature ─────┼ 2|c ┼ fam ┼─ length ──┼─ addresses, then more ─┤ the peer's bytes ...
```

c: 0 the proxy speaks for itself (its health check), 1 for somebody else.  What follows the
addresses (TLVs) is skipped.  Source: "The PROXY protocol", section 2.2, haproxy.org.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
FIXED: Final = struct.Struct(">12sBBH")
LENGTH_MAX: Final = 4096  # a header announces its length: nobody has to keep more for it

_LOCAL, _PROXY = 0x20, 0x21
_FAMILY_MASK: Final = 0xF0
_UNSPECIFIED, _INET, _INET6, _UNIX = 0x00, 0x10, 0x20, 0x30
_ADDRESSES: Final = {_INET: struct.Struct(">4s4sHH"), _INET6: struct.Struct(">16s16sHH")}
_UNIX_BYTES: Final = 216
_FAMILY_MAX, _TRANSPORT_MAX = 0x30, 0x02

assert FIXED.size == 16


class ProxyHeaderError(Exception):
    """What came is no header of version 2."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header says.

    host, port: of the peer that the proxy speaks for; None if it speaks for itself, or does not
        say.
    size_bytes: of the whole header; what follows is the peer's.
    """

    host: str | None
    port: int
    size_bytes: int


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Return the header at the front of `data`; None as long as it may become one.

    Raises: ProxyHeaderError as soon as it cannot become one.
    """
    if data[: len(SIGNATURE)] != SIGNATURE[: len(data)]:
        raise ProxyHeaderError(f"the signature is missing, begins={data[: len(SIGNATURE)]!r}")
    if len(data) < FIXED.size:
        return None
    _, command, kind, length = FIXED.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"unknown version and command, got={command:#04x}")
    family = kind & _FAMILY_MASK
    if family > _FAMILY_MAX or kind & ~_FAMILY_MASK > _TRANSPORT_MAX:
        raise ProxyHeaderError(f"unknown address family and transport, got={kind:#04x}")
    if length > LENGTH_MAX:
        raise ProxyHeaderError(f"the header is too long, length={length}, max={LENGTH_MAX}")
    addresses = _ADDRESSES.get(family)
    wanted = _UNIX_BYTES if family == _UNIX else addresses.size if addresses is not None else 0
    if command == _PROXY and length < wanted:
        raise ProxyHeaderError(f"its addresses do not fit, length={length}, want={wanted}")
    if len(data) < FIXED.size + length:
        return None
    if command == _LOCAL or addresses is None:
        return ProxyHeader(None, 0, FIXED.size + length)
    source, _, port, _ = addresses.unpack_from(data, FIXED.size)
    return ProxyHeader(str(ipaddress.ip_address(source)), port, FIXED.size + length)
