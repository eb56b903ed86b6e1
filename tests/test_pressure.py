"""What becomes of activations when inboxes are full: by registration, by load, in a cycle."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import aembus
from tests.support.lanes import both_lanes
from tests.support.running import adds_up, statistics, until

THIS = "tests.test_pressure"
LANE_BYTES = 4096
FLOOD = 1000  # jobs, many times as many as a lane holds
LONG_S = 60.0  # a time-out that no test waits for


@pytest.fixture
def bus_options() -> dict[str, Any]:
    """See tests/conftest.py."""
    return {"services": ["timer"], "lane_bytes": LANE_BYTES}


def poll_all(bus: aembus.Bus) -> int:
    """Deliver until nothing is left."""
    handled = 0
    while more := bus.poll():
        handled += more
    return handled


def fill(point: aembus.ActivationPoint) -> int:
    """Activate until there is no room; return how many jobs that made."""
    sent = 0
    while point.try_activate(sent):
        sent += 1
    return sent


def member(bus: str, slot: int) -> dict[str, int]:
    """Return the statistics of one member."""
    (found,) = [m for m in statistics(bus)["members"] if m["slot"] == slot]
    return dict(found)


# --- full -----------------------------------------------------------------------------------------


@both_lanes
def test_one_that_drops_slows_nobody_down(bus: str) -> None:
    """Who never polls and is registered with full="drop" goes without, and the others get all."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as lazy, aembus.connect(bus) as eager:
        got: dict[str, list[int]] = {"lazy": [], "eager": []}
        lazy.register("p", lambda event, n: got["lazy"].append(n), full="drop")
        eager.register("p", lambda event, n: got["eager"].append(n))
        point = sender.point("p")
        jobs: Counter[int] = Counter()
        for number in range(100):
            jobs[point.activate(number, timeout=LONG_S)] += 1
            poll_all(eager)
        dropped = member(bus, lazy.slot)["dropped"]
        assert jobs == {2: 100 - dropped, 1: dropped}
        assert dropped > 0
        assert lazy.statistics().dropped == dropped
        assert eager.statistics().dropped == member(bus, eager.slot)["dropped"] == 0
        totals = statistics(bus)["totals"]
        assert adds_up(totals)
        assert (totals["sent"], totals["dropped"]) == (200 - dropped, dropped)
        assert poll_all(lazy) == 100 - dropped
        assert got == {"lazy": list(range(100 - dropped)), "eager": list(range(100))}
        assert point.activate(100) == 2


@both_lanes
def test_dropped_by_all_makes_no_job(bus: str) -> None:
    """An activation that everybody goes without is no error, and makes no job."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as lazy:
        lazy.register("p", lambda event, *data: None, full="drop")
        point = sender.point("p")
        while point.activate(0):
            pass
        assert point.try_activate(0)
        assert member(bus, lazy.slot)["dropped"] == 2
        with pytest.raises(aembus.JobTooLarge):
            point.activate(b"x" * LANE_BYTES)
        assert adds_up(statistics(bus)["totals"])


def test_what_was_dropped_is_counted_when_its_member_has_gone(bus: str) -> None:
    """The bus's total keeps what was dropped, as it keeps what was delivered."""
    with aembus.connect(bus) as sender:
        with aembus.connect(bus) as lazy:
            lazy.register("p", lambda event: None, full="drop")
            while sender.activate("p"):
                pass
        until("it has gone", lambda: len(statistics(bus)["members"]) == 2)
        totals = statistics(bus)["totals"]
        assert totals["dropped"] == 1
        assert adds_up(totals)


@both_lanes
def test_an_activation_waits_for_others_than_who_drops(bus: str) -> None:
    """Room where somebody is to be waited for ends the wait, whoever drops has none."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as lazy, aembus.connect(bus) as slow:
        lazy.register("p", lambda event, n: None, full="drop")
        slow.register("p", lambda event, n: None)
        sent = fill(sender.point("p"))
        jobs: list[int] = []
        waiting = threading.Thread(
            target=lambda: jobs.append(sender.activate("p", -1, timeout=LONG_S))
        )
        waiting.start()
        while waiting.is_alive():
            slow.poll(0.01)
        assert jobs == [1]
        poll_all(slow)
        assert member(bus, slow.slot)["delivered"] == sent + 1
        assert member(bus, lazy.slot)["dropped"] == 1


@both_lanes
def test_one_that_fails_makes_the_activation_fail_at_once(bus: str) -> None:
    """With full="fail" nobody waits, and nobody gets the job."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as full, aembus.connect(bus) as free:
        full.register("p", lambda event, *data: None, full="fail")
        point = sender.point("p")
        sent = fill(point)
        free.register("p", lambda event, *data: None)
        with pytest.raises(aembus.InboxFull, match=f"failing=..{full.member_name}"):
            point.activate(0, timeout=LONG_S)
        assert not point.try_activate(0)
        with pytest.raises(aembus.InboxFull):
            asyncio.run(point.activate_async(0, timeout=LONG_S))
        assert (poll_all(free), poll_all(full)) == (0, sent)
        assert point.activate(0, timeout=LONG_S) == 2


