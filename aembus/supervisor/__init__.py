"""The supervisor: the one process that owns a bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aembus.supervisor.configuration import ServiceSpec as ServiceSpec
from aembus.supervisor.configuration import WorkerSpec as WorkerSpec

if TYPE_CHECKING:
    from aembus.supervisor.dead_letter_box import DeadLetterBox as DeadLetterBox
    from aembus.supervisor.supervisor import Supervisor as Supervisor


def __getattr__(name: str) -> Any:
    # It brings asyncio along, which a look at locks and leftovers does not need.
    if name == "Supervisor":
        from aembus.supervisor import supervisor

        return supervisor.Supervisor
    if name == "DeadLetterBox":
        from aembus.supervisor import dead_letter_box

        return dead_letter_box.DeadLetterBox
    raise AttributeError(f"module 'aembus.supervisor' has no attribute {name!r}")
