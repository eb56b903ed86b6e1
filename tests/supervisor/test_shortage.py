"""What is short of room, descriptors or disk harms no more than it must, and no longer."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import aembus
from aembus.control import ControlClient
from aembus.services import Service
from aembus.shm import layout
from aembus.supervisor.dead_letters import DeadLetters
from tests.crash.scene_view import descriptors
from tests.support.running import adds_up, statistics, until, workers

REGISTRY_BYTES = 8192


def serve(bus: aembus.Bus) -> None:
    """Entry point: one handler that answers, and one that never does."""
    bus.register("work", lambda event: 1, name="work", group="g")

    @bus.on("hang")
    def hang(event: aembus.Event) -> None:
        while True:
            time.sleep(60)


@pytest.fixture
def bus(bus_name: str, tmp_path: Path) -> Iterator[str]:
    """A bus with one worker and a small registry, and no place for dead letters yet; its name."""
    spec = aembus.WorkerSpec("w", "tests.supervisor.test_shortage:serve")
    with aembus.Supervisor(
        bus_name,
        workers=[spec],
        slots=8,
        lane_bytes=4096,
        registry_bytes=REGISTRY_BYTES,
        state_directory=tmp_path / "state",
    ):
        yield bus_name


def nothing(event: aembus.Event, *data: object) -> None:
    """Handle a job."""


def kill_worker(bus: str) -> None:
    """Kill the worker, and return when its replacement runs."""
    before = workers(bus)[0]
    os.kill(before["pid"], signal.SIGKILL)
    until(
        "it is replaced",
        lambda: (
            workers(bus)[0]["restarts"] > before["restarts"]
            and workers(bus)[0]["state"] == "running"
        ),
    )


def test_an_event_that_does_not_fit_the_registry_harms_its_member_alone(bus: str) -> None:
    """Whoever asks for too much is told; everybody else may come, go, register and die."""
    with aembus.connect(bus) as greedy, aembus.connect(bus) as other:
        with pytest.raises(aembus.OutOfSharedMemory, match="registry_bytes, need="):
            greedy.register("x" * REGISTRY_BYTES, nothing)
        greedy.register("greedy", nothing)
        other.register("other", nothing)
        kill_worker(bus)
        assert other.activate("greedy") == other.activate("other") == other.activate("work") == 1


def test_a_registry_that_is_full_has_room_for_its_members(bus: str) -> None:
    """Events are refused before members would be: those come back after a death, and new ones."""
    with aembus.connect(bus) as greedy:
        stopped = greedy.register("stopped", nothing)
        stopped.stop()
        refused = None
        while refused is None:
            try:
                greedy.register(f"{len(greedy.events):0500}", nothing)
            except aembus.OutOfSharedMemory as error:
                refused = error
        assert len(greedy.events) > 10
        kill_worker(bus)
        stopped.start()
        with aembus.connect(bus) as other:
            assert other.activate(greedy.events[-1].point) == other.activate("stopped") == 1
            with pytest.raises(aembus.OutOfSharedMemory):
                other.register("x" * 500, nothing)
        greedy.events[-1].close()
        greedy.register("in its place", nothing)


def test_who_departs_waits_until_its_jobs_can_be_kept(bus: str, tmp_path: Path) -> None:
    """A disk that is full for a while costs no job and no slot."""
    state = tmp_path / "state"
    state.rmdir()
    state.touch()  # no directory can be made there
    with aembus.connect(bus) as client:
        with aembus.connect(bus, name="gone", keep=0.0) as gone:
            gone.register("alone", nothing)
            gone.publish_registrations()
            for number in range(3):
                assert client.activate("alone", number) == 1
        (leaving,) = [m for m in statistics(bus)["members"] if m["name"] == "gone"]
        assert (leaving["state"], leaving["queued"]) == ("leaving", 3)
        state.unlink()
        until(
            "it has departed",
            lambda: "gone" not in [m["name"] for m in statistics(bus)["members"]],
        )
        assert len(DeadLetters(state).read()) == 3
        assert adds_up(statistics(bus)["totals"])


def test_a_letter_that_cannot_be_removed_is_sent_once(bus: str, tmp_path: Path) -> None:
    """A disk that is full when a dead letter was replayed: the next replay removes it only."""
    with aembus.connect(bus) as client, aembus.DeadLetterBox(bus) as box:
        got: list[int] = []

        @client.on("picky")
        def picky(event: aembus.Event, number: int) -> None:
            got.append(number)
            if len(got) <= 2:
                raise ValueError(number)

        for number in (1, 2):
            client.activate("picky", number)
        until("both are kept", lambda: client.poll(0.05) * 0 or len(box.list()) == 2)
        first, second = (letter["id"] for letter in box.list())
        assert box.replay([first]).replayed == [first]
        supervisor = statistics(bus)["supervisor"]["pid"]
        size = box.path.stat().st_size
        limits = resource.prlimit(supervisor, resource.RLIMIT_FSIZE)
        resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (size, limits[1]))
        (reason,) = box.replay([second]).refused.values()
        assert "it is sent, and its letter cannot be removed" in reason
        resource.prlimit(supervisor, resource.RLIMIT_FSIZE, limits)
        assert box.replay([second]).replayed == [second]
        assert box.list() == []
        until("what was sent is there", lambda: client.poll(0.05) * 0 or len(got) == 4)
        assert client.poll() == 0
        assert got == [1, 2, 1, 2]


def test_a_bus_ends_although_its_jobs_cannot_be_kept(
    bus_name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a word of how many are lost."""
    state = tmp_path / "state"
    with (
        aembus.Supervisor(bus_name, state_directory=state),
        aembus.connect(bus_name, name="idle") as idle,
    ):
        idle.register("idle", nothing)
        idle.publish_registrations()
        for number in range(3):
            assert idle.activate("idle", number) == 1
        state.rmdir()
        state.touch()  # no directory can be made there
        control = ControlClient(bus_name)
        control.request("stop")
        with pytest.raises(aembus.BusBroken):
            until("the bus has ended", lambda: idle.activate("nobody") * 0)
        control.close()
    assert "member=idle, jobs=3" in capfd.readouterr().err


