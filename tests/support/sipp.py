"""sipp, a SIP client that places many calls, as the end-to-end tests run it."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path


class Sipp:
    """A running sipp that places calls at a responder."""

    def __init__(self, directory: Path, port: int, *options: str, timeout_s: int = 60) -> None:
        self._statistics = directory / "sipp.csv"
        self._timeout_s = timeout_s
        self.process = subprocess.Popen(
            ["sipp", "-sn", "uac", f"127.0.0.1:{port}", "-i", "127.0.0.1", "-nostdin",
             "-recv_timeout", "5000", "-timeout", f"{timeout_s}s", "-timeout_error", "-trace_stat",
             "-stf", str(self._statistics), "-fd", "1", *options],
            cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def totals(self) -> dict[str, int]:
        """Return its cumulative counts by sipp's names without "(C)", once it has ended."""
        output, _ = self.process.communicate(timeout=self._timeout_s + 30)
        with self._statistics.open() as file:
            last = list(csv.DictReader(file, delimiter=";"))[-1]
        found = {name.removesuffix("(C)"): int(value) for name, value in last.items()
                 if name and name.endswith("(C)") and value.isdecimal()}  # fmt: skip
        assert (self.process.returncode == 0) == (found["FailedCall"] == 0), output
        return found

    def counts(self) -> tuple[int, int]:
        """Return calls that succeeded and that failed, once it has ended."""
        totals = self.totals()
        return totals["SuccessfulCall"], totals["FailedCall"]
