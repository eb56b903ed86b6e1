from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import aembus
from aembus.cli.main import main
from tests.support.tally import Tallies, tallies


@pytest.fixture
def bus(bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tallies]:
    """A bus with version 1 of the service `tally`."""
    with tallies(bus_name, tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def run(bus: Tallies, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `aembus service`, and returns exit code, output and errors."""

    def run_command(command: str, *words: str) -> tuple[int, str, str]:
        code = main(["service", command, "--bus", bus.bus_name, *words])
        return code, *capsys.readouterr()

    return run_command


def test_a_service_is_loaded_upgraded_rolled_back_and_unloaded(
    bus: Tallies, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Each command says in words what has come of it."""
    with aembus.connect(bus.bus_name) as member:
        tally = member.service("tally")
        tally.add(3)
        bus.write("2")
        assert run("load", "tally:Tally") == (0, "loaded: tally 2\n", "")
        user = f"; it goes when its users let go: {member.member_name}\n"
        assert run("unload", "tally", "--version", "1") == (0, f"unloading: tally 1{user}", "")
        bus.write("3")
        code, said, _ = run("upgrade", "tally", "--hand-over")
        lines = said.splitlines()
        assert (code, lines[0], lines[2]) == (
            *(0, "upgraded: tally 2 -> 3"),
            "at the switch: total 0, is_running 1",
        )
        assert lines[1].startswith("handed over in ")
        code, said, _ = run("rollback", "tally")
        assert (code, said) == (0, "rolled back: tally 3 -> 2+2\ntally 3 drains\n")
        member.release(tally)
    bus.await_versions(("2+2", "running"))


def test_the_list_is_a_table_or_json(
    bus: Tallies,
    run: Callable[..., tuple[int, str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With version, state, users, calls and own counts; `aembus stats` has the points too."""
    with aembus.connect(bus.bus_name) as member:
        member.service("tally").add(3)
        code, said, _ = run("list")
        title, row = (line.split() for line in said.splitlines())
        assert (code, title[:5]) == (0, ["service", "version", "state", "users", "calls"])
        assert row[:5] == ["tally", "1", "running", "1", "1"]
        assert said.rstrip().endswith("tally:Tally  total 3, is_running 1")
        (found,) = json.loads(run("list", "--json")[1])
        assert (found["users"], found["points"]) == ([member.member_name], ["tally.changed"])
        assert found["figures"] == {"total": 3, "is_running": 1}
        assert main(["stats", "--bus", bus.bus_name]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["tally.changed", "0", "0"] in rows


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["load", "tally:Tally"], "this version is loaded already"),
        (["load", "nothing"], "no such service; name one, or write module:Class"),
        (["unload", "nothing"], "no such service here; load it (aembus service load)"),
        (["upgrade", "nothing"], "no such service here"),
        (["upgrade", "tally", "timer"], "this is another service, upgrade='tally'"),
        (["rollback", "tally"], "there is no version to go back to"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(
    bus: Tallies, run: Callable[..., tuple[int, str, str]], words: list[str], says: str
) -> None:
    """And changes nothing."""
    code, said, error = run(*words)
    assert (code, said) == (1, "")
    assert error.startswith(f"aembus: error: {says}")
    assert error.count("\n") == 1
    assert bus.versions() == [("1", "running")]


@pytest.mark.parametrize("command", ["list", "load", "unload", "upgrade", "rollback"])
def test_each_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own one."""
    with pytest.raises(SystemExit) as ended:
        main(["service", command, "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  aembus service {command}" in capsys.readouterr().out
