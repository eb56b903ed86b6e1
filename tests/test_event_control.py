"""Event control: an event is stopped, started, closed; who is at work is known."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

import aembus
from tests.support.running import adds_up, statistics, until, workers

THIS = "tests.test_event_control"


def poll_all(bus: aembus.Bus) -> int:
    """Deliver until nothing is left."""
    handled = 0
    while more := bus.poll():
        handled += more
    return handled


def controlled(bus: aembus.Bus) -> None:
    """Entry point: an event that others stop and start, and one that is stopped from birth."""
    log = bus.point("log")
    work = bus.register("work", lambda event, n: log.activate("work", n), name="work")
    born = bus.register("born stopped", lambda event, n: log.activate("born", n), name="born")
    born.stop()

    @bus.on("control", redeliver=False)
    def control(event: aembus.Event, verb: str) -> int:
        target = born if verb == "start born" else work
        (target.start if verb.startswith("start") else target.stop)()
        if verb == "stop and die":
            os.kill(os.getpid(), signal.SIGKILL)
        return work.id


class Log:
    """A client that collects what the worker's handlers say."""

    def __init__(self, bus: aembus.Bus) -> None:
        self._bus = bus
        self.lines: list[tuple[str, int]] = []
        bus.register("log", lambda event, *line: self.lines.append(line))

    def wait_for(self, *lines: tuple[str, int]) -> None:
        until(f"{lines}", lambda: self._bus.poll(0.02) * 0 or self.lines == list(lines))


def test_a_stopped_event_gets_what_was_queued_and_nothing_new(bus: str) -> None:
    """Stopping takes an event off its wait queue alone, and starting puts it back as it was."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        got: list[int] = []
        event = receiver.register("p", lambda event, n: got.append(n))
        its_id = event.id
        assert sender.activate("p", 1) == 1
        event.stop()
        event.stop()
        assert event.stopped
        assert sender.activate("p", 2) == 0
        assert poll_all(receiver) == 1
        event.start()
        event.start()
        assert (event.stopped, event.id) == (False, its_id)
        assert sender.activate("p", 3) == 1
        assert poll_all(receiver) == 1
        assert got == [1, 3]
        assert event.statistics().delivered == 2


def test_a_stopped_events_keys_come_back_to_it(bus: str) -> None:
    """Of a group the others get a stopped event's jobs; started again it has its keys again."""
    with aembus.connect(bus) as a, aembus.connect(bus) as b, aembus.connect(bus) as sender:
        events = [m.register("p", lambda event, k: None, group="g") for m in (a, b)]
        point = sender.point("p")

        def owner(key: str) -> str:
            assert point.activate(key, key=key) == 1
            return "a" if poll_all(a) else "b" * poll_all(b)

        keys = [f"key-{n}" for n in range(8)]
        before = {key: owner(key) for key in keys}
        assert set(before.values()) == {"a", "b"}
        events[0].stop()
        assert {owner(key) for key in keys} == {"b"}
        events[0].start()
        assert {key: owner(key) for key in keys} == before


def test_a_closed_event_cannot_be_stopped_or_started(bus: str) -> None:
    """A closed event is off its queue for good, and says so; a stopped one can be closed."""
    with aembus.connect(bus) as receiver:
        event = receiver.register("p", lambda event: None, name="e")
        event.stop()
        assert receiver.events == [event]
        event.close()
        for verb in (event.start, event.stop):
            with pytest.raises(aembus.RegistrationError, match=r"closed; register it anew.*'e'"):
                verb()
        again = receiver.register("p", lambda event: None, name="e")
        assert receiver.activate("p") == 1
        assert poll_all(receiver) == 1
        assert again.statistics().delivered == 1


