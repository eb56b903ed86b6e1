"""Reaching hosted services: one client for each version that a process uses, and their calls."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from aembus.codec import encode
from aembus.errors import ServiceNotFound
from aembus.membership import Membership
from aembus.numbers_route import NumbersRoute
from aembus.routing import ServiceVersion, Target
from aembus.sender import Job
from aembus.shm import layout


class ServiceClient(Protocol):
    """What `Bus.service` returns: the calls of one bound version of a service.

    Args:
        bus: the Bus that reaches it.
        service: the version.
    """

    def __init__(self, bus: Any, service: ServiceVersion) -> None: ...

    def rejoin(self, service: ServiceVersion) -> None:
        """Use this one from now on: the bus was joined again, and nothing of before is left."""


class ServiceClients:
    """The service clients of one bus object.

    Args:
        bus: the bus object, for the clients to keep.
        membership: returns what it has now; raises if it is closed or broken.
    """

    def __init__(self, bus: Any, membership: Callable[[], Membership]) -> None:
        self._bus = bus
        self._membership = membership
        self._clients: dict[tuple[str, str], ServiceClient] = {}

    def get(self, name: str, version: str | None) -> ServiceClient:
        """Return the client of a version, making it at first use.  Raises ServiceNotFound."""
        found = self._find(name, version)
        client = self._clients.get((found.name, found.version))
        if client is None:
            made = _client_class(found)(self._bus, found)
            client = self._clients.setdefault((found.name, found.version), made)
        return client

    def _find(self, name: str, version: str | None) -> ServiceVersion:
        routing = self._membership().sender.refresh()
        found = routing.service(name, version)
        if found is None:
            hosted = sorted(f"{s.name} {s.version}" for s in routing.services)
            raise ServiceNotFound(
                "no such service here; the supervisor loads those it is told to "
                f"(services=[...], --service), service={name!r}, version={version!r}, "
                f"hosted={hosted}"
            )
        return found

    def call(
        self, service: ServiceVersion, call: str, data: tuple[Any, ...], timeout_s: float
    ) -> Any:
        """See Bus.call_service."""
        target = Target(service.slot, _call_id(service, call))
        calls = self._membership().calls
        return calls.call_service(target, data, timeout_s, f"{service.name}.{call}")

    def tell(
        self, service: ServiceVersion, call: str, data: tuple[Any, ...], timeout_s: float
    ) -> None:
        """See Bus.tell_service."""
        target = Target(service.slot, _call_id(service, call))
        job = Job(encode(data), kind=layout.KIND_CALL)
        self._membership().sender.send(target, job, timeout_s, f"{service.name}.{call}")

    def numbers_route(self, service: ServiceVersion, call: str) -> NumbersRoute:
        """See Bus.numbers_route."""
        target = Target(service.slot, _call_id(service, call))
        sender = self._membership().sender
        return NumbersRoute(sender, target, layout.KIND_CALL, layout.FLAG_NUMBERS)

    def rejoin(self) -> None:
        """Bind each client to what the new supervisor hosts.  Raises ServiceNotFound."""
        for (name, version), client in list(self._clients.items()):
            client.rejoin(self._find(name, version))


def _client_class(service: ServiceVersion) -> type[ServiceClient]:
    spec = service.client or "aembus.services.base:CallClient"
    module, _, name = spec.partition(":")
    return cast(type[ServiceClient], getattr(importlib.import_module(module), name))


def _call_id(service: ServiceVersion, call: str) -> int:
    call_id = service.calls.get(call)
    if call_id is None:
        raise ServiceNotFound(
            f"the service has no such call, service={service.name!r}, "
            f"version={service.version!r}, call={call!r}, calls={sorted(service.calls)}"
        )
    return call_id
