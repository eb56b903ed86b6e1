"""A spare: a process that has begun as each worker begins, imports done, and waits for a place.

The supervisor makes it and writes to its standard input, once: the configuration of a worker that
has died, whose replacement it is from then on.  Until then it is on no bus, has imported nothing of
the application, and ends when its standard input does, so also when the supervisor dies.  What is
saved is the time that Python and aembus take to start, most of what a replacement costs.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aembus.supervisor.launching import Launched, launch

log = logging.getLogger("aembus")

SETTLE_S: Final = 0.3  # after a worker has come up: its start, and others', come first


class Spare:
    """Keeps at most one spare process.

    Args:
        program: the module that it runs.
        wanted: whether there is to be one at all.
    """

    def __init__(self, program: str, *, wanted: bool) -> None:
        self._program = program
        self._wanted = wanted
        self._launched: Launched | None = None
        self._soon: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """Its PID, while there is one."""
        return self._launched.process.pid if self._launched is not None else None

    def prepare(self, program: str) -> None:
        """Have one soon, if there is none; call it when a process of this program has come up."""
        if self._wanted and program == self._program and not (self._launched or self._soon):
            self._soon = asyncio.get_running_loop().call_later(SETTLE_S, self._prepare)

    def _prepare(self) -> None:
        self._soon = None
        try:
            launched = launch(self._program)
        except OSError as error:  # the next worker that comes up is the next occasion
            log.info("no spare process can be started: %s", error)
            return
        try:
            asyncio.get_running_loop().add_reader(launched.pidfd, self._on_gone)
        except OSError as error:
            log.info("no spare process can be watched: %s", error)
            launched.end()
            return
        self._launched = launched

    def take(self, program: str) -> Launched | None:
        """Return the spare if it can be what is wanted, else None; it is the caller's then."""
        if program != self._program:
            return None
        launched = self._let_go()
        if launched is not None and launched.process.poll() is not None:
            launched.end()
            return None
        return launched

    def _let_go(self) -> Launched | None:
        launched, self._launched = self._launched, None
        if launched is not None:
            asyncio.get_running_loop().remove_reader(launched.pidfd)
        return launched

    def _on_gone(self) -> None:
        launched = self._let_go()
        assert launched is not None
        pid, code = launched.process.pid, launched.process.wait()
        launched.end()
        log.warning(
            "the spare process %d has ended, exit code %d; the next worker that comes up brings "
            "another one",
            *(pid, code),
        )

    def renew(self) -> None:
        """Have another one: what it has imported may be older than what is installed now."""
        launched = self._let_go()
        if launched is not None:
            launched.end()
            self.prepare(self._program)

    def close(self) -> None:
        """End it, and have none any more.  Idempotent."""
        self._wanted = False
        if self._soon is not None:
            self._soon.cancel()
        launched = self._let_go()
        if launched is not None:
            launched.end()
