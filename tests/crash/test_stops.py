from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.crash.scene import Scene
from tests.crash.scene_board import BUSY, MIXED
from tests.crash.scene_view import names_by_kind

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

STOPS = 16
STOPS_BY_HAND = 400
STOPPED_S = (0.15, 0.4)
LONG_STOPPED_S = 5.0
GOES_ON = 20  # jobs of each of the others, while one is stopped
A_WHILE_S = 0.7  # in which something that must not happen would


@pytest.mark.parametrize("stops", [STOPS, pytest.param(STOPS_BY_HAND, marks=pytest.mark.slow)])
def test_a_stopped_member_is_not_dead(
    make_scene: Callable[..., Scene], stops: int, seed: int
) -> None:
    """Others go on meanwhile, nobody takes its place, and afterwards it goes on itself."""
    choose = random.Random(seed)
    with make_scene() as scene:
        for number in range(stops):
            scene.be_loud(BUSY)
            before = scene.identities()
            pids = {scene.worker_pid(name): name for name in scene.worker_names}
            pids |= {scene.producer_pid(n): "" for n in range(scene.stage.producers)}
            scene.watch(choose.uniform(0.0, 0.05))
            victim = choose.choice([*pids])
            others = [name for name in scene.worker_names if name != pids[victim]]
            finished = {name: scene.finished_by(name) for name in others}
            scene.stop_process(victim)
            scene.watch(choose.uniform(*STOPPED_S))
            # A full lane into a stopped worker holds its producers up for ROOM_S each time.
            for name in others:
                scene.await_finished_by(name, finished[name] + GOES_ON)
            scene.continue_process(victim)
            scene.watch(0.02)
            assert scene.identities() == before
            if number % 4 == 3:
                scene.settle()
        scene.stop()


def test_a_stopped_supervisor_holds_nobody_up(make_scene: Callable[..., Scene]) -> None:
    """Members go on without it; one that is killed meanwhile is replaced afterwards.

    Except one that has a job to give up: the supervisor alone keeps dead letters.
    """
    with make_scene(raise_share=0.0) as scene:
        for _ in range(3):
            scene.be_loud(BUSY)
            scene.watch(0.1)
            finished = {name: scene.finished_by(name) for name in scene.worker_names}
            scene.stop_process(scene.supervisor_pid)
            for name in scene.worker_names:
                scene.await_finished_by(name, finished[name] + GOES_ON)
            scene.continue_process(scene.supervisor_pid)
            scene.settle()
        scene.be_loud(MIXED)
        scene.watch(5.0, lambda: len(scene.workers_at_work()) == scene.stage.workers)
        scene.stop_process(scene.supervisor_pid)
        scene.kill_worker(scene.worker_names[0])
        scene.kill_producer(0)
        others = scene.worker_names[1:]
        finished = {name: scene.finished_by(name) for name in others}
        for name in others:
            scene.await_finished_by(name, finished[name] + GOES_ON)
        scene.continue_process(scene.supervisor_pid)
        scene.forgive_delay()
        scene.settle()
        scene.stop()


def test_nobodys_inbox_goes_while_a_stopped_member_may_write_to_it(
    make_scene: Callable[..., Scene],
) -> None:
    """A member that leaves keeps its slot until a stopped producer has seen that it left."""
    with make_scene() as scene:
        scene.settle()  # whoever is just joining has an inbox afterwards
        scene.be_loud(BUSY)
        for number in range(3):
            inboxes = names_by_kind(scene.bus)["inbox"]
            guest = scene.invite()
            scene.await_guest(guest)
            scene.watch(0.05)
            stopped = scene.producer_pid(number % scene.stage.producers)
            scene.stop_process(stopped)
            scene.see_off(guest)
            scene.await_unlisted(guest)
            scene.watch(A_WHILE_S)
            assert names_by_kind(scene.bus)["inbox"] == inboxes + 1
            scene.continue_process(stopped)
            scene.settle()
            assert names_by_kind(scene.bus)["inbox"] == inboxes
            scene.be_loud(BUSY)
        scene.stop()


@pytest.mark.slow
def test_a_long_stop(make_scene: Callable[..., Scene]) -> None:
    """Five seconds are no death either."""
    with make_scene() as scene:
        for pid in (scene.worker_pid("w-1"), scene.producer_pid(0), scene.supervisor_pid):
            scene.be_loud(BUSY)
            before = scene.identities()
            scene.stop_process(pid)
            scene.watch(LONG_STOPPED_S)
            scene.continue_process(pid)
            scene.settle()
            assert scene.identities() == before
        scene.stop()
