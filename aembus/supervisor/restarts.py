"""When a dead worker is started again.  Pure: `now` is passed in, decisions are returned.

Only deaths without progress count: a worker that finished jobs since its last start is replaced at
once, however often it dies.  One that dies again and again without finishing anything is replaced
ever more slowly (and shown as degraded), and one that never came up at all is not replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 30.0
DOUBLINGS_MAX: Final = 10  # enough for that
FREE_DEATHS: Final = 2  # deaths without progress that are answered by a start at once
PERIOD_S: Final = 30.0


@dataclass(slots=True)
class RestartHistory:
    """The deaths of one worker.

    paused_s: for how long it was left dead, in all.
    without_progress: when it died in the last PERIOD_S, by a clock that stands while it is left
        dead: else its pauses alone would forgive it.
    """

    ever_ready: bool = False
    deaths: int = 0
    paused_s: float = 0.0
    without_progress: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after `delay_s`; `degraded` while that is not at once."""

    delay_s: float
    degraded: bool

    def __str__(self) -> str:
        when = f"in {self.delay_s:.1f} s" if self.delay_s else "at once"
        return f"restarted {when}{', degraded until then' if self.degraded else ''}"


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It never came up: starting it again would only repeat that."""

    reason: str

    def __str__(self) -> str:
        return f"not restarted: {self.reason}"


def decide(history: RestartHistory, now_s: float, *, progress: bool) -> Restart | GiveUp:
    """Take a death into the history and say what to do.

    Args:
        history: changed by this call.
        now_s: CLOCK_MONOTONIC, in seconds.
        progress: whether the worker finished a job since it was started.
    """
    history.deaths += 1
    if not history.ever_ready:
        return GiveUp("it never came up")
    if progress:
        history.without_progress.clear()
        return Restart(0.0, degraded=False)
    now_s -= history.paused_s
    recent = [t for t in history.without_progress if now_s - t < PERIOD_S] + [now_s]
    history.without_progress = recent
    beyond = len(recent) - FREE_DEATHS
    if beyond <= 0:
        return Restart(0.0, degraded=False)
    pause_s = min(BACKOFF_FIRST_S * 2.0 ** min(beyond - 1, DOUBLINGS_MAX), BACKOFF_MAX_S)
    history.paused_s += pause_s
    return Restart(pause_s, degraded=True)
