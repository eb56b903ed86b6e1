from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.cli.main import main
from tests.support.running import adds_up, statistics, until


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of states; where the command line and the bus look for them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def bus(bus_name: str, state: Path) -> Iterator[str]:
    """A running bus with small lanes and nobody on it; its name."""
    with aembus.Supervisor(bus_name, lane_bytes=4096, log_level="CRITICAL"):
        yield bus_name


class Failing:
    """A member that fails every job until it is told not to."""

    def __init__(self, bus: aembus.Bus, *groups: str | None) -> None:
        self.bus = bus
        self.fails = True
        self.seen: list[tuple[str, Any]] = []
        for group in groups:
            for point in ("calls", "bills"):
                bus.register(point, self.handle, group=group, name=f"{point} {group}")

    def handle(self, event: aembus.Event, data: Any) -> None:
        if self.fails:
            raise ValueError(f"cannot take {data}")
        self.seen.append((event.name, data))

    def poll(self) -> None:
        while self.bus.poll():
            pass


def make_letters(bus: str, calls: int, bills: int = 0) -> None:
    """Make dead letters of so many jobs for a group "g" at each point."""
    with aembus.connect(bus) as member:
        failing = Failing(member, "g")
        for point, jobs in (("calls", calls), ("bills", bills)):
            for number in range(jobs):
                member.activate(point, number)
                failing.poll()


Dead = Callable[..., tuple[int, Any]]


