from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aembus.cli import buses
from aembus.shm import layout
from tests.cli.support import AEMBUS, Ended, aembus, run_program, running

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

APPLICATION = """
import sys
import aembus

def main(bus):
    bus.register("work", lambda event, *data: None, name="work")

def refuses(bus):
    bus.service("nosuch")

def breaks(bus):
    raise LookupError("no such customer: 4711")

def exits(bus):
    sys.exit(7)

def ticks(bus):
    bus.register("tick", lambda event: None, name="tick")
    bus.service("timer").every(0.02, "tick", name="tick")

def listens(bus):
    bus.service("tcp").listen(sys.argv[1], "line", framer="line")
"""

CLIENT = """
import sys
import aembus

def fail(error):
    sys.exit(f"{type(error).__name__}: {error}")

bus_name = sys.argv[1]
try:
    {body}
except aembus.AembusError as error:
    fail(error)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the application lies."""
    (tmp_path / "application.py").write_text(APPLICATION)
    return tmp_path


def assert_clear(ended: Ended, *values: str) -> None:
    """Check for a failure that a person can do something about: one line, with the values."""
    assert ended.code == 1, ended
    assert "Traceback" not in ended.err
    for value in values:
        assert value in ended.error_line


def run_client(directory: Path, bus_name: str, body: str, *before: str) -> Ended:
    """Run a client of the bus as a program of its own."""
    indented = body.strip().replace("\n", "\n    ")
    script = directory / "client.py"
    script.write_text(CLIENT.replace("{body}", indented))
    return run_program(directory, [*before, sys.executable, str(script), bus_name])


# --- what a worker may be started with ------------------------------------------------------------


def test_unknown_module(directory: Path, bus_name: str) -> None:
    """The module that was not found is named."""
    ended = aembus(directory, "run", "nosuch.part:main", "--bus", bus_name)
    assert_clear(ended, "aembus: error: worker ", "module='nosuch'", "'nosuch.part:main'")
    assert ended.out == ""
    assert buses.left_in_shared_memory(bus_name) == []


def test_module_without_that_function(directory: Path, bus_name: str) -> None:
    """What the module has instead is listed."""
    ended = aembus(directory, "run", "application:mian", "--bus", bus_name)
    assert_clear(ended, "aembus: error: worker ", "'application:mian'", "'main'")


def test_main_refuses(directory: Path, bus_name: str) -> None:
    """An entry point that asks for a service that is not there: which one, and which are."""
    ended = aembus(directory, "run", "application:refuses", "--bus", bus_name, "--service", "timer")
    assert_clear(ended, "service='nosuch'", "hosted=['timer 1']", "--service")


def test_main_raises(directory: Path, bus_name: str) -> None:
    """The application's own error: its place is logged, for whoever wrote it; the end is clear."""
    ended = aembus(directory, "run", "application:breaks", "--bus", bus_name)
    assert ended.code == 1
    assert 'application.py", line' in ended.err
    assert "LookupError: no such customer: 4711" in ended.error_line
    assert "application:breaks" in ended.error_line
    assert ended.err.count("Traceback") == 1


def test_main_ends_the_process(directory: Path, bus_name: str) -> None:
    """A worker that ends while it starts: its exit code is told."""
    ended = aembus(directory, "run", "application:exits", "--bus", bus_name)
    assert_clear(ended, "application:exits", "exit code 7")


def test_unknown_service(directory: Path, bus_name: str) -> None:
    """The services that there are get listed."""
    ended = aembus(directory, "run", "application:main", "--bus", bus_name, "--service", "tpc")
    assert_clear(ended, "service='tpc'", "'tcp'", "'timer'")


