"""What the processes have in common that a supervisor starts: workers, service hosts, spawn host.

They begin with a configuration on standard input, leave the terminal's signals to the supervisor,
and do not outlive it.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import signal
import sys
from typing import Any, Final

GRACE_S: Final = 5.0  # how long ending may take after the supervisor's death
EXIT_BROKEN: Final = 1
EXIT_NOT_STARTED: Final = 3


def begin() -> dict[str, Any]:
    """Set the process up, and return its configuration: `bus`, `name`, and what its kind needs.

    Waits for it, and ends the process if the supervisor ends first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()  # SIGABRT, from a supervisor that lost patience, dumps the stack
    text = sys.stdin.read()
    if not text:  # a spare whose supervisor is gone
        sys.exit(EXIT_BROKEN)
    configuration: dict[str, Any] = json.loads(text)
    importlib.invalidate_caches()  # a spare has looked into some folders long ago
    logging.basicConfig(
        level=configuration["log_level"],
        format=f"%(asctime)s %(levelname)s [{configuration['name']}] %(message)s",
    )
    return configuration


def end_after_grace() -> None:
    """End the process by force in GRACE_S seconds, also if its code never gives up the interpreter.

    Call it when the supervisor is gone.
    """
    faulthandler.dump_traceback_later(GRACE_S, exit=True)
