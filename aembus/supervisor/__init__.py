"""The supervisor: the one process that owns a bus."""

from __future__ import annotations

from aembus.supervisor.configuration import WorkerSpec as WorkerSpec
from aembus.supervisor.supervisor import Supervisor as Supervisor
