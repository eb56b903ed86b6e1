"""`ServiceBox`: the services of a running bus, for who looks after them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Final, Self, final

from aembus.control import ControlClient

CHANGE_S_MAX: Final = 60.0  # loading, starting and taking over a state included


@dataclass(frozen=True, slots=True)
class LoadedService:
    """One loaded version of a service.

    version: as the class states it; ``1+2`` is the second load of version 1 in this run of the bus.
    host: the name of the member that runs it: "supervisor", or a service host.
    number: how many loads there were on the bus, this one included.
    state: "running", or "draining": nobody new gets it, and it goes when its last user lets go.
    users: the names of the members that are bound to it.
    points: the activation points that it may activate.
    calls: how many calls it took.  answering: how many of them have begun and are not answered.
    failures: how often it raised where its host asked it something.
    loaded_at: seconds since 1970.
    code: what was asked for when it was loaded.
    figures: its own statistics.
    """

    name: str
    version: str
    host: str
    number: int
    state: str
    users: tuple[str, ...]
    points: tuple[str, ...]
    calls: int
    answering: int
    failures: int
    loaded_at: float
    code: str
    figures: Mapping[str, int]

    @classmethod
    def from_statistics(cls, found: Mapping[str, Any]) -> LoadedService:
        """Return what a map of the bus's statistics tells."""
        own = {field.name for field in fields(cls)} - {"figures"}
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in found.items()
            if key in own
        }
        return cls(**known, figures={k: v for k, v in found.items() if k not in own})


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """What an upgrade came to.

    handed_over: the old version's state, calls and users are the new one's.
    at_switch: the old version's own statistics right before.
    pause_s: for how long calls were kept; 0.0 without hand-over.
    calls_kept: how many calls came meanwhile; the new version has got them.
    """

    old: LoadedService
    new: LoadedService
    handed_over: bool
    at_switch: Mapping[str, int]
    pause_s: float
    calls_kept: int


@final
class ServiceBox:
    """The services of one running bus; use it as a context manager.

    A change that fails raises, and leaves everything as it was.

    Args:
        bus: the bus's name.

    Raises: BusNotFound, PermissionRefused, VersionMismatch.
    """

    def __init__(self, bus: str) -> None:
        self._control = ControlClient(bus, timeout_s=CHANGE_S_MAX)

    def list(self) -> tuple[LoadedService, ...]:
        """Return every loaded version, oldest first."""
        found = self._control.request("services")["services"]
        return tuple(LoadedService.from_statistics(one) for one in found)

    def load(self, spec: str) -> LoadedService:
        """Load a version, beside those that are loaded; who asks for the service now gets it.

        Args:
            spec: "timer", "tcp", the name of an entry point of "aembus.services", or
                "module:Class", found on the supervisor's path.

        Blocks until it has started.  Raises: ServiceLoadError, BusBroken.
        """
        return LoadedService.from_statistics(self._change("load_service", spec=spec)["service"])

    def unload(self, name: str, version: str | None = None) -> LoadedService:
        """Let nobody new have a version; it goes when its last user lets go.

        Args:
            version: which one; needed only if several run.

        Returns what it was before.  Raises: ServiceNotFound, ServiceError, BusBroken.
        """
        found = self._change("unload_service", name=name, version=version)
        return LoadedService.from_statistics(found["service"])

    def upgrade(
        self, name: str, spec: str | None = None, *, hand_over: bool = False
    ) -> ServiceChange:
        """Load a version in the place of the newest one.

        Args:
            spec: where the new code is; default: where the old one was, as it is there now.
            hand_over: pass the old version's state, its calls and its users on to the new one, in
                one step.  Else the old one drains: its users keep it until they let go.

        Blocks until the new version has started, or taken over.
        Raises: ServiceNotFound, ServiceLoadError, BusBroken.
        """
        found = self._change("upgrade_service", name=name, spec=spec, hand_over=hand_over)
        return _service_change(found)

    def rollback(self, name: str, *, hand_over: bool = False) -> ServiceChange:
        """Upgrade to the version that the newest one has replaced, with the code as it was.

        Args:
            hand_over: as for `upgrade`.

        Raises: ServiceNotFound, ServiceLoadError, BusBroken.
        """
        return _service_change(self._change("rollback_service", name=name, hand_over=hand_over))

    def _change(self, op: str, **fields: Any) -> dict[str, Any]:
        return self._control.request(op, **fields)

    def close(self) -> None:
        """Hang up.  Idempotent."""
        self._control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _service_change(found: dict[str, Any]) -> ServiceChange:
    return ServiceChange(
        LoadedService.from_statistics(found["old"]),
        LoadedService.from_statistics(found["new"]),
        found["handed_over"],
        found["at_switch"],
        found["pause_s"],
        found["calls_kept"],
    )
