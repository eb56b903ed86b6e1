"""Reaching hosted services: one client for each version that a process uses, and their calls."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any, Protocol, cast

from aembus.codec import encode
from aembus.errors import ServiceError, ServiceNotFound
from aembus.membership import Membership
from aembus.numbers_route import NumbersRoute
from aembus.one_way import OneWay, OneWayCall
from aembus.routing import ServiceVersion, Target
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


class OnlyClient(ServiceClient, Protocol):
    """A client of which a process has one for all versions of its service, one after the other.

    Else what the service sends by itself, expiries for example, would have two receivers.
    """

    def let_go(self) -> None:
        """The process lets go of the version: end what it keeps for this process."""

    def rebind(self, service: ServiceVersion) -> None:
        """The process is bound again, maybe to another version: use that one."""


class _Bound:
    """A version that this process is bound to."""

    __slots__ = ("client", "service")

    def __init__(self, service: ServiceVersion, client: ServiceClient) -> None:
        self.service = service
        self.client = client


class ServiceClients:
    """The service clients of one bus object.

    Args:
        bus: the bus object, for the clients to keep.
        membership: returns what it has now; raises if it is closed or broken.
    """

    def __init__(self, bus: Any, membership: Callable[[], Membership]) -> None:
        self._bus = bus
        self._membership = membership
        self._bound: dict[tuple[str, str | None], _Bound] = {}  # by what was asked for
        self._resting: dict[str, OnlyClient] = {}  # by the service's name, while not bound
        self._ways: dict[tuple[int, int, str], OneWay] = {}  # by host, version's number, and call
        self._binding = threading.RLock()

    def get(self, name: str, version: str | None) -> ServiceClient:
        """Return the client of a version, binding it at first use.  Raises ServiceNotFound."""
        bound = self._bound.get((name, version))
        if bound is None:
            with self._binding:  # so that a service has one client, whichever thread asks
                bound = self._bound.get((name, version)) or self._bind(name, version)
        else:
            self._membership()  # raises if nothing can be reached
        return bound.client

    def _bind(self, name: str, version: str | None) -> _Bound:
        found = self._ask(name, version)
        for bound in self._bound.values():
            if bound.service.number == found.number:  # asked for in another way before
                break
        else:
            bound = _Bound(found, self._client(found))
        self._bound[name, version] = bound
        return bound

    def _client(self, found: ServiceVersion) -> ServiceClient:
        client_class = _client_class(found)
        if not hasattr(client_class, "rebind"):
            return client_class(self._bus, found)
        for bound in self._bound.values():
            if bound.service.name == found.name:
                self._membership().control.request("release", number=found.number)
                raise ServiceError(
                    "a process uses one version of this service at a time; release that one first, "
                    f"service={found.name!r}, bound={bound.service.version!r}, "
                    f"wanted={found.version!r}"
                )
        resting = self._resting.pop(found.name, None)
        if resting is None:
            return client_class(self._bus, found)
        resting.rebind(found)
        return resting

    def _ask(self, name: str, version: str | None) -> ServiceVersion:
        control = self._membership().control
        answer = control.request("bind", name=name, version=version)
        return ServiceVersion.from_document(answer["service"])

    def release(self, client: Any) -> None:
        """See Bus.release."""
        with self._binding:
            keys = [key for key, bound in self._bound.items() if bound.client is client]
            if not keys:
                return
            service = self._bound[keys[0]].service
            if hasattr(type(client), "rebind"):
                client.let_go()
                self._resting[service.name] = client
            for key in keys:
                del self._bound[key]
            for way in [key for key in self._ways if key[1] == service.number]:
                self._ways.pop(way).close()
            self._membership().control.request("release", number=service.number)

    def hosts_of(self, service: ServiceVersion) -> list[ServiceVersion]:
        """See Bus.hosts_of."""
        routing = self._membership().sender.refresh()
        wanted = (service.name, service.version)
        hosts = [other for other in routing.services if (other.name, other.version) == wanted]
        return hosts or [service]  # it drains, and is shown to nobody new

    def call(
        self, service: ServiceVersion, call: str, data: tuple[Any, ...], timeout_s: float
    ) -> Any:
        """See Bus.call_service."""
        target = Target(service.slot, _call_id(service, call))
        calls = self._membership().calls
        return calls.call_service(target, data, timeout_s, f"{service.name}.{call}")

    def tell(
        self, service: ServiceVersion, call: str, data: tuple[Any, ...], timeout_s: float
    ) -> OneWay:
        """See Bus.tell_service.  Returns the way that the call has taken."""
        sender = self._membership().sender
        key = (service.slot, service.number, call)
        way = self._ways.get(key)
        if way is None or not way.is_of(sender):
            way = OneWay(sender, Target(service.slot, _call_id(service, call)))
            self._ways[key] = way
        way.send(encode(data), timeout_s, f"{service.name}.{call}")
        return way

    def one_way_call(self, service: ServiceVersion, call: str, timeout_s: float) -> OneWayCall:
        """See Bus.one_way_call."""
        return OneWayCall(lambda data: self.tell(service, call, data, timeout_s))

    def numbers_route(self, service: ServiceVersion, call: str) -> NumbersRoute:
        """See Bus.numbers_route."""
        target = Target(service.slot, _call_id(service, call))
        sender = self._membership().sender
        return NumbersRoute(sender, target, layout.KIND_CALL, layout.FLAG_NUMBERS)

    def rejoin(self) -> None:
        """Bind each client to what the new supervisor hosts.  Raises ServiceNotFound."""
        with self._binding:
            self._resting.clear()
            for (name, version), bound in list(self._bound.items()):
                bound.service = self._ask(name, version)
                bound.client.rejoin(bound.service)


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
