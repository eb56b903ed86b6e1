"""What a service is written with: ``from aembus.services import Service, call``."""

from __future__ import annotations

from aembus.services.base import CallClient as CallClient
from aembus.services.base import Caller as Caller
from aembus.services.base import HandOver as HandOver
from aembus.services.base import Host as Host
from aembus.services.base import Service as Service
from aembus.services.base import call as call
from aembus.services.base import numbers_call as numbers_call
from aembus.services.base import one_way_call as one_way_call

__all__ = [
    "CallClient",
    "Caller",
    "HandOver",
    "Host",
    "Service",
    "call",
    "numbers_call",
    "one_way_call",
]