def test_port_in_use(directory: Path, bus_name: str) -> None:
    """The address is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = aembus(
            directory, "run", "application:listens", "--bus", bus_name, "--service", "tcp",
            "--", address,
        )  # fmt: skip
    assert_clear(ended, f"address='{address}'", "choose another address", "already in use")
    assert buses.left_in_shared_memory(bus_name) == []


# --- what a client may do -------------------------------------------------------------------------


def test_bad_jobs(directory: Path, bus_name: str) -> None:
    """Too large for a lane, or no room in time: the client is told the numbers; the bus goes on."""
    lane_bytes = 4096
    with running(
        directory, "application:main", "--bus", bus_name, "--lane-bytes", str(lane_bytes)
    ) as run:
        ended = run_client(
            directory, bus_name,
            """
with aembus.connect(bus_name) as bus:
    bus.activate("work", bytes(5000))
""",
        )  # fmt: skip
        most = layout.payload_bytes_max(lane_bytes)
        assert_clear(ended, "JobTooLarge: ", "size=500", f"max={most}", "lane_bytes")

        # Fills the inbox of a member that never polls.
        ended = run_client(
            directory, bus_name,
            """
with aembus.connect(bus_name) as idle, aembus.connect(bus_name) as bus:
    idle.register("slow", print)
    point = bus.point("slow")
    while point.try_activate(bytes(500)):
        pass
    point.activate(bytes(500), timeout=0.1)
""",
        )  # fmt: skip
        assert_clear(ended, "InboxFull: ", "'slow'", "timeout_s=0.1", "nothing was sent")

        ended = run_client(
            directory, bus_name,
            """
with aembus.connect(bus_name) as bus:
    print(bus.activate("work", 1))
""",
        )  # fmt: skip
        assert (ended.code, ended.out) == (0, "1\n")
        totals = buses.statistics(bus_name)["totals"]
        counted = totals["delivered"] + totals["dead_lettered"] + totals["queued"]
        assert totals["sent"] == counted > 1
        ended = run.end()
    assert ended.code == 0
    assert "Traceback" not in ended.err


def test_wrong_layout_version(directory: Path, bus_name: str) -> None:
    """A client of another release is refused, and told both numbers."""
    with running(directory, "application:main", "--bus", bus_name):
        ended = run_client(
            directory, bus_name,
            """
from aembus.shm import layout
layout.LAYOUT_VERSION += 98
aembus.connect(bus_name)
""",
        )  # fmt: skip
    has = layout.LAYOUT_VERSION
    assert_clear(ended, "VersionMismatch: ", f"want={has + 98}, got={has}", "same release")


def test_no_such_bus(directory: Path, bus_name: str) -> None:
    """Neither to look at nor to join; how to start one is said."""
    ended = aembus(directory, "stats", "--bus", bus_name)
    assert_clear(ended, "aembus: error: ", f"bus={bus_name!r}", "aembus run")
    ended = run_client(directory, bus_name, "aembus.connect(bus_name)")
    assert_clear(ended, "BusNotFound: ", f"bus={bus_name!r}", "aembus run")


def test_two_supervisors_on_one_bus(directory: Path, bus_name: str) -> None:
    """The second refuses and names the first, which goes on."""
    with running(directory, "application:main", "--bus", bus_name) as first:
        second = aembus(directory, "run", "application:main", "--bus", bus_name)
        assert_clear(second, f"bus={bus_name!r}", f"pid={first.pid}", "--bus NAME")
        assert buses.statistics(bus_name)["supervisor"]["pid"] == first.pid
        assert first.end().code == 0


# --- too little of /dev/shm -----------------------------------------------------------------------


def with_shared_memory(size_bytes: int) -> list[str]:
    """Return what to put before a command that shall have a /dev/shm of its own, of this size.

    Skips the test where that is not permitted.
    """
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    script = f'mount -t tmpfs -o size={size_bytes} tmpfs /dev/shm && exec "$@"'
    before = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    tried = subprocess.run([*before, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a mount namespace is not permitted here: {tried.stderr.strip()}")
    return before


@pytest.mark.parametrize(
    ("pages", "missing"),
    [(64, "registry"), (130, "inbox0"), (131, "inbox1"), (132, "bell of inbox1"), (140, "lane")],
)
def test_too_little_shared_memory_to_start(
    directory: Path, bus_name: str, pages: int, missing: str
) -> None:
    """Wherever it runs out: what was needed, and what there is."""
    size_bytes = pages * layout.PAGE
    command = [
        *AEMBUS, "run", "application:listens", "--bus", bus_name, "--slots", "8",
        "--service", "tcp", "--", "127.0.0.1:0",
    ]  # fmt: skip
    ended = run_program(directory, [*with_shared_memory(size_bytes), *command])
    need = {
        "registry": layout.registry_bytes(layout.REGISTRY_HALF_BYTES_DEFAULT),
        "lane": layout.LANE_BYTES_DEFAULT,
    }.get(missing, layout.PAGE)
    assert_clear(
        ended, "too little space in /dev/shm", f"need={need}", "free=", f"size={size_bytes}",
        "--shm-size", "inbox1" if missing == "lane" else missing.rpartition(" ")[2],
    )  # fmt: skip


SLOTS = 8
LANE_BYTES = 64 * 1024
REGISTRY_BYTES = 8192
SUPERVISOR = f"""
def supervise(function, **options):
    worker = aembus.WorkerSpec("worker", f"application:{{function}}")
    return aembus.Supervisor(
        bus_name, workers=[worker], slots={SLOTS}, lane_bytes={LANE_BYTES},
        registry_bytes={REGISTRY_BYTES}, state_directory="state", **options,
    )