def test_who_fails_fails_beside_who_is_waited_for(bus: str) -> None:
    """Where one is full that is waited for and one that is not, nobody waits."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as a, aembus.connect(bus) as b:
        a.register("p", lambda event, *data: None)
        b.register("p", lambda event, *data: None, full="fail")
        fill(sender.point("p"))
        with pytest.raises(aembus.InboxFull, match="full='fail'"):
            sender.activate("p", 0, timeout=LONG_S)


@pytest.mark.parametrize("full", ["fail", "drop"])
def test_a_call_does_not_wait_for_who_is_not_to_be_waited_for(bus: str, full: aembus.Full) -> None:
    """A call to a full inbox fails at once, also where an activation would be dropped."""
    with aembus.connect(bus) as caller, aembus.connect(bus) as callee:
        callee.register("p", lambda event, *data: None, full=full)
        while caller.activate("p", 0, timeout=0.0) if full == "drop" else fill(caller.point("p")):
            pass
        before = member(bus, callee.slot)["dropped"]
        with pytest.raises(aembus.InboxFull):
            caller.point("p").call(1, timeout=LONG_S)
        (answer,) = caller.point("p").call_all(1, timeout=LONG_S)
        assert isinstance(answer.error, aembus.InboxFull)
        assert member(bus, callee.slot)["dropped"] == before


def test_what_a_service_activates_is_dropped_too(bus: str) -> None:
    """A service parks nothing for an event that drops."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as lazy:
        lazy.register("p", lambda event, n: None, full="drop")
        timer = sender.service("timer")
        for number in range(80):
            timer.after(0.001, "p", number)
        until(
            "all have fired",
            lambda: (m := member(bus, lazy.slot))["queued"] + m["dropped"] == 80,
        )
        kept = member(bus, lazy.slot)["queued"]
        assert 0 < kept < 80
        assert poll_all(lazy) == kept
        assert poll_all(lazy) == 0


def test_an_unknown_option_is_refused(bus: str) -> None:
    """What is not known is told, with what there is."""
    with aembus.connect(bus) as found:
        with pytest.raises(aembus.RegistrationError, match=r"'wait', 'fail', 'drop', full='often'"):
            found.register("p", print, full="often")  # type: ignore[arg-type]
        with pytest.raises(aembus.RegistrationError, match=r"'least_loaded', policy='any'"):
            found.register("p", print, group="g", policy="any")  # type: ignore[arg-type]
        with pytest.raises(aembus.RegistrationError, match=r"give group=.*least_loaded"):
            found.register("p", print, policy="least_loaded")
        assert found.events == []


# --- the least loaded -----------------------------------------------------------------------------


@both_lanes
def test_the_least_loaded_of_a_group_gets_the_next_job(bus: str) -> None:
    """Whoever's inbox has the fewest jobs, whoever sent them; equals take turns."""
    with (
        aembus.connect(bus) as sender,
        aembus.connect(bus) as other,
        aembus.connect(bus) as a,
        aembus.connect(bus) as b,
        aembus.connect(bus) as c,
    ):
        got: list[str] = []
        for name, joined in (("a", a), ("b", b), ("c", c)):
            joined.register(
                "p", lambda event, n=name: got.append(n), group="g", policy="least_loaded"
            )
            joined.register(f"only {name}", lambda event: None)
        for _ in range(6):
            assert sender.activate("p") == 1
        assert [poll_all(m) for m in (a, b, c)] == [2, 2, 2]
        got.clear()
        for _ in range(5):  # somebody else's, of another point
            other.activate("only a")
        other.activate("only b")
        for _ in range(7):
            sender.activate("p")
        assert [poll_all(m) for m in (a, b, c)] == [5, 1 + 3, 4]
        assert Counter(got) == {"b": 3, "c": 4}


