"""Clients, workers and supervisors killed before each line of aembus that they run.

See points/life.py and points/worker_life.py for the lives that are led.  Afterwards the others go
on, or end because their supervisor has; the next start works at the first try; no name is left.
Here the lines of the steps that more than one process takes part in are all tried, of the others a
share; ``-m slow`` tries each.  A failure names the line: ``--place`` repeats it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Final

import pytest

from tests.crash.points.sources import ROOT, environment

SECONDS_MAX: Final = 3600

CREATE_AND_REMOVE: Final = (
    *("BusLock", "sweep", "Segment.create", "RegistryWriter", "create_bell", "unlink_bell"),
    *("Inboxes.create", "Inboxes.remove", "ControlServer.start", "ControlServer.close"),
)
COME_AND_GO: Final = (
    *("Operations.join", "Operations._join_client", "Operations.register", "Operations.publish"),
    *("Operations.leave", "Operations.acknowledge", "Operations.undeliverable"),
    *("Publication.publish_now", "Publication.acknowledge", "Departures._retire"),
    *("Departures.dispose", "Departures.forward", "Departures.keep", "Inboxes._empty_lane"),
)
VISIT: Final = (
    *("Membership._join", "Membership._handle_push", "Membership.leave", "Membership.close"),
    *("Registrations.", "Bus.close", "ControlClient._greet", "EventStruct._deliver_special"),
    *("EventStruct._give_back", "Peer._open_lane", "Segment.reserve"),
)
HAND_OVER: Final = (
    *("Workers._on_process_gone", "Operations._join_spawned", "Members.replace_process"),
    *("Spare.", "Launched."),
)
TAKE_OVER: Final = ("Membership._join",)


def kill(bus_name: str, life: str, role: str, every: int, *wholly: str) -> tuple[int, int]:
    """Kill one role at lines of a life, on two processors; return the cases and the kills."""
    running = []
    for number in range(2):
        command = [sys.executable, "-m", "tests.crash.points", life, "--role", role]
        command += ["--bus", f"{bus_name}-{number}", "--every", str(every)]
        command += ["--share", str(number), "2", "--wholly", *wholly]
        running.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=SECONDS_MAX)[0] for process in running]
    print(*said)
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text
    found = re.findall(r"cases=(\d+), kills=(\d+)", "".join(said))
    return sum(int(cases) for cases, _ in found), sum(int(kills) for _, kills in found)


def test_a_client_may_die_at_any_line(bus_name: str) -> None:
    """Its jobs are delivered or dead letters, its slot is free, and the others go on."""
    cases, kills = kill(bus_name, "life", "visitor", 20, *VISIT)
    assert 100 < cases < 1.1 * kills


def test_a_supervisor_may_die_at_any_line(bus_name: str) -> None:
    """Its clients end, and the next supervisor starts at the first try."""
    cases, kills = kill(bus_name, "life", "supervisor", 200, *CREATE_AND_REMOVE, *COME_AND_GO)
    assert 120 < cases < 1.1 * kills


def test_a_replacement_may_die_at_any_line(bus_name: str) -> None:
    """The one after it goes on; what was in hand comes again, and says so."""
    cases, kills = kill(bus_name, "worker-life", "worker", 200, *TAKE_OVER)
    assert 12 < cases < 1.1 * kills


def test_a_supervisor_may_die_while_it_hands_over(bus_name: str) -> None:
    """No worker is left, and the next supervisor with its workers starts at the first try."""
    cases, kills = kill(bus_name, "worker-life", "supervisor", 1000, *HAND_OVER)
    assert 20 < cases < 1.1 * kills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("life", "role"),
    [
        ("life", "visitor"),
        ("life", "supervisor"),
        ("worker-life", "worker"),
        ("worker-life", "supervisor"),
    ],
)
def test_every_line(bus_name: str, life: str, role: str) -> None:
    """Each line that is passed is where somebody dies."""
    cases, kills = kill(bus_name, life, role, 1)
    assert 600 < cases < 1.1 * kills
