from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.crash.scene import Scene
from tests.crash.scene_board import BUSY, MIXED

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

TIMES = 5
TIMES_BY_HAND = 50
START_TAKES_S = 0.8  # about; to be killed at any moment of it
STOP_TAKES_S = 0.3


@pytest.fixture(params=[TIMES, pytest.param(TIMES_BY_HAND, marks=pytest.mark.slow)])
def times(request: pytest.FixtureRequest) -> int:
    """How often."""
    number: int = request.param
    return number


def test_killed_while_nothing_happens(make_scene: Callable[..., Scene], times: int) -> None:
    """All workers end, the next supervisor starts at the first try, and nothing is left over."""
    with make_scene() as scene:
        for _ in range(times):
            scene.settle()
            scene.kill_supervisor()
            scene.restart_after_death()
        scene.stop()


def test_killed_under_load(make_scene: Callable[..., Scene], times: int, seed: int) -> None:
    """So they do when jobs are queued and in hand, of which each is accounted for."""
    choose = random.Random(seed)
    with make_scene() as scene:
        for _ in range(times):
            scene.be_loud(MIXED)
            scene.watch(choose.uniform(0.05, 0.4))
            scene.kill_supervisor()
            scene.restart_after_death()
        scene.be_loud(BUSY)
        scene.watch(0.2)
        scene.stop()
        assert scene.sums.delivered > 0


def test_killed_while_it_starts(make_scene: Callable[..., Scene], times: int, seed: int) -> None:
    """So they do wherever it was in its start."""
    choose = random.Random(seed)
    with make_scene() as scene:
        scene.settle()
        scene.kill_supervisor()
        for _ in range(times):
            scene.begin_supervisor()
            scene.kill_starting_supervisor(choose.uniform(0.0, START_TAKES_S))
        scene.restart_after_death()
        scene.be_loud(BUSY)
        scene.watch(0.2)
        scene.stop()
        assert scene.sums.delivered > 0


def test_killed_while_it_stops(make_scene: Callable[..., Scene], times: int, seed: int) -> None:
    """So they do wherever it was in its end."""
    choose = random.Random(seed)
    with make_scene() as scene:
        for _ in range(times):
            scene.be_loud(MIXED)
            scene.watch(0.1)
            scene.kill_stopping_supervisor(choose.uniform(0.0, STOP_TAKES_S))
            scene.restart_after_death()
        scene.stop()
        assert scene.sums.delivered > 0
