"""For tests of what is built on aembus: a bus without processes, a clock, and a sequencer."""

from __future__ import annotations

from aembus.testing.clock import FakeClock as FakeClock
from aembus.testing.in_process import DeadJob as DeadJob
from aembus.testing.in_process import InProcessBus as InProcessBus
from aembus.testing.sequencer import Sequencer as Sequencer

__all__ = ["DeadJob", "FakeClock", "InProcessBus", "Sequencer"]
