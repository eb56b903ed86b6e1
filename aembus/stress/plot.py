"""A stress run as a picture: how long jobs took, and how many a second there were."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aembus.errors import AembusError
from aembus.stress import histogram
from aembus.stress.histogram import Histogram
from aembus.stress.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = "#22303c"
FAINT: Final = "#d9dfe4"
BLUE: Final = "#2f6f9f"
RED: Final = "#c8553d"
BINS_A_DECADE: Final = 16
PERCENTILES: Final = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
LABEL_BOX: Final = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
STYLE: Final[dict[Any, Any]] = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
}


def check_available() -> None:
    """Raise AembusError if pictures cannot be drawn here."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise AembusError(
            "--plot needs matplotlib, which is not installed: pip install aembus[plot]"
        ) from error


def draw(report: Report, path: Path) -> None:
    """Write the picture of a run to a PNG file.  Raises OSError."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
        _draw_latencies(left, report)
        _draw_rate(right, report)
        figure.suptitle(_title(report), x=0.01, ha="left", fontsize=10, linespacing=1.5)
        figure.savefig(path, dpi=150, format="png")


def _title(report: Report) -> str:
    accounts = report.accounts
    wrong = accounts.lost + accounts.duplicated + accounts.reordered + accounts.corrupted
    return (
        f"aembus stress: {_count(report.producers, 'producer')}, "
        f"{_count(report.workers, 'worker')}, "
        f"{report.size}-byte jobs, lanes in {report.lane}{', one core' if report.pinned else ''}\n"
        f"{accounts.delivered:,} jobs delivered in {report.seconds:.1f} s; "
        f"{wrong:,} lost, duplicated, reordered or corrupted"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _draw_latencies(axes: Axes, report: Report) -> None:
    axes.set_title("From activation to handler")
    axes.set_xlabel("latency")
    axes.set_ylabel("% of jobs")
    axes.grid(False, axis="x")
    edges_us, shares = _even_bins(report.latencies)
    if not shares:
        return
    axes.stairs(shares, edges_us, fill=True, color=BLUE, alpha=0.85)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_duration)
    axes.set_ylim(0, max(shares) * 1.25)
    for number, (name, share) in enumerate(PERCENTILES):
        value_us = report.latencies.quantile(share) / 1000
        axes.axvline(value_us, color=RED, linewidth=1, linestyle=(0, (4, 2)))
        axes.annotate(
            f"{name}  {_duration(value_us)}",
            (value_us, 0.98 - 0.065 * number),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="top",
            color=RED,
            fontsize=9,
            bbox=LABEL_BOX,
        )


def _even_bins(latencies: Histogram) -> tuple[list[float], list[float]]:
    """Return edges in microseconds, equally far apart on a log axis, and % between each two."""
    used = [bucket for bucket, number in enumerate(latencies.buckets) if number and bucket]
    if not used:
        return [], []
    low, high = histogram.edges(used[0])[0], histogram.edges(used[-1])[1]
    bins = max(math.ceil(BINS_A_DECADE * math.log10(high / low)), 1)
    width = math.log(high / low) / bins
    shares = [0.0] * bins
    for bucket in used:
        first, end = (math.log(edge / low) / width for edge in histogram.edges(bucket))
        share = 100 * latencies.buckets[bucket] / latencies.total
        for place in range(int(first), min(math.ceil(end), bins)):  # a bucket may lie across edges
            part = min(place + 1.0, end) - max(float(place), first)
            shares[place] += share * max(part, 0.0) / (end - first)
    return [low / 1000 * math.exp(width * place) for place in range(bins + 1)], shares


def _draw_rate(axes: Axes, report: Report) -> None:
    rates = report.course.rates()
    axes.set_title("Jobs delivered a second")
    axes.set_xlabel("seconds since the load began")
    if not rates:
        return
    times = [at_s for at_s, _ in rates]
    thousands = [rate / 1000 for _, rate in rates]
    axes.fill_between(times, thousands, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(times, thousands, color=BLUE, linewidth=1.6)
    axes.set_ylabel("thousand jobs/s")
    axes.set_xlim(0, report.seconds)
    axes.set_ylim(0, max(thousands) * 1.25 or 1)
    mean = report.rate_per_s / 1000
    axes.axhline(mean, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate(
        f"mean {mean:,.1f}",
        (report.seconds, mean),
        xytext=(-4, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
        bbox=LABEL_BOX,
    )
    for kind, colour in (("worker", RED), ("producer", INK)):
        at_s = [kill.at_s for kill in report.course.kills if kill.what.startswith(kind)]
        if at_s:
            axes.plot(
                at_s,
                [0.015] * len(at_s),
                transform=axes.get_xaxis_transform(),
                linestyle="none",
                marker="|",
                markersize=12,
                color=colour,
                label=f"{kind} killed ({len(at_s)})",
                clip_on=False,
            )
    if report.course.kills:
        axes.legend(loc="upper right", ncols=2, frameon=False, fontsize=9, handletextpad=0)


def _duration(value_us: float, position: float | None = None) -> str:
    if value_us >= 1e6:
        return f"{value_us / 1e6:.3g} s"
    if value_us >= 1e3:
        return f"{value_us / 1e3:.3g} ms"
    return f"{value_us:.3g} µs"
