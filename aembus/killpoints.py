"""Kill points: named places in your handlers where a test has the process killed, as by kill -9.

A handler marks the places that matter: between two acts that a crash must not tear apart::

    @bus.on("call.ended", group="billing")
    def bill(event, call_id):
        charge(call_id)
        aembus.killpoint("charged")
        bus.activate("call.billed", call_id)

``AEMBUS_KILLPOINT=charged:3`` in the environment then kills each process that comes by `charged`
for the third time, at once: no `finally`, no signal handler and no exit function runs.  What
follows is what any crash brings: the worker is replaced, and the job in hand comes again with
`event.job.attempt` one higher.  With ``:1`` (or without a number) the replacement dies of that same
job again, and after three deaths the job is a dead letter.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from aembus.errors import AembusError

VARIABLE: Final = "AEMBUS_KILLPOINT"


def _read(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition(":") if ":" in text else (text, "", "1")
    if not name or not number.isdecimal() or int(number) < 1:
        raise AembusError(
            f"{VARIABLE} is written name:n, n from 1 (without :n, the first time), "
            f"{VARIABLE}={text!r}"
        )
    return name, int(number)


_text = os.environ.get(VARIABLE)
_name, _left = _read(_text) if _text else (None, 0)


def killpoint(name: str) -> None:
    """Kill this process if ``AEMBUS_KILLPOINT=name:n`` is set and it comes by for the n-th time.

    Else return at once; without the variable that is one comparison.

    Args:
        name: what the variable calls this place; several places may share a name.

    The variable is read when aembus is imported: there AembusError if it makes no sense.  Calls by
    all threads of the process are counted together.
    """
    if name == _name:
        _come_by()


def _come_by() -> None:
    global _left  # noqa: PLW0603  # one number for the whole process
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
