from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.crash.scene import Scene
from tests.crash.storm import CAST, Storm, run, table

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

KILLS = 300
KILLS_BY_HAND = 10_000
HOUR_S = 3600.0


def test_random_kills(make_scene: Callable[..., Scene], seed: int) -> None:
    """Whoever is killed at whatever moment under load: nothing is lost, and all go on."""
    print(table(run(make_scene(**CAST), seed, KILLS)))


@pytest.mark.slow
def test_many_random_kills(make_scene: Callable[..., Scene], seed: int) -> None:
    """The same, often enough for what is rare."""
    print(table(run(make_scene(**CAST), seed, KILLS_BY_HAND, progress=True)))


@pytest.mark.slow
def test_an_hour_with_a_fault_a_second(make_scene: Callable[..., Scene], seed: int) -> None:
    """Faults for an hour: nothing adds up that should not."""
    storm = Storm(make_scene(**CAST), seed, pause_s=1.0)
    deadline = time.monotonic() + HOUR_S
    with storm.scene:
        storm.scene.settle()
        while time.monotonic() < deadline:
            storm.round(kills_max=60)
        print(table(storm.finish()))
