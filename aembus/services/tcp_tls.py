"""TLS: contexts made of files that may be replaced meanwhile, and one connection's encryption.

`TlsFiles` belongs to a listener (or to one outgoing connection); new connections use the files as
they are now.  `TlsFilter` is pure: bytes of the network in, plain bytes out, and the reverse.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from typing import Final

from aembus.errors import ServiceError

log = logging.getLogger("aembus")

READ_BYTES: Final = 65536
LOOK_NS: Final = 1_000_000_000  # between two looks whether a file was replaced
KNOWN: Final = ("certificate", "key", "authorities", "server_hostname")


class TlsFiles:
    """A context made of the files that `tls=` names; made again when one of them was replaced.

    Args:
        wanted: see TcpClient.listen and connect.
        server_side: whether peers connect to us.

    Raises: ServiceError: a file is missing, or does not fit.
    """

    def __init__(self, wanted: Mapping[str, str], server_side: bool) -> None:
        unknown = sorted(set(wanted) - set(KNOWN))
        if unknown or (server_side and "certificate" not in wanted):
            raise ServiceError(
                f"tls= takes {', '.join(KNOWN)}; who listens needs a certificate, "
                f"unknown={unknown}, given={sorted(wanted)}"
            )
        self._wanted = dict(wanted)
        self._server_side = server_side
        self._files = [wanted[name] for name in KNOWN[:3] if name in wanted]
        self._looked_ns = 0
        self._stamps = self._look()
        self._context = self._make()

    def context(self, now_ns: int) -> ssl.SSLContext:
        """Return the context for a new connection; files that do not fit leave the last one."""
        if now_ns - self._looked_ns >= LOOK_NS:
            self._looked_ns = now_ns
            try:
                stamps = self._look()
                if stamps != self._stamps:
                    self._context, self._stamps = self._make(), stamps
            except ServiceError as error:  # half written, perhaps: the next look is soon
                log.error("the TLS files were replaced by some that do not fit: %s", error)
        return self._context

    def reload(self) -> None:
        """Use the files as they are now.  Raises: ServiceError; the context stays as it was."""
        stamps = self._look()
        self._context, self._stamps = self._make(), stamps

    def _look(self) -> list[tuple[int, int, int]]:
        try:
            found = [os.stat(file) for file in self._files]
        except OSError as error:
            raise ServiceError(f"a TLS file cannot be read, {error}") from error
        return [(s.st_mtime_ns, s.st_ino, s.st_size) for s in found]

    def _make(self) -> ssl.SSLContext:
        wanted = self._wanted
        authorities = wanted.get("authorities")
        try:
            if self._server_side:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                if authorities is not None:
                    context.load_verify_locations(authorities)
                    context.verify_mode = ssl.CERT_REQUIRED
            else:
                context = ssl.create_default_context(cafile=authorities)
            if "certificate" in wanted:
                # Without a password OpenSSL would ask for one at the terminal, and wait for it.
                context.load_cert_chain(wanted["certificate"], wanted.get("key"), self._password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ServiceError(
                f"the TLS files do not fit, files={self._files}, error={str(error)!r}"
            ) from error
        return context

    def _password(self) -> str:
        raise ServiceError(
            "the key is encrypted, and a server has nobody to ask for its pass phrase; give it one "
            f"that is not (openssl pkey), readable for its user alone, files={self._files}"
        )


class TlsFilter:
    """One connection's encryption.

    Args:
        context: made for this side.
        server_side: whether the peer has connected to us.
        server_hostname: whose certificate is wanted; for who connects.
    """

    __slots__ = ("_incoming", "_object", "_outgoing", "ended", "is_ready")

    def __init__(
        self, context: ssl.SSLContext, server_side: bool, server_hostname: str | None
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side, server_hostname
        )
        self.is_ready = False  # the handshake is over
        self.ended = False  # the peer has said that nothing more will come

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the network and return what they say; see `take` for what to send then.

        Raises: ssl.SSLError: no TLS, no common ground, a certificate that is not trusted, damage.
        """
        if data:
            self._incoming.write(data)
        plain: list[bytes] = []
        try:
            if not self.is_ready:
                self._object.do_handshake()
                self.is_ready = True
            while piece := self._object.read(READ_BYTES):
                plain.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def encrypt(self, plain: bytes) -> bytes:
        """Return what to send to say `plain`, and whatever else is to be sent."""
        self._object.write(plain)
        return self._outgoing.read()

    def take(self) -> bytes:
        """Return what is to be sent on behalf of TLS itself."""
        return self._outgoing.read()

    def end(self) -> bytes:
        """Return what to send to say that nothing more will come."""
        try:
            self._object.unwrap()
        except (ssl.SSLError, ValueError):  # want-read: the peer has not ended yet
            pass
        return self._outgoing.read()
