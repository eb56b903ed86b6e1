from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.cli.main import main
from aembus.services.base import Caller, HandOver, Host, Service, call
from aembus.supervisor.outside import AGAIN_S
from tests.support.peer import peer_of
from tests.support.running import adds_up, program, statistics, until

pytestmark = pytest.mark.e2e

MODULE = "tests.supervisor.test_service_hosts"


class Tally(Service):
    """Adds up what it is told, and has the sum kept."""

    name = "tally"
    version = "1"
    points = ("tally.reached",)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._sum: int = host.kept or 0

    @call
    def add(self, caller: Caller, number: int) -> int:
        """Add a number and return the sum."""
        self._sum += number
        self.host.keep(self._sum)
        return self._sum

    @call
    def pid(self, caller: Caller) -> int:
        """Return who hosts this."""
        return os.getpid()

    @call
    def die(self, caller: Caller) -> None:
        """Kill the process."""
        os.kill(os.getpid(), signal.SIGKILL)

    def hand_over(self) -> HandOver:
        """See Service."""
        return HandOver(self._sum)

    async def take_over(self, handed: HandOver) -> None:
        """See Service."""
        self._sum = handed.data


class Gated(Service):
    """Starts when a file has gone."""

    name = "gated"
    version = "1"

    async def start(self) -> None:
        """See Service."""
        await asyncio.to_thread(self._wait)

    def _wait(self) -> None:
        while Path(os.environ["GATE"]).exists():
            time.sleep(0.01)


class Endless(Service):
    """Does not stop."""

    name = "endless"
    version = "1"

    async def stop(self) -> None:
        """See Service."""
        print("told to stop", flush=True)
        time.sleep(3600)  # noqa: ASYNC251  # nothing in its process can end that


class Broken(Service):
    """Cannot start."""

    name = "broken"
    version = "1"

    async def start(self) -> None:
        """See Service."""
        raise ValueError("not today")


def handle(bus: aembus.Bus) -> None:
    """Entry point of a worker that uses the service as soon as it starts."""
    bus.service("tally").add(0)
    bus.register("work", lambda event: bus.member_name, name="work", group="g")


@contextmanager
def running(
    bus: str, directory: Path, service: str = "Tally", hosts: int = 1, workers: int = 0
) -> Iterator[aembus.Supervisor]:
    """Run a bus with one of the services above in hosts, and workers that use it."""
    spec = aembus.ServiceSpec(f"{MODULE}:{service}", hosts=hosts)
    kinds = [aembus.WorkerSpec("w", f"{MODULE}:handle", count=workers)] if workers else []
    with aembus.Supervisor(
        bus, services=[spec], workers=kinds, state_directory=directory, log_level="CRITICAL"
    ) as supervisor:
        yield supervisor


def hosts(bus: str) -> list[dict[str, Any]]:
    """Return the statistics of the bus's service hosts."""
    return [m for m in statistics(bus)["members"] if m["kind"] == "host"]


def test_a_service_runs_in_a_process_of_its_own(bus_name: str, tmp_path: Path) -> None:
    """Members call it there, and the statistics say where it is."""
    with running(bus_name, tmp_path, workers=1) as supervisor, aembus.connect(bus_name) as client:
        tally = client.service("tally")
        assert tally.add(5) == 5
        (host,) = hosts(bus_name)
        assert tally.pid() == host["pid"] != supervisor.pid
        (service,) = statistics(bus_name)["services"]
        assert (service["host"], service["calls"]) == (host["name"], 3)
        assert sorted(service["users"]) == [client.member_name, "w-1"]
        assert client.point("work").call() == "w-1"
        assert adds_up(statistics(bus_name)["totals"])


