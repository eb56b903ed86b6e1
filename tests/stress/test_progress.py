from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aembus.errors import AembusError
from aembus.stress import plot
from aembus.stress.histogram import BUCKETS, Histogram
from aembus.stress.options import Progress
from aembus.stress.progress import ProgressLine
from aembus.stress.report import Course, Kill, Report
from aembus.stress.verdict import Accounts
from tests.cli.support import ROOT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_written_over() -> None:
    """With a bar and the rate; at the end it is empty."""
    out = Terminal()
    line = ProgressLine(out)
    line.show(Progress("starting", 3, 6))
    line.show(Progress("running", 5.0, 20.0, 123456.7, kills=2))
    line.end()
    assert "\n" not in out.getvalue()
    _, first, second, end = out.getvalue().split("\r")
    assert first == "[############............] 3 of 6 producers have come up\x1b[K"
    assert second == "[######..................] 5.0 of 20 s  123,457 jobs/s  2 killed\x1b[K"
    assert end == "\x1b[K"


def test_elsewhere_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one for each look."""
    out = io.StringIO()
    line = ProgressLine(out)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for tick in range(11):
        now[0] = 100.0 + tick
        line.show(Progress("running", float(tick), 20.0, 1000.0))
    line.end()
    assert out.getvalue() == "5.0 of 20 s  1,000 jobs/s\n10.0 of 20 s  1,000 jobs/s\n"


def report(kills: list[Kill], samples: list[tuple[float, int]], largest_ns: int) -> Report:
    """Return the report of a run with this course, and latencies if one is the largest."""
    latencies = Histogram()
    latencies.max = largest_ns
    if largest_ns:
        for bucket in range(100, 400):
            latencies.buckets[bucket] = bucket % 37
    return Report(
        accounts=Accounts(sent=1000, delivered=1000),
        seconds=4.0,
        latencies=latencies,
        course=Course(samples, kills),
        workers_killed=sum(kill.what.startswith("worker") for kill in kills),
        recoveries_s=[0.05] * len(kills),
        rescued_wakeups=0,
        lane="python",
        producers=2,
        workers=2,
        size=48,
        seed=1,
        pinned=False,
        interrupted=False,
        failures=[],
    )


def draw_pictures(directory: str) -> None:
    """Draw a run with everything in it, and one in which nothing was delivered."""
    kills = [Kill(1.0, "worker stress-1"), Kill(2.5, "producer 1")]
    samples = [(float(t), t * t * 100) for t in range(5)]
    plot.draw(report(kills, samples, 10**9), Path(directory) / "much.png")
    plot.draw(report([], [(0.0, 0)], 0), Path(directory) / "nothing.png")


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="matplotlib is not installed (extra: plot)",
)
def test_pictures_are_drawn(tmp_path: Path) -> None:
    """As PNG files, whatever there is to draw."""
    # Not in this process: matplotlib keeps the files of its fonts open.
    code = "import sys; from tests.stress.test_progress import *; draw_pictures(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True, timeout=60)
    for name in ("much.png", "nothing.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n")
        assert (tmp_path / name).stat().st_size > 10_000


def test_without_matplotlib_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the load, not after it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AembusError, match=r"pip install aembus\[plot\]"):
        plot.check_available()


def test_bins_have_all_of_the_jobs() -> None:
    """Whatever lies across two of them."""
    latencies = report([], [], 1).latencies
    edges, shares = plot._even_bins(latencies)
    assert sum(shares) == pytest.approx(100)
    assert len(edges) == len(shares) + 1
    assert len(latencies.buckets) == BUCKETS
