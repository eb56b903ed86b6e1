from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

import pytest

import aembus
from aembus.cli import buses
from aembus.cli.main import main
from tests.cli.support import AEMBUS, ROOT, Ended
from tests.support.running import statistics, until

CONTRACT: Final = (
    *("sent", "delivered", "redelivered", "dead_lettered", "lost", "duplicated", "reordered"),
    *("corrupted", "rate_per_s", "latency_us", "kills", "rescued_wakeups", "lane"),
)
WRONG: Final = ("lost", "duplicated", "reordered", "corrupted")
# Runs the command with other workers or producers than those that come with it.
REPLACED: Final = """
import sys
from aembus.cli.main import main
from aembus.stress import load, run
run.WORKER, load.MODULE = sys.argv[1] or run.WORKER, sys.argv[2] or load.MODULE
sys.exit(main(["stress", *sys.argv[3:]]))
"""
TIMEOUT_S: Final = 60.0


class Stress:
    """``aembus stress``, killed at the end of the block if it still runs then."""

    def __init__(
        self,
        bus: str,
        directory: Path,
        *arguments: object,
        worker: str = "",
        producer: str = "",
    ) -> None:
        self.bus = bus
        self._figures = directory / f"{bus}.json"
        command: tuple[str, ...] = (*AEMBUS, "stress")
        if worker or producer:
            command = (sys.executable, "-c", REPLACED, worker, producer)
        options = ["--bus", bus, "--json", self._figures, *arguments]
        self.process = subprocess.Popen(
            [*command, *map(str, options)], cwd=ROOT, text=True,
            env={**os.environ, "TMPDIR": str(directory)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def ended(self) -> Ended:
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return Ended(self.process.returncode, out, err)

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._figures.read_text())
        return found

    def wrong(self) -> dict[str, int]:
        """Return what is wrong with the jobs."""
        return {name: n for name, n in self.figures().items() if name in WRONG and n}

    def until_under_way(self) -> list[dict[str, Any]]:
        """Return the members, when jobs are delivered."""

        def delivering() -> list[dict[str, Any]]:
            assert self.process.poll() is None, self.ended()
            with contextlib.suppress(aembus.AembusError):  # it comes up
                found: list[dict[str, Any]] = statistics(self.bus)["members"]
                if sum(member["delivered"] for member in found) > 100:
                    return found
            return []

        found: list[dict[str, Any]] = until("jobs are delivered", delivering)
        return found


def test_a_run_accounts_for_every_job(bus_name: str, tmp_path: Path) -> None:
    """Six producers, three workers: nothing is wrong, and the figures have the contract's names."""
    with Stress(bus_name, tmp_path, "--producers", 6, "--workers", 3, "--seconds", 2) as stress:
        ended = stress.ended()
    assert ended.code == 0, ended.err + ended.out
    figures = stress.figures()
    assert tuple(figures)[: len(CONTRACT)] == CONTRACT
    assert set(figures) - set(CONTRACT) == {
        "queued", "seconds", "producers", "workers", "size", "seed", "pinned", "interrupted",
        "failures", "workers_killed", "recovery_ms",
    }  # fmt: skip
    assert stress.wrong() == {}
    assert figures["rescued_wakeups"] == figures["kills"] == figures["redelivered"] == 0
    assert figures["sent"] == figures["delivered"] > 2000
    latency = figures["latency_us"]
    assert tuple(latency) == ("p50", "p99", "p99_9", "max")
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p99_9"] <= latency["max"]
    assert figures["rate_per_s"] == pytest.approx(
        figures["delivered"] / figures["seconds"], rel=0.01
    )
    assert ended.out.splitlines()[-1] == "every job is accounted for"
    assert re.search(rf"^lost +0$.*^lane +{figures['lane']}$", ended.out, re.M | re.S)
    assert f"6 producers, 3 workers, 48 bytes a job, 2.0 s, seed {figures['seed']}" in ended.err
    assert "\r" not in ended.err  # no bar where nobody looks
    assert [path.name for path in tmp_path.iterdir()] == [f"{bus_name}.json"]


def test_a_run_that_fails_says_so_where_nobody_reads(bus_name: str, tmp_path: Path) -> None:
    """With its table's reader gone, the figures are written, and the exit code is the run's."""
    figures = tmp_path / "figures.json"
    options = ["--seconds", "0.3", "--producers", "1", "--workers", "1"]
    command = [sys.executable, "-c", REPLACED, "tests.stress.saboteurs:lost", ""]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [*command, "--bus", bus_name, "--json", figures, *options], stdout=writing, cwd=ROOT,
            stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    finally:
        os.close(writing)
    assert json.loads(figures.read_text())["failures"] == ["1 lost"]
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)


