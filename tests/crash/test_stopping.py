from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.crash.scene import Scene
from tests.crash.scene_board import BUSY

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]


def test_stopped_under_load(make_scene: Callable[..., Scene]) -> None:
    """What is sent while the bus stops is delivered, a dead letter, or refused: never lost."""
    with make_scene(stop_timeout_s=1.0) as scene:
        for _ in range(2):
            scene.be_loud(BUSY)
            scene.watch(0.2)
            scene.stop_under_load()
            scene.restart_after_death()
        scene.stop()
        assert scene.sums.delivered > 0
