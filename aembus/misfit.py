"""What is added to the TypeError of a handler whose parameters do not fit a job's data.

Python names the handler's parameters only.  Most often the handler lacks ``event``, or the
activation and the handler disagree about the data: so both are named here.
"""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Sequence

from aembus.callchain import data_of
from aembus.codec import decode


def add_what_came(error: BaseException, header: Sequence[int], payload: bytes) -> None:
    """Add to `error` what the handler was called with, if the call itself raised it.

    Args:
        header, payload: of the job's record.
    """
    if isinstance(error, TypeError):
        with contextlib.suppress(Exception):  # that of the handler is the one to be told
            if "argument" in str(error) and _is_of_the_call(error):
                data = decode(data_of(header, payload))
                error.add_note(f"it was called as handler(event, *data), data={reprlib.repr(data)}")


def _is_of_the_call(error: TypeError) -> bool:
    # Then no frame of the handler's stands below that of aembus which calls it.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or str(trace.tb_frame.f_globals.get("__name__")).startswith("aembus.")
