"""What every test gets: names of its own, and a check that it leaves nothing behind.

After each test there may be no process, thread, descriptor or name in /dev/shm that was not there
before it.  What is just ending is given `leak_grace_s` to end.  Other test runs on the same
machine are told apart by their process id, which stands in every bus name and in the environment
of every process that a test starts.

Not seen: threads that Python does not know, a process that was forked without exec and then lost
its parent, and names in /dev/shm of a bus that was not called by `bus_name`.
"""

from __future__ import annotations

import gc
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import hypothesis
import psutil
import pytest

SHM: Final = Path("/dev/shm")
BUS_PREFIX: Final = f"t{os.getpid()}-"
RUN_VARIABLE: Final = "AEMBUS_TEST_RUN"
RUN_ENTRY: Final = f"{RUN_VARIABLE}={os.getpid()}".encode()
RESOURCE_TRACKER: Final = "from multiprocessing.resource_tracker import main"
_bus_numbers = itertools.count(1)

hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "ci", deadline=None, print_blob=True, derandomize=True, database=None, max_examples=60
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests of the leak check itself wait for less long."""
    parser.addini("leak_grace_s", "how long what a test leaves may take to end", default="2")


def pytest_configure() -> None:
    """Mark the processes that the tests will start."""
    os.environ[RUN_VARIABLE] = str(os.getpid())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test that CI relies on into a failure there."""
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and os.environ.get("AEMBUS_CI") == "1"
        and item.get_closest_marker("required_in_ci") is not None
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, but required in CI: {reason}"
    return report


@dataclass(frozen=True)
class Belongings:
    """What there is at one moment; each value says it in words for a person."""

    processes: dict[tuple[int, float], str]
    threads: dict[threading.Thread, str]
    descriptors: dict[tuple[int, str], str]
    names: dict[str, str]


def belongings() -> Belongings:
    """Return what this test run has now."""
    processes = _processes()
    pipes = set()
    for key in [key for key, words in processes.items() if RESOURCE_TRACKER in words]:
        del processes[key]  # started by multiprocessing where it likes; ends with this process
        pipes.update(_pipes_of(key[0]))
    return Belongings(processes, _threads(), _descriptors(ignored=pipes), _names())


def left_over(before: Belongings) -> list[str]:
    """Return a line for each thing that there is now and was not there `before`."""
    now = belongings()
    pairs = [
        (before.processes, now.processes),
        (before.threads, now.threads),
        (before.descriptors, now.descriptors),
        (before.names, now.names),
    ]
    return [words for was, new in pairs for key, words in new.items() if key not in was]


def settled(look: Callable[[], list[str]], grace_s: float) -> list[str]:
    """Call `look` until it finds nothing, for at most `grace_s`; return what it found last."""
    deadline = time.monotonic() + grace_s
    found = look()
    if found:
        gc.collect()  # what only a reference cycle keeps is nobody's any more
        found = look()
    while found and time.monotonic() < deadline:
        time.sleep(0.01)
        found = look()
    return found


def _processes() -> dict[tuple[int, float], str]:
    # Children, and by their environment also those whose parent died before them.
    found = {}
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    for pid in psutil.pids():
        try:
            if pid not in children and not _is_of_this_run(pid):
                continue
            process = psutil.Process(pid)
            command = " ".join(process.cmdline()) or f"{process.name()} ({process.status()})"
            found[pid, process.create_time()] = f"process {pid}: {command[:200]}"
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _is_of_this_run(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        return RUN_ENTRY in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return False


def _pipes_of(pid: int) -> set[str]:
    try:
        targets = {str(p.readlink()) for p in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return set()
    return {target for target in targets if target.startswith("pipe:")}


def _threads() -> dict[threading.Thread, str]:
    return {t: f"thread {t.name!r}, daemon={t.daemon}" for t in threading.enumerate()}


def _descriptors(ignored: set[str]) -> dict[tuple[int, str], str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}").removesuffix(" (deleted)")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target not in ignored:
            found[int(number), target] = f"descriptor {number}: {target}"
    return found


def _names() -> dict[str, str]:
    mark = f"aembus.{BUS_PREFIX}"
    return {name: f"{SHM / name}" for name in os.listdir(SHM) if mark in name}


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if something of it is still there when it is over."""
    before = belongings()
    yield
    grace_s = float(request.config.getini("leak_grace_s"))
    left = settled(lambda: left_over(before), grace_s)
    if left:
        pytest.fail(f"{request.node.nodeid} left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def bus_name() -> str:
    """A bus name that no other test has, in this run or in another one."""
    return f"{BUS_PREFIX}{next(_bus_numbers)}"


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
