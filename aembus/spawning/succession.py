"""No attempt at a job begins before the last one has ended, also when the spawn host was killed.

A killed spawn host takes its nursery and its children with it, but they end a moment later than
itself.  So all of them share one flock on the spawn host's inbox: the kernel drops it with the
last of them, and the next spawn host waits for it before it takes a job.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import Final

log = logging.getLogger("aembus")

LOOK_S: Final = 0.002
WAIT_S_MAX: Final = 10.0  # only what a handler has forked behind Python's back lives so long


async def succeed(inbox: Path) -> int:
    """Wait until no process of a predecessor is there; return the descriptor that says we are.

    Args:
        inbox: the file of the spawn host's inbox.
    """
    descriptor = os.open(inbox, os.O_RDONLY | os.O_CLOEXEC)
    deadline = time.monotonic() + WAIT_S_MAX
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                log.error("a process of the last spawn host holds its inbox still; going on")
                return descriptor
            await asyncio.sleep(LOOK_S)
        else:
            return descriptor
