from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support.running import sip_responder, statistics, until, workers
from tests.support.sipp import Sipp

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

need_sipp = pytest.mark.skipif(shutil.which("sipp") is None, reason="sipp is not installed")
need_sipsak = pytest.mark.skipif(shutil.which("sipsak") is None, reason="sipsak is not installed")


def place_calls(directory: Path, port: int, *options: str) -> tuple[int, int]:
    """Place calls and return how many succeeded and failed."""
    return Sipp(directory, port, *options).counts()


@need_sipp
@pytest.mark.parametrize("transport", ["t1", "tn"])
def test_sipp_calls_are_answered(
    bus_name: str, free_port: int, tmp_path: Path, transport: str
) -> None:
    """A real client's calls all succeed, over one connection and over one each."""
    with sip_responder(bus_name, free_port) as responder:
        sockets = ["-max_socket", "2000"] if transport == "tn" else []  # one a call, never shared
        counts = place_calls(
            tmp_path, free_port, "-t", transport, "-m", "1500", "-r", "500", "-d", "0", *sockets
        )
        assert counts == (1500, 0)
        assert responder.end() == 0
    assert "calls 1500" in responder.output


@need_sipp
def test_sipp_calls_ring(bus_name: str, free_port: int, tmp_path: Path) -> None:
    """Ring time, kept by the timer service, and calls that last a while change nothing."""
    with sip_responder(bus_name, free_port, "--ring", "0.2"):
        began = time.monotonic()
        counts = place_calls(
            tmp_path, free_port, "-t", "t1", "-m", "300", "-r", "100", "-d", "1000"
        )
        assert counts == (300, 0)
        assert time.monotonic() - began > 3.0 + 1.0 + 0.2 - 0.1
        services = {s["name"]: s for s in statistics(bus_name)["services"]}
        assert services["timer"]["expired"] >= 300


@need_sipsak
def test_sipsak_options_is_answered(bus_name: str, free_port: int) -> None:
    """A second real client's OPTIONS is answered with 200."""
    with sip_responder(bus_name, free_port):
        done = subprocess.run(
            ["sipsak", "-vv", "-E", "tcp", "-s", f"sip:a@127.0.0.1:{free_port}"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SIP/2.0 200" in done.stdout


@need_sipp
def test_calls_survive_a_workers_death(bus_name: str, free_port: int, tmp_path: Path) -> None:
    """A killed worker is replaced within 1 s and costs no call but those in hand there."""
    with sip_responder(bus_name, free_port):
        sipp = Sipp(tmp_path, free_port, "-t", "t1", "-m", "800", "-r", "200", "-d", "500")
        until("calls", lambda: workers(bus_name)[0]["delivered"] > 200)
        victim = workers(bus_name)[0]
        os.kill(victim["pid"], signal.SIGKILL)
        killed = time.monotonic()
        until("replacement", lambda: replaced(bus_name, victim["pid"]), 5.0)
        assert time.monotonic() - killed < 1.0
        succeeded, failed = sipp.counts()
        assert succeeded + failed == 800
        assert failed <= 1  # one worker has one message in hand
        totals = statistics(bus_name)["totals"]
        assert totals["dead_lettered"] == 0


def replaced(bus: str, pid: int) -> bool:
    """Say whether the worker that had this PID runs again, as another process."""
    return all(w["pid"] != pid and w["state"] == "running" for w in workers(bus)) and any(
        w["restarts"] == 1 for w in workers(bus)
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_responder_ends_cleanly(bus_name: str, free_port: int, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it within 3 s with a summary, exit code 0, and nothing left."""
    with sip_responder(bus_name, free_port) as responder:
        began = time.monotonic()
        assert responder.end(number) == 0
        assert time.monotonic() - began < 3.0
        assert "calls 0" in responder.output
        assert "0 restarts" in responder.output
    assert not list(Path("/dev/shm").glob(f"*aembus.{bus_name}.*"))


def test_next_start_succeeds_after_a_supervisors_death(bus_name: str, free_port: int) -> None:
    """kill -9 of the supervisor ends every worker, and the next start works at the first try."""
    with sip_responder(bus_name, free_port) as responder:
        children = psutil.Process(responder.process.pid).children(recursive=True)
        assert len(children) >= 2  # and perhaps a spare
        responder.end(signal.SIGKILL)
        assert list(Path("/dev/shm").glob(f"aembus.{bus_name}.*"))
        with sip_responder(bus_name, free_port) as second:
            assert len(workers(bus_name)) == 2
            assert second.end() == 0
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_summary_tells_restarts(bus_name: str, free_port: int) -> None:
    """The summary counts the workers that were replaced."""
    with sip_responder(bus_name, free_port) as responder:
        victim = workers(bus_name)[1]["pid"]
        os.kill(victim, signal.SIGKILL)
        until("replacement", lambda: replaced(bus_name, victim))
        assert responder.end() == 0
        assert "1 restart" in responder.output
