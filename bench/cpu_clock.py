"""How much processor time another process has used, to the nanosecond."""

from __future__ import annotations

import time
from typing import Final

CPUCLOCK_SCHED: Final = 2  # include/linux/posix-timers.h


def cpu_ns(pid: int) -> int:
    """Return the CPU time of a process's threads, up to now.

    By its clock of Linux (clock_getcpuclockid(3)): /proc goes on at the scheduler's ticks only, and
    what is measured here takes a few of them.
    """
    return time.clock_gettime_ns(~pid << 3 | CPUCLOCK_SCHED)
