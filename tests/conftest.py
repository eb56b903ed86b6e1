"""What every test gets: names of its own, and a check that it leaves nothing behind.

After each test there may be no process, thread, descriptor or name in /dev/shm that was not there
before it.  What is just ending is given `leak_grace_s` to end.  Other test runs on the same
machine are told apart by their process id, which stands in every bus name and in the environment
of every process that a test starts.

Not seen: threads that Python does not know, a process that was forked without exec and then lost
its parent, and names in /dev/shm of a bus that was not called by `bus_name`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import hypothesis
import psutil
import pytest

import aembus
from tests.support.lanes import use

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
    """Mark the processes that the tests will start; let each write whole lines."""
    os.environ[RUN_VARIABLE] = str(os.getpid())
    # With it a line and its end are two writes, between which another process may write to a pipe.
    os.environ.pop("PYTHONUNBUFFERED", None)


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


def belongings() -> dict[str, str]:
    """Return what this test run has now: what tells each thing from all others, and a detail."""
    processes = _processes()
    pipes: set[str] = set()
    for pid in [pid for pid, command in processes.items() if RESOURCE_TRACKER in command]:
        del processes[pid]  # started by multiprocessing where it likes; ends with this process
        pipes.update(t for t in _descriptors(pid).values() if t.startswith("pipe:"))
    descriptors = {n: t for n, t in _descriptors().items() if t not in pipes}
    names = [name for name in os.listdir(SHM) if f"aembus.{BUS_PREFIX}" in name]
    return {
        **{f"process {pid}:": command[:200] for pid, command in processes.items()},
        **{f"thread {t.native_id}:": f"{t.name}, daemon={t.daemon}" for t in threading.enumerate()},
        **{f"descriptor {number}: {target}": "" for number, target in descriptors.items()},
        **{f"name {SHM / name}": "" for name in names},
    }


def left_over(before: dict[str, str]) -> list[str]:
    """Return what there is now and was not there `before`."""
    now = belongings()
    return [f"{what} {now[what]}".rstrip() for what in sorted(now.keys() - before.keys())]


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


def _processes() -> dict[int, str]:
    # Children, and by their environment also those whose parent died before them.
    found = {}
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    for pid in psutil.pids():
        if pid in children or _is_of_this_run(pid):
            try:
                process = psutil.Process(pid)
                found[pid] = " ".join(process.cmdline()) or f"{process.name()}, a zombie"
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


def _descriptors(pid: int | str = "self") -> dict[int, str]:
    found = {}
    folder = Path(f"/proc/{pid}/fd")
    try:
        for number in os.listdir(folder):
            # The descriptor of the listing itself is gone by now.
            with contextlib.suppress(FileNotFoundError):
                found[int(number)] = os.readlink(folder / number).removesuffix(" (deleted)")
    except (FileNotFoundError, PermissionError):  # the process is
        return {}
    return found


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
def bus_options() -> dict[str, Any]:
    """What a test module's buses have of their own: arguments of Supervisor."""
    return {}


@pytest.fixture
def bus(
    request: pytest.FixtureRequest,
    bus_name: str,
    bus_options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """A bus without workers and with small lanes; its name.

    Tests that are marked `both_lanes` (tests/support/lanes.py) get one with each implementation.
    """
    module: ModuleType | None = getattr(request, "param", None)
    if module is not None:
        use(monkeypatch, module)
        monkeypatch.setenv("AEMBUS_LANE", module.IMPLEMENTATION)
    options = {"lane_bytes": 8192, "state_directory": tmp_path, **bus_options}
    with aembus.Supervisor(bus_name, **options):
        yield bus_name


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
