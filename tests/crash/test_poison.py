from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

import aembus
from tests.crash import poisons
from tests.crash.scene import Scene
from tests.crash.scene_accounts import DEATHS_MAX, Delivery
from tests.crash.scene_board import MIXED
from tests.crash.scene_log import POINTS, POISON, SENT, LogWriter
from tests.support.running import workers

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

STREAM = 1 << 31  # no producer's
PATIENCE_S = 20.0
LOOKS_ENDLESS_S = 0.3
DELIVERED_MEANWHILE = 20
HARMLESS = ("unencodable result",)  # an event's handler returns it to nobody


def deliveries(scene: Scene, number: int) -> list[Delivery]:
    """Return how a poisonous job was delivered, as far as its receivers have written that."""
    scene.take_logs()
    return [d for d in scene.accounts.deliveries((STREAM, number)) if d.point == POISON]


def test_poison(make_scene: Callable[..., Scene]) -> None:
    """A job of whatever kind of poison ends as a dead letter after 3 deaths; the others flow."""
    with make_scene() as scene:
        scene.be_loud(MIXED)
        log = LogWriter(scene.directory, "poisoner")
        for number, kind in zip(itertools.count(1), poisons.KINDS, strict=False):
            supervisor, restarts = scene.supervisor_pid, total_restarts(scene)
            finished = scene.finished()
            with aembus.connect(scene.bus) as bus:
                jobs = bus.activate(POINTS[POISON], STREAM, number, 0, kind.encode(), 0)
                log.activated(SENT, POISON, STREAM, number, jobs)
            await_the_end(scene, number, kind)
            deaths = total_restarts(scene) - restarts
            print(f"{kind}: {deaths} deaths")
            assert deaths <= DEATHS_MAX
            assert scene.supervisor_pid == supervisor
            scene.await_finished(finished + DELIVERED_MEANWHILE)
        log.close()
        scene.stop()


def total_restarts(scene: Scene) -> int:
    """Return how often workers were replaced."""
    return sum(worker["restarts"] for worker in workers(scene.bus))


def await_the_end(scene: Scene, number: int, kind: str) -> None:
    """Wait until the job is delivered or a dead letter; kill who works on it for too long."""
    deadline = time.monotonic() + PATIENCE_S
    stuck_since: dict[int, float] = {}
    while True:
        scene.watch(0.01)
        found = deliveries(scene, number)
        letters = scene.accounts.letters((STREAM, number))
        if letters:
            assert kind not in HARMLESS
            return
        if any(delivery.ended for delivery in found):
            assert kind in HARMLESS
            return
        now = time.monotonic()
        for delivery in found:
            if now - stuck_since.setdefault(delivery.pid, now) > LOOKS_ENDLESS_S:
                scene.kill_whoever_is(delivery.pid)
        assert now < deadline, f"{kind} has no end: {found}"