def test_workers_that_do_wrong_are_found_out(bus_name: str, tmp_path: Path) -> None:
    """Each wrong, done to one job, is counted as what it is and as nothing else; exit code 1."""
    options = ("--producers", 1, "--workers", 1, "--seconds", 0.3)
    with contextlib.ExitStack() as stack:
        runs = {
            what: stack.enter_context(
                Stress(
                    f"{bus_name}-{what}", tmp_path, *options,
                    worker=f"tests.stress.saboteurs:{what}",
                )
            )
            for what in (*WRONG, "raising", "exiting")
        }  # fmt: skip
        ended = {what: run.ended() for what, run in runs.items()}
    for what in WRONG:
        assert runs[what].wrong() == {what: 1}, ended[what]
        assert runs[what].figures()["failures"] == [f"1 {what}"]
        assert ended[what].out.splitlines()[-1].startswith(f"FAILED: 1 {what} (seed ")
    # These jobs are accounted for, but no run of ours has failures and deaths of its own.
    assert runs["raising"].wrong() == runs["exiting"].wrong() == {}
    assert runs["raising"].figures()["failures"] == ["handlers that raised: 1"]
    assert runs["raising"].figures()["dead_lettered"] == 1
    assert runs["exiting"].figures()["failures"] == ["workers that ended by themselves: 1"]
    assert runs["exiting"].figures()["redelivered"] == 1
    assert {end.code for end in ended.values()} == {1}


def test_lost_posts_are_counted(bus_name: str, tmp_path: Path) -> None:
    """Producers that never post: sleepers are rescued by their bound, and nothing is lost."""
    with Stress(
        bus_name, tmp_path, "--producers", 1, "--workers", 2, "--seconds", 2, "--json", "-",
        producer="tests.stress.silent_producer",
    ) as stress:  # fmt: skip
        ended = stress.ended()
    figures = json.loads(ended.out)  # nothing else is on standard output
    assert figures["rescued_wakeups"] > 0
    assert [figures[name] for name in WRONG] == [0, 0, 0, 0]
    assert "rescued wake-ups" in ended.err


def test_kills_lose_nothing(bus_name: str, tmp_path: Path) -> None:
    """Workers and producers die under load; every job is delivered, some of them again."""
    with Stress(
        bus_name, tmp_path, "--producers", 4, "--workers", 2, "--seconds", 1.5,
        "--kill-every", 0.1,
    ) as stress:  # fmt: skip
        ended = stress.ended()
    assert ended.code == 0, ended.err + ended.out
    assert stress.wrong() == {}
    figures = stress.figures()
    assert figures["kills"] >= 3
    assert figures["workers_killed"] < figures["kills"]
    if figures["workers_killed"]:
        recovery = figures["recovery_ms"]
        assert 0 < recovery["p50"] <= recovery["p99"] <= recovery["max"]
        assert "worker killed → next job" in ended.out
    assert figures["sent"] == figures["delivered"] + figures["dead_lettered"]


def test_ctrl_c_ends_a_run_with_its_figures(bus_name: str, tmp_path: Path) -> None:
    """What was done so far is accounted for, and nothing is left; all were on the one core."""
    with Stress(
        bus_name, tmp_path, "--producers", 2, "--workers", 1, "--seconds", 60, "--pin",
        "--lane", "python", "--size", 1000,
    ) as stress:  # fmt: skip
        members = stress.until_under_way()
        cores = {frozenset(os.sched_getaffinity(member["pid"])) for member in members}
        stress.process.send_signal(signal.SIGINT)
        ended = stress.ended()
    assert len(members) == 4
    assert [len(core) for core in cores] == [1]
    assert ended.code == 130
    assert ended.out.splitlines()[-1] == "interrupted; so far every job is accounted for"
    assert "Traceback" not in ended.err
    figures = stress.figures()
    assert (figures["lane"], figures["pinned"], figures["size"]) == ("python", True, 1000)
    assert figures["interrupted"]
    assert figures["sent"] == figures["delivered"] > 100
    assert buses.left_in_shared_memory(bus_name) == []
    assert [path.name for path in tmp_path.iterdir()] == [f"{bus_name}.json"]


def test_the_supervisors_death_is_told_and_cleaned_up(bus_name: str, tmp_path: Path) -> None:
    """One line, exit code 1, and nothing is left in shared memory."""
    with Stress(bus_name, tmp_path, "--producers", 2, "--workers", 1, "--seconds", 60) as stress:
        stress.until_under_way()
        os.kill(buses.find(bus_name).pid, signal.SIGKILL)
        ended = stress.ended()
    assert ended.code == 1
    assert ended.error_line == "aembus: error: the supervisor ended in the middle of the run"
    assert buses.left_in_shared_memory(bus_name) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--producers", "0"], "want a whole number"),
        (["--workers", "x"], "want a whole number"),
        (["--producers", "4000", "--workers", "200"], "at most 4096 members"),
        (["--seconds", "0"], "want a number of seconds above 0"),
        (["--size", "-1"], "want a number of bytes"),
        (["--size", "9999999999"], "--size is at most"),
        (["--lane", "rust"], "invalid choice"),
        (["--json", "/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_wrong_usage_is_told_at_once(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, before anything is started."""
    with pytest.raises(SystemExit) as ended:
        main(["stress", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_missing_matplotlib_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after a minute of load."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["stress", "--plot", str(tmp_path / "x.png")]) == 1
    assert "pip install aembus[plot]" in capsys.readouterr().err