@pytest.fixture
def dead(bus_name: str, state: Path, capsys: pytest.CaptureFixture[str]) -> Dead:
    """Runs ``aembus dead ... --json``, and returns its exit code and what it printed."""

    def run(*words: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = main(["dead", *words, "--bus", bus_name, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_list_and_show(bus: str, dead: Dead, capsys: pytest.CaptureFixture[str]) -> None:
    """Each letter with where it was for and why; whole, with data and traceback, by its id."""
    make_letters(bus, calls=2, bills=1)
    code, letters = dead("list")
    assert code == 0
    assert [letter["point"] for letter in letters] == ["calls", "calls", "bills"]
    assert {letter["reason"] for letter in letters} == {"its handler raised"}
    assert dead("list", "--point", "bills")[1] == letters[2:]
    assert dead("list", "--reason", "handler")[1] == letters
    assert dead("list", "--reason", "killed")[1] == []
    name = letters[1]["id"]
    (shown,) = dead("show", name[:8])[1]
    assert (shown["id"], shown["data"], shown["group"]) == (name, [1], "g")
    assert "ValueError: cannot take 1" in shown["detail"]
    assert main(["dead", "show", name, "--bus", bus]) == 0
    assert "ValueError: cannot take 1" in capsys.readouterr().out
    assert main(["dead", "list", "--bus", bus]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["id", "age", "point"]
    assert "3 dead letters, file " in out


def test_replay_sends_back_to_the_group_alone(
    bus: str, dead: Dead, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each job reaches the group that had it, once, and other groups not again."""
    make_letters(bus, calls=3, bills=2)
    with aembus.connect(bus) as member:
        healed = Failing(member, "g", "other")
        healed.fails = False
        would = dead("replay", "--point", "calls", "--dry-run")[1]["would_replay"]
        assert len(would) == 3
        assert len(dead("list")[1]) == 5
        code, result = dead("replay", "--point", "calls")
        assert (code, result) == (0, {"replayed": would, "refused": {}})
        healed.poll()
        assert healed.seen == [("calls g", 0), ("calls g", 1), ("calls g", 2)]
        assert [letter["point"] for letter in dead("list")[1]] == ["bills"] * 2
        assert main(["dead", "replay", "--all", "--bus", bus]) == 0
        assert "replayed: 2 jobs" in capsys.readouterr().out
        assert dead("list")[1] == []
        healed.poll()
        assert len(healed.seen) == 5
    seen = statistics(bus)
    assert seen["supervisor"]["dead_letters_kept"] == 0
    assert adds_up(seen["totals"])
    assert (seen["totals"]["dead_lettered"], seen["totals"]["delivered"]) == (5, 5)


def test_replay_without_a_group_goes_to_the_same_event(bus: str, dead: Dead) -> None:
    """To its own member where that is, else to another with an event of that name."""
    with aembus.connect(bus) as one, aembus.connect(bus) as two:
        members = [Failing(one, None), Failing(two, None)]
        one.activate("calls", "x")
        for member in members:
            member.poll()
            member.fails = False
        assert len(dead("replay", "--all")[1]["replayed"]) == 2
        for member in members:
            member.poll()
            assert member.seen == [("calls None", "x")]
            member.fails = True
        one.activate("calls", "y")
        members[0].poll()
    with aembus.connect(bus) as three:
        other = Failing(three, None)
        other.fails = False
        replayed = dead("replay", "--reason", "its handler raised")[1]["replayed"]
        other.poll()
        assert other.seen == [("calls None", "y")] * len(replayed)


def test_what_nobody_takes_stays(bus: str, dead: Dead) -> None:
    """The letter is kept, with the reason said, and the exit code tells."""
    make_letters(bus, calls=1)
    (letter,) = dead("list")[1]
    code, result = dead("replay", letter["id"])
    assert code == 1
    assert result["replayed"] == []
    assert "nobody is registered" in result["refused"][letter["id"]]
    assert "'calls'" in result["refused"][letter["id"]]
    assert dead("list")[1] == [letter]


def test_replay_waits_for_room(bus: str, dead: Dead) -> None:
    """More than a lane holds is replayed as its consumer makes room; in order, each once."""
    make_letters(bus, calls=150)
    with aembus.connect(bus) as member:
        healed = Failing(member, "g")
        healed.fails = False
        member.run_in_thread()
        assert len(dead("replay", "--all")[1]["replayed"]) == 150
        until("all delivered", lambda: len(healed.seen) == 150)
        assert [data for _, data in healed.seen] == list(range(150))
    with aembus.connect(bus) as member:
        member.register("calls", print, group="g")
    assert dead("list")[1] == []


def test_a_destination_that_stays_full_keeps_the_letters(bus: str) -> None:
    """After the time-out what did not fit is still there; what did is gone from the letters."""
    make_letters(bus, calls=80)
    with aembus.connect(bus) as member, aembus.DeadLetterBox(bus) as box:
        healed = Failing(member, "g")
        healed.fails = False
        ids = [letter["id"] for letter in box.list()]
        progress: list[int] = []
        result = box.replay(ids, timeout=0.0, on_progress=progress.append)
        assert set(result.refused.values()) == {"no room in time"}
        assert result.replayed + list(result.refused) == ids
        assert [letter["id"] for letter in box.list()] == list(result.refused)
        assert progress == [80]
        healed.poll()
        assert len(healed.seen) == len(result.replayed) > 0


def test_drop_and_list_also_without_a_bus(
    bus_name: str, dead: Dead, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file stays when the bus has stopped: it is listed, and shortened; not replayed."""
    with aembus.Supervisor(bus_name, log_level="CRITICAL"):
        make_letters(bus_name, calls=3, bills=1)
        (bill,) = dead("list", "--point", "bills")[1]
        assert dead("drop", bill["id"])[1] == {"dropped": [bill["id"]]}
        assert main(["dead", "drop", bill["id"], "--bus", bus_name]) == 1
        assert "no such letter" in capsys.readouterr().err
    there = dead("list")[1]
    assert len(there) == 3
    assert main(["dead", "replay", "--all", "--bus", bus_name]) == 1
    assert "start it first" in capsys.readouterr().err
    first, *others = [letter["id"] for letter in there]
    assert dead("drop", first, "--dry-run")[1] == {"would_drop": [first]}
    assert dead("drop", first)[1] == {"dropped": [first]}
    assert [letter["id"] for letter in dead("list")[1]] == others
    with aembus.Supervisor(bus_name, log_level="CRITICAL"):
        assert statistics(bus_name)["supervisor"]["dead_letters_kept"] == 2
        assert dead("drop", "--all")[1] == {"dropped": others}
        assert statistics(bus_name)["supervisor"]["dead_letters_kept"] == 0


@pytest.mark.parametrize("words", [["show"], ["replay"], ["drop"], ["replay", "--dry-run"]])
def test_nothing_is_chosen_by_default(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever changes or reads letters whole says which."""
    with pytest.raises(SystemExit) as ended:
        main(["dead", *words, "--bus", "whichever"])
    assert ended.value.code == 2
    assert "--all" in capsys.readouterr().err


def test_a_bus_that_has_left_nothing(
    bus_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No letters of a bus that does not run, nor a file: it may be mistyped, and is told so."""
    words = ["dead", "list", "--bus", bus_name, "--state-directory", str(tmp_path)]
    assert main(words) == 0
    assert capsys.readouterr().out == (
        f"0 dead letters, and no such bus runs; there is no file {tmp_path}/dead-letters\n"
    )


def test_whatever_the_bus_carries_is_shown(
    bus: str, dead: Dead, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data that JSON has not got, and a reason of several lines, which stays on one."""
    with aembus.connect(bus) as member:

        @member.on("calls")
        def calls(event: aembus.Event, data: Any) -> None:
            assert event.job is not None
            event.job.hold()
            event.job.fail("one\ntwo\x1b[31m")

        member.activate("calls", {("a", 1): b"b"})
        member.poll()
        member.poll()
    code, (shown,) = dead("show", "--all")
    assert (code, shown["data"]) == (0, [{"('a', 1)": "b'b'"}])
    assert main(["dead", "list", "--bus", bus]) == 0
    _, row, _ = capsys.readouterr().out.splitlines()
    assert row.endswith(r"failed: one\ntwo\x1b[31m")
    assert main(["dead", "show", "--all", "--bus", bus]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_letters_of_a_bus_that_runs_are_dropped_by_it_alone(
    bus_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not behind its back, by who names another bus and its directory."""
    with aembus.Supervisor(bus_name, state_directory=tmp_path, log_level="CRITICAL"):
        make_letters(bus_name, 2)
        command = ["dead", "drop", "--all", "--state-directory", str(tmp_path)]
        assert main([*command, "--bus", f"{bus_name}-not"]) == 1
        assert "another bus keeps its dead letters in this directory" in capsys.readouterr().err
        assert main([*command, "--bus", bus_name]) == 0
        assert capsys.readouterr().out == "dropped: 2 letters\n"