def test_a_host_that_dies_is_replaced(bus_name: str, tmp_path: Path) -> None:
    """What its service kept is there again, what was queued is done, and nobody else dies."""
    with running(bus_name, tmp_path, workers=1), aembus.connect(bus_name) as client:
        tally = client.service("tally")
        tally.add(5)
        before = statistics(bus_name)
        (host,) = hosts(bus_name)
        os.kill(host["pid"], signal.SIGSTOP)
        service = client._services._bound["tally", None].service
        for _ in range(3):
            client.tell_service(service, "add", (1,))
        os.kill(host["pid"], signal.SIGKILL)
        assert tally.add(2, timeout=20.0) == 10
        assert tally.pid() != host["pid"]
        after = statistics(bus_name)
        assert [m["pid"] for m in before["members"] if m["kind"] != "host"] == [
            m["pid"] for m in after["members"] if m["kind"] != "host"
        ]
        assert [h["restarts"] for h in hosts(bus_name)] == [1]
        with aembus.connect(bus_name) as other:  # who comes now finds it, too
            assert other.service("tally").add(0) == 10


def test_a_call_that_kills_its_host_is_put_aside(bus_name: str, tmp_path: Path) -> None:
    """Its caller is told at once, it is a dead letter, and what is behind it is done."""
    with running(bus_name, tmp_path), aembus.connect(bus_name) as client:
        tally = client.service("tally")
        tally.add(5)
        with pytest.raises(aembus.CallFailed, match="in hand"):
            tally.die(timeout=30.0)
        assert tally.add(1, timeout=20.0) == 6
        with aembus.DeadLetterBox(bus_name, tmp_path) as box:
            (letter,) = box.list()
        assert letter["reason"] == "its member died or went with the call in hand"
        assert [h["restarts"] for h in hosts(bus_name)] == [1]
        assert adds_up(statistics(bus_name)["totals"])


def test_upgraded_in_its_host(bus_name: str, tmp_path: Path) -> None:
    """State and users are handed over there; a version that drains goes with its last user."""
    with running(bus_name, tmp_path), aembus.connect(bus_name) as client:
        tally = client.service("tally")
        tally.add(5)
        pid = tally.pid()
        with aembus.ServiceBox(bus_name) as box:
            change = box.upgrade("tally", hand_over=True)
            assert (change.old.version, change.new.version) == ("1", "1+2")
            assert change.new.users == (client.member_name,)
            assert (tally.add(1), tally.pid()) == (6, pid)
            with pytest.raises(aembus.ServiceLoadError, match="no such module"):
                box.upgrade("tally", "nothing_there:Tally")
            until("the old one is gone", lambda: [s.version for s in box.list()] == ["1+2"])
            box.upgrade("tally")
            assert [(s.version, s.state) for s in box.list()] == [
                ("1+2", "draining"),
                ("1+3", "running"),
            ]
            client.release(tally)
            until("its last user let go", lambda: [s.version for s in box.list()] == ["1+3"])
            assert client.service("tally").pid() == pid


def _is(bus: str, wanted: dict[str, Any]) -> bool:
    return wanted.items() <= hosts(bus)[0].items()


def test_what_was_upgraded_outlives_its_process(bus_name: str, tmp_path: Path) -> None:
    """A host that dies is replaced with the versions that it had, for the users that they had."""
    with (
        running(bus_name, tmp_path),
        aembus.connect(bus_name) as first,
        aembus.connect(bus_name) as second,
        aembus.connect(bus_name) as third,
        aembus.ServiceBox(bus_name) as box,
    ):
        handed_over = first.service("tally")
        handed_over.add(1)
        box.upgrade("tally", hand_over=True)
        drains = second.service("tally")
        drains.add(1)
        box.upgrade("tally")
        newest = third.service("tally")

        def loaded() -> list[tuple[str, str, tuple[str, ...]]]:
            return [(s.version, s.state, s.users) for s in box.list()]

        until("the first one is gone", lambda: len(loaded()) == 2)
        before = loaded()
        assert [version for version, *_ in before] == ["1+2", "1+3"]
        for restarts in (1, 2):
            os.kill(hosts(bus_name)[0]["pid"], signal.SIGKILL)
            replaced = {"state": "running", "restarts": restarts}
            until("it is replaced", functools.partial(_is, bus_name, replaced))
            assert loaded() == before
            assert handed_over.add(0) == drains.add(0) == newest.add(0) == 2
        first.release(handed_over)
        second.release(drains)
        until("what drained is gone", lambda: len(loaded()) == 1)
        assert box.upgrade("tally").new.version == "1+4"