"""


def shared_memory_with(members: int, lanes: int) -> int:
    """Return how many bytes a bus takes, and half a lane more."""
    assert layout.rings_offset(SLOTS) == layout.PAGE
    pages = 1 + layout.registry_bytes(REGISTRY_BYTES) // layout.PAGE + 1  # the lock; rounded up
    pages += members + members - 1  # inboxes; semaphores, the supervisor has a pipe
    return pages * layout.PAGE + lanes * LANE_BYTES + LANE_BYTES // 2


def test_too_little_shared_memory_for_a_lane(directory: Path, bus_name: str) -> None:
    """Two members that cannot talk are told so, and never die of SIGBUS; the bus goes on."""
    body = f"""
{SUPERVISOR}
with supervise("main"), aembus.connect(bus_name) as bus:
    for attempt in range(2):
        try:
            bus.activate("work", attempt)
        except aembus.OutOfSharedMemory as error:
            refused = error
            print("refused", flush=True)
    bus.register("other", print)
    print("registered", flush=True)
    raise refused
"""
    size_bytes = shared_memory_with(members=3, lanes=0)
    ended = run_client(directory, bus_name, body, *with_shared_memory(size_bytes))
    assert_clear(
        ended, "OutOfSharedMemory: too little space in /dev/shm", f"need={LANE_BYTES}", "free=",
        f"size={size_bytes}", "--shm-size", "smaller lanes",
    )  # fmt: skip
    assert ended.out.split() == ["refused", "refused", "registered"]


def test_too_little_shared_memory_for_a_service(directory: Path, bus_name: str) -> None:
    """A timer whose expiry cannot be told becomes a dead letter each time; services go on."""
    body = f"""
import time
from aembus.control import ControlClient
{SUPERVISOR}
with supervise("ticks", services=["timer"]):
    control = ControlClient(bus_name)
    deadline = time.monotonic() + 10
    while (kept := control.request("statistics")["supervisor"]["dead_letters"]) < 3:
        if time.monotonic() > deadline:
            sys.exit(f"too few: {{kept}}")
        time.sleep(0.01)  # between two looks at another process
    control.close()
print("three")
"""
    size_bytes = shared_memory_with(members=2, lanes=1)
    ended = run_client(directory, bus_name, body, *with_shared_memory(size_bytes))
    assert (ended.code, ended.out) == (0, "three\n"), ended
    assert "a job to slot 1 becomes a dead letter: too little space in /dev/shm" in ended.err
    assert f"need={LANE_BYTES}" in ended.err
    assert "Traceback" not in ended.err
