from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest

from bench.figures import Spread, ratios
from bench.summary import summarize
from bench.work import END_NUMBER, FIRST_NUMBER, SHAPES, TEXT, batches, blob
from bench.worker import make_handlers
from tests.support.running import ROOT, until

QUICK = ("--quick", "--lane", "python", "--peers", "pipe,simplequeue")


def start(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """Start the bench, its temporary folder inside `tmp_path`."""
    return subprocess.Popen(
        ["env", f"TMPDIR={tmp_path}", sys.executable, "-m", "bench", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_by(bench: subprocess.Popen[str], tmp_path: Path) -> list[str]:
    """Return what the bench left in /dev/shm and in its temporary folder."""
    in_shm = [path.name for path in Path("/dev/shm").glob(f"*bench*{bench.pid}*")]
    return in_shm + [path.name for path in tmp_path.iterdir() if path.suffix != ".json"]


def test_a_quick_run_measures_everything_and_leaves_nothing(tmp_path: Path) -> None:
    """Throughput, limit and round trips come out as tables and as JSON, and the exit code is 0."""
    file = tmp_path / "figures.json"
    bench = start(tmp_path, "all", *QUICK, "--json", str(file))
    said, complained = bench.communicate(timeout=60)
    assert bench.returncode == 0, complained
    assert left_by(bench, tmp_path) == []

    found: dict[str, Any] = json.loads(file.read_text())
    assert found.keys() == {"machine", "versions", "skipped", "rounds", "round_s", "cells"}
    assert found["versions"].keys() == {"aembus-python", "Pipe", "SimpleQueue"}
    throughput, *trips = found["cells"]
    assert (throughput["topology"], throughput["size"]) == ("one_to_one", 48)
    names = ["aembus-python", "Pipe", "SimpleQueue", "limit"]
    assert list(throughput["transports"]) == names
    for name in names:
        row = throughput["transports"][name]
        assert len(row["rates_per_s"]) == 1
        assert row["rate_per_s"]["median"] > 0
        assert name in said
    assert throughput["transports"]["Pipe"]["ratios"]["aembus-python"]["median"] > 0
    assert throughput["transports"]["Pipe"]["share_of_limit"]["median"] > 0
    assert trips
    for trip in trips:
        assert list(trip["transports"]) == names[:3]
        assert all(row["p50_us"]["median"] > 0 for row in trip["transports"].values())
    assert all(cell["failures"] == {} for cell in found["cells"])


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 10)], ids=["start", "rounds"]
)
def test_a_signal_ends_it_and_it_leaves_nothing(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    """Ctrl-C while it starts, or SIGTERM when all are there: a short word, and all is gone."""
    bench = start(tmp_path, "throughput", *QUICK, "--rounds", "9999")
    children = psutil.Process(bench.pid).children
    until("its processes are there", lambda: len(children(recursive=True)) >= processes)
    bench.send_signal(number)
    _, complained = bench.communicate(timeout=60)
    assert bench.returncode == 128 + number
    assert complained.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in complained
    assert left_by(bench, tmp_path) == []


def test_wrong_usage_is_told(tmp_path: Path) -> None:
    """An unknown peer, and a size that no job has, are refused by name, with exit code 2."""
    for option, value in (("--peers", "carrier-pigeon"), ("--sizes", "12")):
        bench = start(tmp_path, "limit", option, value)
        _, complained = bench.communicate(timeout=60)
        assert bench.returncode == 2
        assert value in complained


@pytest.mark.parametrize("size", [48, 256, 300, 1000])
def test_every_job_of_a_size_is_as_long(size: int) -> None:
    """Whatever its number is, an encoded job takes exactly the bytes asked for."""
    for number in (FIRST_NUMBER, FIRST_NUMBER + 10_000_000, END_NUMBER):
        assert len(msgpack.packb((number, TEXT, blob(size)))) == size


def test_batches_have_no_number_twice() -> None:
    """The numbers of a round's jobs all differ, so that their sum tells one job from another."""
    sent = batches(SHAPES["eight_to_two"], 1000, 48)
    numbers = [number for batch in sent for number in batch.numbers]
    assert len(numbers) == len(set(numbers)) == 1000


def test_the_handler_counts_until_every_producer_is_through() -> None:
    """A round ends with the last producer's END_NUMBER, and the next one begins at nought."""
    rounds: list[tuple[int, int]] = []
    handle, handle_with_event = make_handlers(2, lambda *result: rounds.append(result))
    for number in (5, 6, END_NUMBER, 7, END_NUMBER, END_NUMBER, 1):
        handle(number, TEXT, b"")
    handle_with_event(None, END_NUMBER, TEXT, b"")
    assert rounds == [(3, 18), (1, 1)]


def test_ratios_are_taken_pair_by_pair() -> None:
    """A round that was slow for both is no outlier in the ratios."""
    assert ratios([100.0, 10.0, 50.0], [50.0, 5.0, 20.0]) == Spread(2.0, 2.0, 2.5)


def test_a_summary_says_what_has_no_figures() -> None:
    """A lane that failed leaves its place empty, and is told, as is what could not be measured."""
    rate = {"median": 500_000.0}
    python = {"rate_per_s": rate, "ratios": {}, "share_of_limit": {"median": 0.2}}
    peer = {"rate_per_s": rate, "ratios": {"aembus-python": {"median": 0.8}}}
    first = {"kind": "throughput", "topology": "one_to_one", "size": 48}
    both = {"aembus-c": python, "aembus-python": python, "limit": peer}
    document = {
        "machine": dict.fromkeys(
            ("processor", "cores", "kernel", "python", "load_before", "load_after"), "x"
        ),
        "rounds": 1,
        "skipped": {"nats": "not installed"},
        "cells": [
            {**first, "transports": {"aembus-python": python, "pyzmq": peer},
             "failures": {"aembus-c": "hung"}},
            {**first, "transports": both, "failures": {}},
        ],
    }  # fmt: skip
    text = summarize(document)
    dash = "\N{EN DASH}"
    assert f"| `one_to_one` | 48 | {dash} / 500 | {dash} / 0.80 | {dash} / 20% |" in text
    assert "| `one_to_one` | 48 | 500 / 500 |  | 20% / 20% |" in text
    assert "Not measured: nats: not installed." in text
    assert text.endswith("Failed: aembus-c in one_to_one, 48 bytes: hung.")