def test_a_user_that_dies_lets_go(bus_name: str, tmp_path: Path) -> None:
    """Of a version in a host, too."""
    with running(bus_name, tmp_path, workers=1), aembus.ServiceBox(bus_name) as box:
        box.upgrade("tally")
        assert [s.users for s in box.list()] == [("w-1",), ()]
        (worker,) = [m for m in statistics(bus_name)["members"] if m["kind"] == "worker"]
        os.kill(worker["pid"], signal.SIGKILL)
        until("the old one is gone", lambda: [s.users for s in box.list()] == [("w-1",)])


def test_who_leaves_while_it_waits_for_a_host_uses_nothing(
    bus_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the version could never go."""
    gate = tmp_path / "gate"
    monkeypatch.setenv("GATE", str(gate))
    with running(bus_name, tmp_path, "Gated"), peer_of(bus_name) as peer:
        peer.send({"id": 1, "op": "join", "kind": "client", "name": "", "keep_s": 0.0})
        peer.read()
        gate.touch()
        (host,) = hosts(bus_name)
        os.kill(host["pid"], signal.SIGKILL)
        until("it is replaced", lambda: hosts(bus_name)[0]["state"] == "starting")
        peer.send({"id": 2, "op": "bind", "name": "gated", "version": None})
        peer.send({"id": 3, "op": "leave", "keep": False})
        assert peer.read() == {"id": 3, "result": {}}
        gate.unlink()
        answer = peer.read()
        assert answer["id"] == 2
        assert "left meanwhile" in answer["error"]["text"]
        (service,) = statistics(bus_name)["services"]
        assert service["users"] == []


@pytest.mark.parametrize(
    ("service", "count", "says"), [("Broken", 1, "not today"), ("Tally", 2, "hosts=2, max=1")]
)
def test_a_host_that_cannot_start_refuses_the_bus(
    bus_name: str, tmp_path: Path, service: str, count: int, says: str
) -> None:
    """The supervisor says why, and leaves nothing."""
    with pytest.raises(aembus.ServiceLoadError, match=says):
        with running(bus_name, tmp_path, service, count):
            pass


def test_the_option(bus_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--hosts wants a service that --service names, and a number."""
    for option, says in (("tcp=2", "services=['timer']"), ("timer", "want SERVICE=COUNT")):
        with pytest.raises(SystemExit) as ended:
            main(["run", "app:main", "--bus", bus_name, "--service", "timer", "--hosts", option])
        assert ended.value.code == 2
        assert says in capsys.readouterr().err


STOPPED_BY_HAND = f"""
import sys, aembus
spec = aembus.ServiceSpec("{MODULE}:Endless", hosts=1)
supervisor = aembus.Supervisor(
    sys.argv[1], services=[spec], state_directory=sys.argv[2], stop_timeout_s=1000
)
supervisor.run(lambda: print("ready", flush=True))
"""


def test_a_second_signal_ends_a_host_that_does_not_stop(bus_name: str, tmp_path: Path) -> None:
    """Whoever tells the supervisor twice does not wait for a service's end."""
    command = [sys.executable, "-c", STOPPED_BY_HAND, bus_name, os.fspath(tmp_path)]
    with program(command) as running:
        running.read_until("ready")
        running.process.terminate()
        running.read_until("told to stop")
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(1.5 * AGAIN_S)  # sooner it would be the same signal
        assert running.end() == 0
