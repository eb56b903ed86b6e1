"""A stress run as a picture: how long jobs took, and how many a second there were."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aembus.errors import AembusError
from aembus.stress import histogram
from aembus.stress.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = "#22303c"
FAINT: Final = "#d9dfe4"
BLUE: Final = "#2f6f9f"
RED: Final = "#c8553d"
PERCENTILES: Final = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
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
        figure.suptitle(_title(report), x=0.01, ha="left", fontsize=10, color=INK)
        figure.savefig(path, dpi=150, format="png")


def _title(report: Report) -> str:
    accounts = report.accounts
    wrong = accounts.lost + accounts.duplicated + accounts.reordered + accounts.corrupted
    return (
        f"aembus stress: {report.producers} producers, {report.workers} workers, "
        f"{report.size}-byte jobs, lanes in {report.lane}{', one core' if report.pinned else ''}\n"
        f"{accounts.delivered:,} jobs delivered in {report.seconds:.1f} s; "
        f"{wrong:,} lost, duplicated, reordered or corrupted"
    )


def _draw_latencies(axes: Axes, report: Report) -> None:
    buckets = report.latencies.buckets
    used = [bucket for bucket, number in enumerate(buckets) if number]
    axes.set_title("From activation to handler", pad=18)
    axes.set_xlabel("latency")
    axes.set_ylabel("share of jobs, % per bucket")
    if not used:
        return
    shown = range(max(used[0], 1), used[-1] + 1)
    edges_us = [histogram.edges(bucket)[0] / 1000 for bucket in shown]
    edges_us.append(histogram.edges(shown[-1])[1] / 1000)
    total = report.latencies.total
    shares = [100 * buckets[bucket] / total for bucket in shown]
    axes.stairs(shares, edges_us, fill=True, color=BLUE, alpha=0.85)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_duration)
    axes.grid(False, axis="x")
    axes.set_ylim(0, max(shares) * 1.08)
    height = axes.get_xaxis_transform()
    for number, (name, share) in enumerate(PERCENTILES):
        value_us = report.latencies.quantile(share) / 1000
        axes.axvline(value_us, color=RED, linewidth=1, linestyle=(0, (4, 2)))
        axes.text(
            value_us,
            1.0 - 0.075 * number,
            f" {name} {_duration(value_us)} ",
            transform=height,
            ha="left" if number == 0 else "right",
            va="top",
            color=RED,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
        )


def _draw_rate(axes: Axes, report: Report) -> None:
    rates = report.course.rates()
    axes.set_title("Jobs delivered a second", pad=18)
    axes.set_xlabel("seconds since the load began")
    if not rates:
        return
    times = [at_s for at_s, _ in rates]
    thousands = [rate / 1000 for _, rate in rates]
    axes.fill_between(times, thousands, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(times, thousands, color=BLUE, linewidth=1.6)
    axes.set_ylabel("thousand jobs/s")
    axes.set_xlim(0, report.seconds)
    axes.set_ylim(0, max(thousands) * 1.12 or 1)
    mean = report.rate_per_s / 1000
    axes.axhline(mean, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.text(report.seconds, mean, f"mean {mean:,.1f} ", ha="right", va="bottom", fontsize=9)
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
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)


def _duration(value_us: float, position: float | None = None) -> str:
    if value_us >= 1e6:
        return f"{value_us / 1e6:.3g} s"
    if value_us >= 1e3:
        return f"{value_us / 1e3:.3g} ms"
    return f"{value_us:.3g} µs"
