"""What a supervisor is told: checked at once, and passed to its process as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from aembus.errors import SupervisorError
from aembus.shm import layout, names

STOP_TIMEOUT_S_MAX: Final = 24 * 3600.0
HANDLER_TIMEOUT_S_MIN: Final = 0.1
HOSTS_MAX: Final = 64
NAME_MAX: Final = 30  # of a service, in its hosts' names


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A kind of worker: its name, its entry point, and how many there are.

    name: workers are called ``<name>-1``, ``<name>-2`` ...
    entry_point: ``module:function``; the function gets the bus, registers, and returns.
    count: how many processes.
    arguments: their ``sys.argv[1:]``.
    handler_timeout_s: see Supervisor, whose value holds where this is None.
    """

    name: str
    entry_point: str
    count: int = 1
    arguments: tuple[str, ...] = ()
    handler_timeout_s: float | None = None

    def __post_init__(self) -> None:
        names.check_bus_name(self.name, "worker")
        if self.count < 1:
            raise SupervisorError(f"a worker needs a count of at least 1, count={self.count}")
        _check_handler_timeout(self.handler_timeout_s)
        if not isinstance(self.entry_point, str):
            raise SupervisorError(
                "an entry point is written 'module:function', since other processes import it, "
                f"entry_point={self.entry_point!r}"
            )
        module, colon, function = self.entry_point.partition(":")
        if not (module and colon and function):
            raise SupervisorError(
                f"an entry point is written module:function, entry_point={self.entry_point!r}"
            )

    def worker_names(self) -> list[str]:
        """Return the names of the workers of this kind."""
        return [f"{self.name}-{number}" for number in range(1, self.count + 1)]


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service, and where it runs.

    service: "timer", "tcp", an entry point's name, or ``module:Class``.
    hosts: 0: in the supervisor's own process.  Else so many processes of their own, which are
        replaced like workers and called ``<service>-host-1`` ...
    """

    service: str
    hosts: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.hosts <= HOSTS_MAX:
            raise SupervisorError(
                f"hosts must be 0 to {HOSTS_MAX}, service={self.service!r}, hosts={self.hosts}"
            )

    def processes(self) -> WorkerSpec:
        """Return what to spawn for its hosts."""
        name = re.sub(r"[^A-Za-z0-9_-]", "-", self.service.rpartition(":")[2])
        return WorkerSpec(
            f"{name[:NAME_MAX]}-host", "aembus.hosting.process:main", self.hosts, (self.service,)
        )


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that a supervisor's process needs to know; see Supervisor for the meanings.

    hosts: the processes of service hosts; each one's argument is the service.
    """

    bus: str
    workers: tuple[WorkerSpec, ...] = ()
    services: tuple[str, ...] = ()
    hosts: tuple[WorkerSpec, ...] = ()
    slots: int = layout.SLOTS_DEFAULT
    lane_bytes: int = layout.LANE_BYTES_DEFAULT
    registry_bytes: int = layout.REGISTRY_HALF_BYTES_DEFAULT
    stop_timeout_s: float = 2.0
    handler_timeout_s: float | None = None
    state_directory: str | None = None
    path: tuple[str, ...] = ()
    log_level: str = "INFO"
    spare: bool = True
    ends_with_parent: bool = False

    def __post_init__(self) -> None:
        names.check_bus_name(self.bus)
        if not 2 <= self.slots <= layout.SLOTS_MAX:
            raise SupervisorError(f"slots must be 2 to {layout.SLOTS_MAX}, slots={self.slots}")
        if not 0 < self.stop_timeout_s < STOP_TIMEOUT_S_MAX:
            raise SupervisorError(
                f"stop_timeout_s must be above 0 and below {STOP_TIMEOUT_S_MAX}, "
                f"stop_timeout_s={self.stop_timeout_s}"
            )
        _check_handler_timeout(self.handler_timeout_s)
        size = self.lane_bytes
        if not layout.LANE_BYTES_MIN <= size <= layout.LANE_BYTES_MAX or size & (size - 1):
            raise SupervisorError(
                f"lane_bytes must be a power of two from {layout.LANE_BYTES_MIN} to "
                f"{layout.LANE_BYTES_MAX}, lane_bytes={size}"
            )
        processes = (*self.workers, *self.hosts)
        workers = [name for spec in processes for name in spec.worker_names()]
        if len(set(workers)) != len(workers):
            raise SupervisorError(f"two workers would have the same name, names={workers}")
        if len(workers) >= self.slots:
            raise SupervisorError(
                "more workers than slots; raise slots, "
                f"workers={len(workers)}, slots={self.slots} (one is the supervisor's)"
            )

    def to_json(self) -> str:
        """Return the configuration as it goes through the pipe to the supervisor's process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Configuration:
        """Return the configuration that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        for kind in ("workers", "hosts"):
            fields[kind] = tuple(
                WorkerSpec(**{**w, "arguments": tuple(w["arguments"])}) for w in fields[kind]
            )
        for name in ("services", "path"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def _check_handler_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not timeout_s >= HANDLER_TIMEOUT_S_MIN:
        raise SupervisorError(
            f"handler_timeout_s must be at least {HANDLER_TIMEOUT_S_MIN}, or None for no limit, "
            f"handler_timeout_s={timeout_s}"
        )
