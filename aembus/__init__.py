"""aembus: a multi-process, shared-memory event bus for telecom-style servers.

    with aembus.connect("app") as bus:
        bus.register("call.setup", lambda event, call_id: print(call_id))
        bus.activate("call.setup", "c1")
        bus.poll()

`Supervisor` runs a bus, with workers (`WorkerSpec`) and services (`ServiceSpec`), as ``aembus run``
does.  `connect` joins one, and gives a `Bus`: registers handlers (`Event`, `Job`), activates points
(`ActivationPoint`, `TypedPoint`), calls, and runs what it registered.  `ServiceBox` and
`DeadLetterBox` look after a running bus.  All errors are AembusError.  docs/guide has a page for
each feature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aembus.bus import Bus as Bus
from aembus.calls import Answer as Answer
from aembus.codec import portable as portable
from aembus.connecting import connect as connect
from aembus.counter import Counter as Counter
from aembus.errors import AembusError as AembusError
from aembus.errors import BusAlreadyRunning as BusAlreadyRunning
from aembus.errors import BusBroken as BusBroken
from aembus.errors import BusClosed as BusClosed
from aembus.errors import BusNotFound as BusNotFound
from aembus.errors import CallFailed as CallFailed
from aembus.errors import CallTimeout as CallTimeout
from aembus.errors import ControlError as ControlError
from aembus.errors import CorruptSegment as CorruptSegment
from aembus.errors import DataMismatch as DataMismatch
from aembus.errors import ForkedBusError as ForkedBusError
from aembus.errors import InboxFull as InboxFull
from aembus.errors import JobFailed as JobFailed
from aembus.errors import JobNotInHand as JobNotInHand
from aembus.errors import JobTooLarge as JobTooLarge
from aembus.errors import NameInUse as NameInUse
from aembus.errors import NotReady as NotReady
from aembus.errors import OpenError as OpenError
from aembus.errors import OutOfSharedMemory as OutOfSharedMemory
from aembus.errors import PermissionRefused as PermissionRefused
from aembus.errors import ProcessNotFound as ProcessNotFound
from aembus.errors import Refused as Refused
from aembus.errors import RegistrationError as RegistrationError
from aembus.errors import ServiceError as ServiceError
from aembus.errors import ServiceLoadError as ServiceLoadError
from aembus.errors import ServiceNotFound as ServiceNotFound
from aembus.errors import SlotsExhausted as SlotsExhausted
from aembus.errors import SupervisorError as SupervisorError
from aembus.errors import VersionMismatch as VersionMismatch
from aembus.event import Child as Child
from aembus.event import Event as Event
from aembus.events import EventStruct as EventStruct
from aembus.job import Identity as Identity
from aembus.job import Job as Job
from aembus.killpoints import killpoint as killpoint
from aembus.options import EventOptions as EventOptions
from aembus.options import Full as Full
from aembus.options import Policy as Policy
from aembus.options import RoutingOptions as RoutingOptions
from aembus.points import ActivationPoint as ActivationPoint
from aembus.points import TypedPoint as TypedPoint
from aembus.service_box import LoadedService as LoadedService
from aembus.service_box import ServiceBox as ServiceBox
from aembus.service_box import ServiceChange as ServiceChange
from aembus.stages import Timings as Timings
from aembus.statistics import BusStatistics as BusStatistics
from aembus.statistics import EventStatistics as EventStatistics
from aembus.statistics import EventStructStatistics as EventStructStatistics

if TYPE_CHECKING:
    from aembus.supervisor import DeadLetterBox as DeadLetterBox
    from aembus.supervisor import ServiceSpec as ServiceSpec
    from aembus.supervisor import Supervisor as Supervisor
    from aembus.supervisor import WorkerSpec as WorkerSpec

__version__ = "0.1.0.dev0"

__all__ = [
    "ActivationPoint",
    "AembusError",
    "Answer",
    "Bus",
    "BusAlreadyRunning",
    "BusBroken",
    "BusClosed",
    "BusNotFound",
    "BusStatistics",
    "CallFailed",
    "CallTimeout",
    "Child",
    "ControlError",
    "CorruptSegment",
    "Counter",
    "DataMismatch",
    "DeadLetterBox",
    "Event",
    "EventOptions",
    "EventStatistics",
    "EventStruct",
    "EventStructStatistics",
    "ForkedBusError",
    "Full",
    "Identity",
    "InboxFull",
    "Job",
    "JobFailed",
    "JobNotInHand",
    "JobTooLarge",
    "LoadedService",
    "NameInUse",
    "NotReady",
    "OpenError",
    "OutOfSharedMemory",
    "PermissionRefused",
    "Policy",
    "ProcessNotFound",
    "Refused",
    "RegistrationError",
    "RoutingOptions",
    "ServiceBox",
    "ServiceChange",
    "ServiceError",
    "ServiceLoadError",
    "ServiceNotFound",
    "ServiceSpec",
    "SlotsExhausted",
    "Supervisor",
    "SupervisorError",
    "Timings",
    "TypedPoint",
    "VersionMismatch",
    "WorkerSpec",
    "connect",
    "killpoint",
    "portable",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # with those that are loaded when asked for


def __getattr__(name: str) -> Any:
    # The supervisor brings asyncio along, which a worker or a client does not need.
    if name in ("DeadLetterBox", "ServiceSpec", "Supervisor", "WorkerSpec"):
        from aembus import supervisor

        return getattr(supervisor, name)
    raise AttributeError(f"module 'aembus' has no attribute {name!r}")
