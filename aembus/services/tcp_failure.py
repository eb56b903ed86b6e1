"""What a TCP listener does about a message whose worker died, beside delivering it again.

Named by the listener's `on_worker_death`: "close", some bytes, or a function of yours that makes
the answer of the message.  The function runs in the supervisor, so it must be quick and importable
there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from .tcp_client import CLOSE, REDELIVER

Failure = Callable[[bytes], bytes]


def load_failure(wanted: str | bytes) -> Failure | None:
    """Return what makes the answer of a message; None where there is none to be made.

    Raises: ValueError if there is no such function, or its module cannot be imported.
    """
    if isinstance(wanted, bytes):
        return lambda message: wanted
    if wanted in (REDELIVER, CLOSE):
        return None
    module_name, _, function_name = wanted.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ValueError(
            "on_worker_death is 'redeliver', 'close', bytes, or a function of a module that the "
            f"supervisor can import, on_worker_death={wanted!r}, "
            f"error={type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise ValueError(f"on_worker_death names no function, on_worker_death={wanted!r}")
    return function  # type: ignore[no-any-return]
