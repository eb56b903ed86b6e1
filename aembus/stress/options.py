"""What a stress run is told, and what it tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """What to run; see `aembus stress --help`.

    apart: each producer sends to one worker only, instead of to all of them.
    """

    bus: str
    producers: int
    workers: int
    seconds: float
    size: int
    seed: int
    kill_every_s: float | None = None
    lane: str | None = None
    pin: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    stage: "starting", "running" or "draining".
    done, all: of the producers that are starting, of the seconds to run, of the jobs queued.
    """

    stage: str
    done: float
    all: float
    rate_per_s: float = 0.0
    kills: int = 0
