from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from aembus.shm import layout
from tests.crash.scene import Scene
from tests.crash.scene_board import BUSY
from tests.crash.scene_view import names_by_kind, process_state

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

FLIPS = 60
FLIPS_BY_HAND = 3000
PAUSE_S = 0.01
GOES_ON = 50


def flip(memory: memoryview, begin: int, size: int, choose: random.Random) -> None:
    """Change one bit somewhere in a part of a segment."""
    memory[begin + choose.randrange(size)] ^= 1 << choose.randrange(8)


def lane_of(scene: Scene, inbox_id: int, choose: random.Random) -> tuple[int, int]:
    """Return where the control and the ring of an open lane of an inbox begin."""
    segment = scene.view.segment(inbox_id)
    origin = choose.choice([*scene.view.lanes(inbox_id)])
    lane = layout.lane_index(segment.slots, layout.CLASS_NORMAL, origin)
    return (
        layout.lane_control_offset(segment.slots, lane),
        layout.ring_offset(segment.slots, segment.lane_bytes, lane),
    )


@pytest.mark.parametrize("flips", [FLIPS, pytest.param(FLIPS_BY_HAND, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["records", "lane control", "inbox control", "registry"])
def test_flipped_bits(make_scene: Callable[..., Scene], seed: int, what: str, flips: int) -> None:
    """Damage to shared memory ends no process, and the bus can be stopped; others go on."""
    choose = random.Random(seed)
    with make_scene() as scene:
        scene.be_loud(BUSY)
        scene.watch(0.2)
        supervisor = scene.supervisor_pid
        victim = scene.view.workers()["w-1"].inbox_id
        pids = {name: scene.worker_pid(name) for name in scene.worker_names}
        finished = {name: scene.finished_by(name) for name in scene.worker_names[1:]}
        for _ in range(flips):
            memory = scene.view.segment(victim).memory
            control, ring = lane_of(scene, victim, choose)
            if what == "records":
                flip(memory, ring, scene.stage.lane_bytes, choose)
            elif what == "lane control":
                flip(memory, control, layout.LANE_CONTROL_BYTES, choose)
            elif what == "inbox control":
                flip(memory, layout.HEADER_BYTES, layout.DOORS - layout.HEADER_BYTES, choose)
            else:
                registry = scene.view.registry_segment.memory
                flip(registry, layout.REGISTRY_HALVES, 4096, choose)
            scene.pass_time(PAUSE_S)
        for name, before in finished.items():
            scene.await_finished_by(name, before + GOES_ON)
        assert scene.supervisor_pid == supervisor
        assert scene.supervisor_lives()
        dead = [name for name, pid in pids.items() if process_state(pid) in ("", "Z")]
        assert dead == []
        scene.board.be_quiet()
        with contextlib.suppress(OSError):
            scene.end_supervisor()
        assert names_by_kind(scene.bus) == {}
