from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import aembus as public
from aembus.cli import doctor, run
from aembus.cli.main import build_parser, main
from aembus.errors import BusNotFound
from tests.cli.support import AEMBUS, aembus, environment

WORKER = public.WorkerSpec("calls", "tests.cli.application:main")
COMMANDS = (
    *("run", "ls", "stats", "top", "trace", "service", "dead", "upgrade", "scale", "stress"),
    *("clean", "doctor"),
)


def exit_code_of(*words: str) -> object:
    """Return what the process's exit code would be."""
    try:
        return main(words)
    except SystemExit as error:
        return error.code


def parsed(*words: str) -> argparse.Namespace:
    """Return the arguments as the command gets them."""
    return build_parser().parse_args(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help shows the command as one would type it."""
    assert exit_code_of(command, "--help") == 0
    _, _, examples = capsys.readouterr().out.partition("examples:")
    assert f"  aembus {command}" in examples


def test_the_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has to know the commands' names."""
    assert exit_code_of("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n    {command} " in out for command in COMMANDS)
    assert "examples:" in out


def test_the_version_is_said(tmp_path: Path) -> None:
    """Also by ``python -m aembus``, outside of the checkout."""
    ended = aembus(tmp_path, "--version")
    assert (ended.code, ended.out, ended.err) == (0, f"aembus {public.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "COMMAND"),
        (["nosuch"], "'nosuch'"),
        (["run"], "MODULE:FUNCTION"),
        (["run", "app"], "got='app'"),
        (["run", "app:"], "got='app:'"),
        (["run", ":main"], "got=':main'"),
        (["run", "a..b:main"], "got='a..b:main'"),
        (["run", "app:main()"], "got='app:main()'"),
        (["run", "app:main", "--bus", "a.b"], "name='a.b'"),
        (["run", "app:main", "--workers", "0"], "got='0'"),
        (["run", "app:main", "--workers", "some"], "got='some'"),
        (["run", "app:main", "--workers", "128"], "workers=128, slots=128"),
        (["run", "app:main", "--slots", "1"], "slots=1"),
        (["run", "app:main", "--lane-bytes", "1000"], "lane_bytes=1000"),
        (["run", "app:main", "--lane-bytes", "256K"], "'256K'"),
        (["run", "app:main", "--stop-timeout", "-1"], "got='-1'"),
        (["run", "app:main", "--stop-timeout", "nan"], "got='nan'"),
        (["run", "app:main", "--log-level", "loud"], "'LOUD'"),
        (["run", "app:main", "surplus"], "surplus"),
        (["stats", "--bus", ""], "name=''"),
        (["clean", "--bus", "../x"], "name='../x'"),
        (["ls", "--", "x"], "only `aembus run`"),
        (["ls", "--js"], "--js"),
        (["--bus", "x", "stats"], "aembus stats --bus NAME"),
        (["upgrade"], "required: what"),
        (["upgrade", "workers", "--timeout", "26"], "at most 25, got='26'"),
        (["scale", "workers"], "for instance workers=4"),
        (["scale", "workers=0"], "got='workers=0'"),
        (["scale", "workers=99999999999999999999"], "COUNT from 1 to 4095"),
        (["top", "--interval", "1e30"], "at most 1000000000, got='1e30'"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names what was wrong, below the usage; nothing was started."""
    assert exit_code_of(*words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("usage: aembus")
    assert says in captured.err.splitlines()[-1]
    assert captured.out == ""


def test_run_has_defaults() -> None:
    """One worker, no services, nothing said about names."""
    arguments = parsed("run", "shop.server:main")
    assert arguments.entry_point == "shop.server:main"
    assert (arguments.bus, arguments.workers, arguments.services) == (None, 1, [])


def test_run_takes_its_options() -> None:
    """Options may stand before and after the entry point, services several times."""
    arguments = parsed(
        *("run", "--workers", "4", "shop:main", "--service", "timer", "--service", "a.b:C"),
        *("--bus", "switch", "--log-level", "info", "--stop-timeout", "0.5"),
    )
    assert (arguments.bus, arguments.workers) == ("switch", 4)
    assert arguments.services == ["timer", "a.b:C"]
    assert (arguments.log_level, arguments.stop_timeout) == ("INFO", 0.5)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["run", "app:main"], ()),
        (["run", "app:main", "--"], ()),
        (["run", "app:main", "--", "--port", "5080", "--", "--help"],
         ("--port", "5080", "--", "--help")),
    ],
)  # fmt: skip
def test_what_follows_two_dashes_is_for_the_workers(
    words: list[str], arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is passed on as it is, whatever it looks like."""
    seen = []

    def execute(parsed: argparse.Namespace) -> int:
        seen.append(parsed.worker_arguments)
        return 0

    monkeypatch.setattr(run, "execute", execute)
    assert exit_code_of(*words) == 0
    assert seen == [arguments]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let ``aembus doctor`` raise."""

    def execute(arguments: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(doctor, "execute", execute)


def test_a_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, however many lines the error's text has; exit code 1."""
    fail_with(monkeypatch, BusNotFound("no such bus,\nbus='x'"))
    assert exit_code_of("doctor") == 1
    assert capsys.readouterr().err == "aembus: error: no such bus, bus='x'\n"


def test_ctrl_c_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 130, and not a word."""
    fail_with(monkeypatch, KeyboardInterrupt())
    assert exit_code_of("doctor") == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", [["doctor"], ["run", "--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(command: list[str], tmp_path: Path) -> None:
    """As with `aembus doctor | head -1`: quiet, whenever the pipe breaks."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*AEMBUS, *command], cwd=tmp_path, env=environment(tmp_path), stdout=writing,
            stderr=subprocess.PIPE, text=True, timeout=30, check=False,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failure_stays_one_where_nobody_reads(tmp_path: Path) -> None:
    """As with `aembus doctor | head -1`: the exit code is that of what was found."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*AEMBUS, "doctor"], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True,
            env={**environment(tmp_path), "AEMBUS_LANE": "none", "PYTHONUNBUFFERED": ""},
            timeout=30, check=False,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("words", ["ls", "stats", "service list", "upgrade workers --json", "nix"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_error(
    words: str, closed: str, bus_name: str, tmp_path: Path
) -> None:
    """What is closed is not written to, and nothing else changes: neither code nor other stream."""
    bus = "" if words in ("ls", "nix") else f" --bus {bus_name}"
    with public.Supervisor(bus_name, state_directory=tmp_path, workers=[WORKER]):
        open_, shut = (
            subprocess.run(
                f"{' '.join(AEMBUS)} {words}{bus} {how}",
                shell=True,
                text=True,
                check=False,
                capture_output=True,
                cwd=tmp_path,
                env=environment(tmp_path),
                timeout=30,
            )
            for how in ("", closed)
        )
    assert shut.returncode == open_.returncode == (2 if words == "nix" else 0)
    assert bool(shut.stdout) == (bool(open_.stdout) and closed == "2>&-")
    assert bool(shut.stderr) == (bool(open_.stderr) and closed == ">&-")


def test_help_needs_neither_asyncio_nor_psutil(tmp_path: Path) -> None:
    """What only `run` needs is not loaded to print a help."""
    script = (
        "import sys\nfrom aembus.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'asyncio', 'psutil', 'aembus.supervisor'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [AEMBUS[0], "-c", script], cwd=tmp_path, env=environment(tmp_path),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("module_part", "name"),
    [("responder", "responder"), ("caf\u00e9", "caf-"), ("x" * 50, "x" * 40)],
)
def test_a_modules_name_is_made_a_bus_name(module_part: str, name: str) -> None:
    """Whatever can be a module's name."""
    valid: Callable[[str], str] = run._valid_name
    assert valid(module_part) == name


@pytest.mark.parametrize("words", [("--help",), ("doctor",), ("ls", "--json")])
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    """As with a full disk: exit code 1, and no traceback."""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*AEMBUS, *words], cwd=tmp_path, env=environment(tmp_path), stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("aembus: error: ")
    assert "No space left" in line


def test_letters_that_a_terminal_does_not_know_are_no_error(tmp_path: Path, bus_name: str) -> None:
    """What an old terminal cannot show, as µ, is replaced there."""
    words = ["stress", "--seconds", "0.2", "--producers", "1", "--workers", "1", "--bus", bus_name]
    ended = subprocess.run(
        [*AEMBUS, *words], cwd=tmp_path, text=True, capture_output=True, timeout=30, check=False,
        env={**environment(tmp_path), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert " ?s\n" in ended.stdout
    assert "Traceback" not in ended.stderr
