from __future__ import annotations

import json

import pytest

from aembus.cli import buses, doctor
from aembus.cli.buses import DEAD, RUNNING, FoundBus
from aembus.cli.doctor import FAIL, OK, WARN, Finding
from aembus.cli.main import main
from aembus.shm import layout

MIB = 1 << 20
NAMES = ["python", "platform", "memory model", "aembus", "posix-ipc", "msgpack", "psutil",
         "event loop", "descriptors", "pidfd", "/dev/shm", "stale names"]  # fmt: skip


def test_this_machine_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """The tests run here: so nothing fails, and each line says ok or warn, what, and how."""
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(NAMES)
    for line, name in zip(lines, NAMES, strict=True):
        status, rest = line.split(maxsplit=1)
        assert status in (OK, WARN), line
        assert rest.startswith(f"{name}  "), line


def test_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One object for each line."""
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert [finding["name"] for finding in findings] == NAMES
    [found] = [finding for finding in findings if finding["name"] == "aembus"]
    assert f"layout {layout.LAYOUT_VERSION}" in found["text"]


def test_a_failure_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package that is missing, for instance; the line says how to get it."""
    monkeypatch.setitem(doctor.DEPENDENCIES, "posix-ipc", "nosuch_module")
    assert main(["doctor"]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith(FAIL)]
    assert "pip install posix-ipc" in line


@pytest.mark.parametrize(
    ("free", "status"), [(64 << 30, OK), (64 * MIB, WARN), (MIB, FAIL), (0, FAIL)]
)
def test_shared_memory_is_measured(free: int, status: str) -> None:
    """Docker's 64 MiB are less than a full bus takes; a megabyte is too little for any."""
    finding = doctor._space("/dev/shm", free, free)
    assert finding.status == status
    assert ("--shm-size" in finding.text) == (status != OK)


def test_the_need_is_that_of_every_member_talking_with_the_supervisor() -> None:
    """One more member is one more inbox, doorbell, and lane to and fro."""
    one_more = doctor.bytes_for(3) - doctor.bytes_for(2)
    inbox = layout.rings_offset(layout.SLOTS_DEFAULT)
    assert one_more == inbox + layout.PAGE + 2 * layout.LANE_BYTES_DEFAULT


def test_another_memory_model_is_warned_of() -> None:
    """Plain-Python lanes rely on stores being seen in order."""
    assert doctor._memory_model("x86_64").status == OK
    finding = doctor._memory_model("aarch64")
    assert finding.status == WARN
    assert "aarch64" in finding.text


def test_stale_names_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that removes them."""
    monkeypatch.setattr(
        buses, "find_all", lambda: [FoundBus("up", RUNNING, 1), FoundBus("gone", DEAD, 0)]
    )
    assert doctor._stale() == Finding(
        WARN, "stale names", "dead supervisors left some; run: aembus clean, buses=['gone']"
    )
