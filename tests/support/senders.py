"""A sender without a supervisor: its registry is an object of the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from aembus.codec import encode
from aembus.options import RoutingOptions
from aembus.picking import IN_TURN
from aembus.sender import Sender
from aembus.shm import layout
from aembus.shm.registry import RegistryReader
from tests.support.shared import NONCE

POINT: Final = "here"
SLOT: Final = 1  # the sender's own


class Registry:
    """What a RegistryReader shows, without shared memory.

    Args:
        members: slot → number of the inbox.
        registrations: of the one point: event id, slot, group.
    """

    generation_word: Final = RegistryReader.generation_word

    def __init__(
        self, members: dict[int, int], registrations: list[tuple[int, int, str | None]]
    ) -> None:
        self.members = members
        self.registrations = registrations
        self.memory = memoryview(bytearray(layout.REGISTRY_HALVES))
        self.words = self.memory.cast("Q")
        self.publish()

    def publish(self) -> None:
        """Make what was changed a new generation."""
        self.words[self.generation_word] += 1

    def read(self) -> tuple[int, dict[str, Any]]:
        """As RegistryReader.read."""
        members = [
            [slot, 1, inbox_id, "client", "", 0, "running"]
            for slot, inbox_id in self.members.items()
        ]
        points = {
            POINT: [
                [event_id, slot, RoutingOptions(group=group).to_document()]
                for event_id, slot, group in self.registrations
            ]
        }
        document = {"members": members, "points": points, "services": []}
        return self.words[self.generation_word], document


class Activator:
    """A sender, and one route of it.

    Args:
        wait: see Sender; may be changed.
    """

    def __init__(
        self,
        bus: str,
        registry: Registry,
        wait: Callable[[Callable[[], bool], float], bool] = lambda ready, timeout_s: ready(),
    ) -> None:
        self.wait = wait
        reader = cast(RegistryReader, registry)
        self.sender = Sender(bus, NONCE, SLOT, 1, reader, self._wait)
        self.route = self.sender.route(POINT)

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        return self.wait(ready, timeout_s)

    def activate(self, *data: Any, key_hash: int = IN_TURN, timeout_s: float = 10.0) -> int:
        """Activate the point."""
        return self.sender.activate(self.route, encode(data), key_hash, timeout_s)

    def try_activate(self, *data: Any, key_hash: int = IN_TURN) -> int:
        """Activate the point if there is room."""
        return self.sender.try_activate(self.route, encode(data), key_hash)