def test_jobs_in_hand_are_part_of_the_load(bus: str) -> None:
    """A member that holds jobs is as loaded as one where they wait."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as busy, aembus.connect(bus) as idle:
        held: list[aembus.Job] = []

        def hold(event: aembus.Event) -> None:
            assert event.job is not None
            event.job.hold()
            held.append(event.job)

        busy.register("p", hold, group="g", policy="least_loaded")
        for _ in range(3):
            sender.activate("p")
        assert poll_all(busy) == 3
        idle.register("p", lambda event: None, group="g", policy="least_loaded")
        for _ in range(3):
            sender.activate("p")
        assert (poll_all(busy), poll_all(idle)) == (0, 3)
        for job in held:
            job.done()
        poll_all(busy)


def test_a_key_stays_with_its_member_in_a_group_by_load(bus: str) -> None:
    """With a key the load does not matter: order is worth more."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as a, aembus.connect(bus) as b:
        for joined in (a, b):
            joined.register("p", lambda event: None, group="g", policy="least_loaded")
        for _ in range(8):
            sender.activate("p", key="one")
        assert {poll_all(a), poll_all(b)} == {0, 8}


@both_lanes
def test_whoever_has_room_is_the_least_loaded(bus: str) -> None:
    """A lane without room is not chosen while another member has room, and is waited for else."""
    with aembus.connect(bus) as sender, aembus.connect(bus) as a, aembus.connect(bus) as b:
        for joined in (a, b):
            joined.register("p", lambda event, *data: None, group="g", policy="least_loaded")
        point = sender.point("p")
        large = b"x" * (LANE_BYTES // 2 - 100)
        assert point.activate(large) + point.activate(large) == 2  # one each: half a lane
        assert point.activate(large) + point.activate(1) == 2
        sent = fill(point)
        jobs: list[int] = []
        waiting = threading.Thread(target=lambda: jobs.append(point.activate(0, timeout=LONG_S)))
        waiting.start()
        while waiting.is_alive():
            b.poll(0.01)  # a never does
        assert jobs == [1]
        assert poll_all(a) + member(bus, b.slot)["delivered"] + poll_all(b) == sent + 5


def test_the_events_of_a_group_have_one_policy(bus: str) -> None:
    """Whoever comes with another one is refused, and both are named; other groups do not matter."""
    with aembus.connect(bus) as a, aembus.connect(bus) as b:
        a.register("p", lambda event: None, group="g", policy="least_loaded")
        b.register("p", lambda event: None, group="h", name="h")
        b.register("q", lambda event: None, group="g", name="q")
        names = f"'least_loaded'.*{a.member_name}|'least_loaded'.*{b.member_name}"
        with pytest.raises(aembus.RegistrationError, match=names) as refused:
            b.register("p", lambda event: None, group="g", name="g")
        for words in (a.member_name, b.member_name, "'round_robin'", "group='g'", "point='p'"):
            assert words in str(refused.value)
        assert a.activate("p") == 2
        poll_all(a)
        poll_all(b)


# --- a cycle --------------------------------------------------------------------------------------


def flooding(bus: aembus.Bus) -> None:
    """Entry point: one of two workers, each of which fills the other's inbox in one handler."""
    me = bus.member_name
    other = "w-2" if me == "w-1" else "w-1"
    point, log = bus.point(f"to {other}"), bus.point("log")

    @bus.on(f"to {me}")
    def flooded(event: aembus.Event, directory: str) -> None:
        if not directory:
            return
        Path(directory, me).touch()
        until("both are in their handlers", Path(directory, other).exists)
        sent = 0
        try:
            while sent < FLOOD:
                sent += point.activate("", timeout=0.2)
        except aembus.InboxFull:
            pass
        log.activate(me, sent)


def test_a_cycle_of_full_inboxes_ends_in_inbox_full(bus_name: str, tmp_path: Path) -> None:
    """Members that wait for each other's room while neither delivers do not wait for ever."""
    spec = aembus.WorkerSpec("w", f"{THIS}:flooding", count=2)
    with (
        aembus.Supervisor(
            bus_name, workers=[spec], state_directory=tmp_path, lane_bytes=LANE_BYTES
        ),
        aembus.connect(bus_name) as client,
    ):
        sent: dict[str, int] = {}
        client.register("log", lambda event, name, number: sent.update({name: number}))
        for name in ("w-1", "w-2"):
            client.activate(f"to {name}", str(tmp_path))
        until("both have ended", lambda: client.poll(0.05) * 0 or len(sent) == 2)
        assert min(sent.values()) < FLOOD  # the first one to give up makes room for the other
        until("all is delivered", lambda: statistics(bus_name)["totals"]["queued"] == 0)
        totals = statistics(bus_name)["totals"]
        assert adds_up(totals)
        assert totals["delivered"] == sum(sent.values()) + 4
        assert totals["dead_lettered"] == 0
