"""Threads of services: what blocks in them does not keep the process."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aembus.hosting.threads import Threads
from aembus.services import Service
from tests.support.running import ROOT

SCRIPT = """
import sys
import aembus
supervisor = aembus.Supervisor(
    sys.argv[1], services=["tests.hosting.test_threads:Stuck"], state_directory=sys.argv[2]
)
supervisor.run(lambda: print("ready", flush=True))
print("stopped", flush=True)
"""


class Stuck(Service):
    """A service one of whose threads waits for ever."""

    name = "stuck"
    version = "1"

    async def start(self) -> None:
        """Have it wait."""
        loop, begun = asyncio.get_running_loop(), threading.Event()

        def wait() -> None:
            begun.set()
            threading.Event().wait()

        self.stuck = loop.run_in_executor(None, wait)
        await asyncio.to_thread(begun.wait)


@pytest.mark.parametrize("loop", ["asyncio", ""])
def test_a_service_whose_thread_is_stuck_does_not_keep_its_supervisor(
    bus_name: str, tmp_path: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bus stops as ever, the process ends, and where the thread is stuck is in the log."""
    monkeypatch.setenv("AEMBUS_LOOP", loop)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, bus_name, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (out, process.returncode) == ("stopped\n", 0)
    assert "threading.py" in errors


def test_threads_do_what_they_are_given() -> None:
    """Each waits for work, results and errors come back, and behind the end nothing is taken."""
    threads = Threads()
    meet = threading.Barrier(3)

    def met(number: int) -> int:
        meet.wait(20)
        return number

    for _ in range(2):  # three at a time, and the next three by the same ones
        futures = [threads.submit(met, number) for number in range(3)]
        assert [future.result(20) for future in futures] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(20)
    threads.shutdown()
    assert not any(thread.is_alive() for thread in threads._begun)
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(met, 1)