def test_a_stopped_event_is_listed_as_such(bus: str) -> None:
    """The bus's statistics show a stopped event at its point, and that it is stopped."""
    with aembus.connect(bus) as receiver:
        event = receiver.register("p", lambda event: None, name="e", group="g")
        event.stop()
        (point,) = statistics(bus)["points"]
        (shown,) = point["events"]
        assert (point["name"], shown["name"], shown["group"]) == ("p", "e", "g")
        assert shown["stopped"]
        event.start()
        assert not statistics(bus)["points"][0]["events"][0]["stopped"]


def test_a_replacement_begins_with_what_its_main_registers(bus_name: str, tmp_path: Path) -> None:
    """Killed between stop() and start(), a worker's event is back with the replacement's main."""
    spec = aembus.WorkerSpec("w", f"{THIS}:controlled")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        log = Log(client)
        assert client.activate("work", 1) == 1
        its_id = client.point("control").call("stop")
        assert client.activate("work", 2) == 0
        log.wait_for(("work", 1))
        client.activate("control", "stop and die")
        until("it dies", lambda: workers(bus_name)[0]["restarts"] == 1)
        until("its event is back", lambda: client.activate("work", 3))
        log.wait_for(("work", 1), ("work", 3))
        assert client.point("control").call("start") == its_id
        assert adds_up(statistics(bus_name)["totals"])


def test_an_event_stopped_in_main_is_on_no_queue_until_it_is_started(
    bus_name: str, tmp_path: Path
) -> None:
    """Stopped before its member's registrations are published, an event begins off its queue."""
    spec = aembus.WorkerSpec("w", f"{THIS}:controlled")
    with (
        aembus.Supervisor(bus_name, workers=[spec], state_directory=tmp_path),
        aembus.connect(bus_name) as client,
    ):
        log = Log(client)
        assert client.activate("born stopped", 1) == 0
        client.point("control").call("start born")
        assert client.activate("born stopped", 2) == 1
        log.wait_for(("born", 2))


def test_a_stopped_event_stays_stopped_on_the_next_supervisors_bus(
    bus_name: str, tmp_path: Path
) -> None:
    """With reconnect=True the state of each event goes along."""
    supervisors = [aembus.Supervisor(bus_name, state_directory=tmp_path) for _ in range(2)]
    with supervisors[0]:
        member = aembus.connect(bus_name, reconnect=True)
        stopped = member.register("stopped", lambda event: None)
        member.register("going", lambda event: None)
        stopped.stop()
        joined = threading.Event()
        member.on_reconnect(joined.set)
    with supervisors[1], member, aembus.connect(bus_name) as sender:
        assert joined.wait(20.0)
        until("the other is registered again", lambda: sender.activate("going"))
        assert sender.activate("stopped") == 0
        stopped.start()
        assert sender.activate("stopped") == 1
        until("both are delivered", lambda: member.poll(0.05) * 0 or stopped.delivered == 1)


def test_active_events_are_those_at_work_and_those_that_hold(bus: str) -> None:
    """Each bus object tells which of its events have a job in hand."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as receiver:
        seen: list[list[aembus.Event]] = []
        held: list[aembus.Job] = []

        def hold(event: aembus.Event) -> None:
            assert event.job is not None
            event.job.hold()
            held.append(event.job)

        holding = receiver.register("hold", hold)
        looking = receiver.register("look", lambda event: seen.append(receiver.active_events))
        assert receiver.active_events == []
        for point in ("hold", "look"):
            sender.activate(point)
        assert poll_all(receiver) == 2
        assert seen == [[holding, looking]]
        assert receiver.active_events == [holding]
        held[0].done()
        poll_all(receiver)
        assert receiver.active_events == []


def test_events_that_differ_by_group_alone_are_counted_apart(bus: str) -> None:
    """None hides the other in the statistics."""
    with aembus.connect(bus) as member:
        for group in (None, "g", "h"):
            member.register("p", lambda event: None, name="n", group=group)
        assert member.activate("p") == 3
        member.poll(30.0)
        events = member.statistics().events
        assert {name: found.delivered for name, found in events.items()} == {
            "p n": 1,
            "p n g": 1,
            "p n h": 1,
        }
