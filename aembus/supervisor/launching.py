"""Starts the processes of workers and service hosts: ``python -m`` their program.

Each reads its configuration from standard input, once; until it has that it is nobody yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any, NamedTuple


class Launched(NamedTuple):
    """A process that waits for its configuration, or has it."""

    process: subprocess.Popen[bytes]
    pidfd: int

    def configure(self, configuration: dict[str, Any]) -> None:
        """Tell it what it is to be; what has died meanwhile is found dead by its pidfd."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin:
            self.process.stdin.write(json.dumps(configuration).encode())

    def end(self) -> None:
        """Kill it and let go of all of it."""
        self.process.kill()
        self.process.wait()
        os.close(self.pidfd)
        assert self.process.stdin is not None
        self.process.stdin.close()


def launch(program: str) -> Launched:
    """Start a process that runs a module and waits for its configuration.

    Raises: OSError if there is no process or no descriptor to be had; nothing is left then.
    """
    # A process group of its own: the terminal's Ctrl-C is for the supervisor.
    process = subprocess.Popen(
        [sys.executable, "-m", program], stdin=subprocess.PIPE, process_group=0
    )
    try:
        return Launched(process, os.pidfd_open(process.pid))
    except OSError:  # nobody would see it end
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        raise
