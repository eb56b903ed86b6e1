"""Which lane is in use: the one in C where it was built, else the one in plain Python.

``AEMBUS_LANE=python`` or ``AEMBUS_LANE=c`` chooses; members that use different ones share a bus.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aembus.errors import OpenError
from aembus.shm import lane as _python

VARIABLE: Final = "AEMBUS_LANE"

_Function = TypeVar("_Function", bound=Callable[..., Any])


def check() -> None:
    """Raise OpenError if the environment asks for a lane that is not there.

    Not raised by the import itself: who asks for what is not there is to get a line from whatever
    he has started, and no traceback.  Until then the lane in plain Python stands in.
    """
    if _refusal is not None:
        raise OpenError(str(_refusal))


def _choose() -> Any:
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "c", "python"):
        raise OpenError(f"{VARIABLE} must be 'c' or 'python', {VARIABLE}={wanted!r}")
    if wanted == "python":
        return _python
    try:
        from aembus.shm import _lane
    except ImportError as error:
        if wanted == "c":
            raise OpenError(
                "the lane in C was not built; install a C compiler and aembus again, or unset "
                f"{VARIABLE}, error={error}"
            ) from error
        return _python
    return _lane


_refusal: OpenError | None = None


def _itself(function: _Function) -> _Function:
    return function


if TYPE_CHECKING:
    from aembus.shm._lane import Publisher
    from aembus.shm.lane import IMPLEMENTATION, LaneConsumer, LaneProducer, Record

    plain_activate = plain_decode = _itself
else:
    try:
        _chosen = _choose()
    except OpenError as error:
        _refusal, _chosen = error, _python
    IMPLEMENTATION = _chosen.IMPLEMENTATION
    LaneConsumer = _chosen.LaneConsumer
    LaneProducer = _chosen.LaneProducer
    Record = _chosen.Record
    Publisher = getattr(_chosen, "Publisher", None)
    # Decorators: in C they do by themselves what is plain, and leave the rest to the function.
    plain_activate = getattr(_chosen, "PlainActivate", _itself)
    plain_decode = getattr(_chosen, "PlainDecode", _itself)

__all__ = [
    "IMPLEMENTATION",
    "LaneConsumer",
    "LaneProducer",
    "Publisher",
    "Record",
    "check",
    "plain_activate",
    "plain_decode",
]
