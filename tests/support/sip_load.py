"""What a SIP responder under load has open, for tests that change it meanwhile."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.support.running import statistics


def open_now(bus: str) -> dict[str, int]:
    """Return how many timers, connections and calls there are."""
    now = statistics(bus)
    services: Counter[str] = Counter()
    for service in now["services"]:  # of each, the version before may still be there
        services["timers"] += service.get("running", 0)
        services["connections"] += service.get("connections", 0)
    counters = _counters(now)
    return {
        "timers": services["timers"],
        "connections": services["connections"],
        "calls": counters["calls"] - counters["calls_ended"],
    }


def finished(bus: str, calls: int) -> bool:
    """Say whether the last call has begun: what is switched then is not under load."""
    return calls_begun(bus) >= calls


def calls_begun(bus: str) -> int:
    """Return how many calls there have been."""
    return _counters(statistics(bus))["calls"]


def _counters(found: dict[str, Any]) -> Counter[str]:
    counters: Counter[str] = Counter()
    for member in found["members"]:
        counters.update(member["counters"])
    return counters
