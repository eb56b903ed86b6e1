from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import aembus
from tests.crash.scene import Scene
from tests.crash.scene_log import NEWS, POINTS, SENT, LogWriter
from tests.crash.scene_stage import checksum, hang_up
from tests.crash.scene_view import children, names_by_kind
from tests.support.running import adds_up, statistics, until

pytestmark = [pytest.mark.e2e, pytest.mark.required_in_ci]

STREAM = 1 << 31  # no producer's
LONG_S = 1.0  # for a job that is in hand meanwhile
QUEUED = 20
SOON_S = 10.0


def keep_busy(scene: Scene, log: LogWriter) -> None:
    """Give every receiver a long job, and others behind it."""
    with aembus.connect(scene.bus) as bus:
        for number in range(1, QUEUED + 1):
            job = (STREAM, number, int(LONG_S * 1e6) if number == 1 else 0, b"")
            jobs = bus.activate(POINTS[NEWS], *job, checksum(*job))
            log.activated(SENT, NEWS, STREAM, number, jobs)


def began(scene: Scene, pid: int) -> bool:
    """Say whether a receiver has begun with its long job."""
    scene.take_logs()
    return any(d.pid == pid for d in scene.accounts.deliveries((STREAM, 1)))


def ended(scene: Scene, pid: int) -> bool:
    """Say whether it has ended it."""
    scene.take_logs()
    return any(d.pid == pid and d.ended for d in scene.accounts.deliveries((STREAM, 1)))


def test_a_member_that_hangs_up_keeps_its_slot_until_its_process_ends(
    make_scene: Callable[..., Scene],
) -> None:
    """The end of a connection is no death: nobody touches its inbox while it works on a job."""
    with make_scene() as scene:
        scene.settle()
        inboxes = names_by_kind(scene.bus)["inbox"]
        guest = scene.invite()
        scene.await_guest(guest)
        pid = scene.guest_pid(guest)
        log = LogWriter(scene.directory, "guest-keeper")
        keep_busy(scene, log)
        log.close()
        assert scene.watch(SOON_S, lambda: began(scene, pid))
        scene.hang_up(pid)
        while not ended(scene, pid):
            assert names_by_kind(scene.bus)["inbox"] >= inboxes + 1 or ended(scene, pid)
            time.sleep(0.01)  # between two looks
        scene.settle()
        assert names_by_kind(scene.bus)["inbox"] == inboxes
        scene.stop()


def test_a_worker_that_hangs_up_is_replaced_when_its_process_ends(
    make_scene: Callable[..., Scene],
) -> None:
    """There are never two who read the same inbox."""
    with make_scene() as scene:
        scene.settle()
        log = LogWriter(scene.directory, "worker-keeper")
        keep_busy(scene, log)
        log.close()
        name = scene.worker_names[0]
        pid = scene.worker_pid(name)
        assert scene.watch(SOON_S, lambda: began(scene, pid))
        assert scene.watch(SOON_S, lambda: bool(scene.spares()))  # one that just begins looks alike
        before = workers(scene)
        scene.worker_hangs_up(name)
        while not ended(scene, pid):
            assert workers(scene) == before or ended(scene, pid)
            time.sleep(0.01)  # between two looks
        scene.settle()
        scene.stop()


def workers(scene: Scene) -> set[int]:
    """Return the PIDs of the supervisor's children that are no spares."""
    return children(scene.supervisor_pid) - set(scene.spares())


def hangs_up(bus: aembus.Bus) -> None:
    """Entry point: the first process of all hangs up in the middle of a call."""

    @bus.on("ask", group="workers", name="ask")
    def ask(event: aembus.Event) -> list[int]:
        assert event.job is not None
        if event.job.attempt == 1:
            hang_up(0, None)
            until("it is noticed", lambda: bus._sender.refuses)
        return [os.getpid(), event.job.attempt]


@pytest.mark.parametrize("lane", ["c", "python"])
@pytest.mark.parametrize("redeliver", [False, True])
def test_an_answer_that_cannot_be_sent_leaves_the_call_in_hand(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: str, redeliver: bool
) -> None:
    """The callee's end of the connection is gone: its replacement does what it does at a death."""
    monkeypatch.setenv("AEMBUS_LANE", lane)
    spec = aembus.WorkerSpec("w", f"{__name__}:hangs_up")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as caller,
    ):
        point = caller.point("ask")
        if redeliver:
            pid, attempt = point.call(timeout=SOON_S, redeliver=True)
            assert (pid != os.getpid(), attempt) == (True, 2)
        else:
            with pytest.raises(aembus.CallFailed, match=r"MemberGone.*in hand"):
                point.call(timeout=SOON_S)
        until("it is settled", lambda: not statistics(bus_name)["totals"]["queued"])
        assert adds_up(statistics(bus_name)["totals"])
