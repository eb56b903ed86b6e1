"""Which event loop a supervisor, or another host of services, runs in.

uvloop where it is installed (``pip install aembus[uvloop]``), else asyncio's own; AEMBUS_LOOP says
otherwise.  Both do the same; uvloop needs less processor time where there are many connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import resource
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from aembus.errors import SupervisorError
from aembus.hosting.threads import Threads

VARIABLE: Final = "AEMBUS_LOOP"
ASYNCIO: Final = "asyncio"
UVLOOP: Final = "uvloop"

_T = TypeVar("_T")


def chosen_loop() -> str:
    """Return "uvloop" or "asyncio".

    Raises: SupervisorError: AEMBUS_LOOP names another one, or one that is not installed.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", ASYNCIO, UVLOOP):
        raise SupervisorError(f"{VARIABLE} is '{ASYNCIO}' or '{UVLOOP}', {VARIABLE}={wanted!r}")
    if wanted == ASYNCIO:
        return ASYNCIO
    try:
        importlib.import_module(UVLOOP)
    except ImportError as error:
        if wanted:
            raise SupervisorError(
                f"uvloop cannot be imported, though {VARIABLE}={wanted!r} asks for it; "
                f"pip install uvloop, or unset it, error={error}"
            ) from error
        return ASYNCIO
    return UVLOOP


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a loop of the chosen kind, as `asyncio.run` does.

    Raises: what it raises; SupervisorError, see `chosen_loop`.
    """
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] | None = None
        if chosen_loop() == UVLOOP:
            factory = importlib.import_module(UVLOOP).new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.get_loop().set_default_executor(Threads())
            return runner.run(main)
    finally:
        main.close()


def raise_descriptor_limit() -> None:
    """Let this process open as many descriptors as it may: each connection takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # as it was, then
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