def test_a_worker_is_replaced_although_its_caller_cannot_be_told(bus: str) -> None:
    """The supervisor has no descriptor left for the caller's inbox when the worker dies."""
    with aembus.connect(bus) as client:
        control = ControlClient(bus)
        supervisor = control.request("statistics")["supervisor"]["pid"]

        def call() -> None:
            with pytest.raises(aembus.AembusError):
                client.point("hang").call(timeout=3.0)

        calling = threading.Thread(target=call)
        calling.start()

        def worker() -> dict[str, Any]:
            members = control.request("statistics")["members"]
            (found,) = [m for m in members if m["kind"] == "worker"]
            return dict(found)

        until("it is in hand", lambda: worker()["queued"])
        pid = worker()["pid"]
        limits = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
        used = sum(descriptors(supervisor).values())
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (used - 4, limits[1]))
        os.kill(pid, signal.SIGKILL)
        until("its death was seen", lambda: not psutil.pid_exists(pid))
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, limits)
        until("it is replaced", lambda: worker()["state"] == "running" and worker()["pid"] != pid)
        assert client.point("work").call(timeout=10.0) == 1
        calling.join()
        control.close()


def test_what_services_send_waits_for_descriptors(
    bus_name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The supervisor has none to open an inbox: that costs no job, and nothing stands still."""
    with (
        aembus.Supervisor(bus_name, services=["timer"], state_directory=tmp_path / "state"),
        aembus.connect(bus_name) as client,
    ):
        got: list[int] = []
        client.register("late", lambda event, number: got.append(number))
        timer = client.service("timer")
        control = ControlClient(bus_name)
        supervisor = control.request("statistics")["supervisor"]["pid"]
        limits = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
        used = sum(descriptors(supervisor).values())
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (used - 4, limits[1]))
        for number in range(5):
            timer.after(0.0, "late", number)

        def expired() -> int:
            (service,) = control.request("services")["services"]
            return int(service["expired"])

        until("all are due", lambda: expired() == 5)
        assert client.poll() == 0
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, limits)
        until("all have come", lambda: client.poll(0.05) * 0 or len(got) == 5)
        control.close()
    assert got == [0, 1, 2, 3, 4]
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_published_is_no_failure_for_want_of_a_descriptor(bus_name: str) -> None:
    """Without one the other's bell cannot be opened: it finds the job when its sleep ends."""
    with (
        aembus.Supervisor(bus_name),
        aembus.connect(bus_name) as sleeper,
        aembus.connect(bus_name) as client,
    ):
        got: list[int] = []
        sleeper.register("work", lambda event, number: got.append(number))
        assert client.activate("work", 1) == 1  # its lane is open now, and nobody sleeps
        sleeper.run_in_thread()
        until("it sleeps", lambda: got and sleeper._inbox._words[layout.SLEEPING // layout.WORD])
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            assert client.activate("work", 2) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        until("it has come", lambda: got == [1, 2])


class Odd(Service):
    """A service that returns what it should not."""

    name = "odd"
    version = "1"

    def do_work(self, now_ns: int) -> int:
        """Return what is no number."""
        return "done"  # type: ignore[return-value]

    def next_due_ns(self) -> int | None:
        """Return what is no time."""
        return "soon"  # type: ignore[return-value]


def test_a_service_that_returns_nonsense_stops_no_other(bus_name: str) -> None:
    """Its turns are everybody's."""
    with (
        aembus.Supervisor(bus_name, services=[f"{__name__}:Odd", "timer"]),
        aembus.connect(bus_name) as client,
    ):
        got: list[aembus.Event] = []
        client.register("late", got.append)
        client.service("timer").after(0.0, "late")
        until("it has come", lambda: client.poll(0.05) * 0 or got)
