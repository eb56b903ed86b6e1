"""How far a stress run is: one line that is written over on a terminal, else a line at times."""

from __future__ import annotations

import contextlib
import time
from typing import Final, TextIO

from aembus.stress.options import Progress

BAR: Final = 24
REDRAW_S: Final = 0.1
LINE_EVERY_S: Final = 5.0
_ERASE: Final = "\x1b[K"  # from here to the end of the line


class ProgressLine:
    """Writes to `stream`, and leaves the line empty at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._written_at = 0.0
        self._stage = ""

    def show(self, progress: Progress) -> None:
        """Show how far it is, unless that was shown a moment ago."""
        now = time.monotonic()
        between_s = REDRAW_S if self._terminal else LINE_EVERY_S
        new_stage = progress.stage != self._stage
        if not new_stage and now - self._written_at < between_s:
            return
        self._written_at, self._stage = now, progress.stage
        text = describe(progress)
        if self._terminal:
            self._write(f"\r{bar(progress.done, progress.all)} {text}{_ERASE}")
        elif not new_stage:
            self._write(f"{text}\n")

    def end(self) -> None:
        """Make room for what comes next."""
        if self._terminal and self._stage:
            self._write(f"\r{_ERASE}")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody looks
            self._stream.write(text)
            self._stream.flush()


def bar(done: float, of: float) -> str:
    """Return a bar that is filled as far as the work is done."""
    filled = round(BAR * min(done / of, 1.0)) if of else BAR
    return f"[{'#' * filled}{'.' * (BAR - filled)}]"


def describe(progress: Progress) -> str:
    """Return in words how far it is."""
    if progress.stage == "starting":
        return f"{progress.done:.0f} of {progress.all:.0f} producers have come up"
    if progress.stage == "draining":
        return f"{progress.all - progress.done:,.0f} jobs are still queued"
    text = f"{progress.done:.1f} of {progress.all:g} s  {progress.rate_per_s:,.0f} jobs/s"
    if progress.kills:
        text += f"  {progress.kills} killed"
    return text
