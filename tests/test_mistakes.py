"""What users get wrong: each mistake is an error at once, with the values and the way out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aembus
from tests.cli.support import run_program
from tests.support.running import until

Wrong = Callable[[aembus.Bus], object]


@pytest.fixture
def bus_options() -> dict[str, Any]:
    """See tests/conftest.py."""
    return {"services": ["timer", "exit"]}


def handler(event: aembus.Event, *data: object) -> None:
    """Nothing: what is registered where it does not matter what."""


async def async_stage(event: aembus.Event, *data: object) -> None:
    """What cannot be a constructor or destructor."""


RESULT: Any = None  # of a function that was called where it was to be named
NUMBER: Any = 5
FLOAT: Any = 1.5
NONE: Any = None
IS_NO_TIMEOUT = "a number of seconds, or math.inf: for ever, timeout=None"

WRONG: list[tuple[str, Wrong, type[Exception], str]] = [
    ("number for a point", lambda bus: bus.point(NUMBER), TypeError, "point=5"),
    ("point without a name", lambda bus: bus.register("", handler), TypeError, "point=''"),
    (
        "async constructor",
        lambda bus: bus.register("p", handler, constructor=async_stage),
        aembus.RegistrationError,
        "plain functions; do in the handler what is to be awaited, point='p'",
    ),
    (
        "async destructor",
        lambda bus: bus.register("p", handler, destructor=async_stage),
        aembus.RegistrationError,
        "plain functions; do in the handler what is to be awaited, point='p'",
    ),
    ("@bus.on without a point", lambda bus: bus.on(RESULT), TypeError, "point=None"),
    (
        "result for a handler",
        lambda bus: bus.register("p", RESULT),
        aembus.RegistrationError,
        "point='p', handler=None",
    ),
    ("no time-out, call", lambda bus: bus.point("p").call(timeout=NONE), TypeError, IS_NO_TIMEOUT),
    (
        "no time-out, call_all",
        lambda bus: bus.point("p").call_all(timeout=NONE),
        TypeError,
        IS_NO_TIMEOUT,
    ),
    (
        "no time-out, call_async",
        lambda bus: asyncio.run(bus.point("p").call_async(timeout=NONE)),
        TypeError,
        IS_NO_TIMEOUT,
    ),
    ("no time-out, poll", lambda bus: bus.poll(NONE), TypeError, IS_NO_TIMEOUT),
    ("number for a tap", lambda bus: bus.tap("p", NUMBER), aembus.RegistrationError, "handler=5"),
    ("key of another type", lambda bus: bus.activate("p", key=FLOAT), TypeError, "key=1.5"),
    ("no name for a bus", lambda bus: aembus.connect(RESULT), aembus.OpenError, "name=None"),
    ("timer of a result", lambda bus: bus.service("timer").after(1, RESULT), TypeError, "uncalled"),
    ("timer of a number", lambda bus: bus.service("timer").every(1, 5), TypeError, "got=5"),
    ("watch of a result", lambda bus: bus.service("exit").watch(1, None), TypeError, "got=None"),
]


@pytest.mark.parametrize(
    ("wrong", "kind", "says"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_what_cannot_be_meant_is_refused(
    bus: str, wrong: Wrong, kind: type[Exception], says: str
) -> None:
    """The mistake is an error where it is made, which shows what was given."""
    with aembus.connect(bus) as member, pytest.raises(kind) as caught:
        wrong(member)
    assert says in str(caught.value)


def test_a_handler_without_the_event_is_told_what_came(bus: str) -> None:
    """A handler whose parameters do not fit: its error shows how it was called, and with what."""
    with aembus.connect(bus) as caller, aembus.connect(bus) as member:
        member.register("setup", lambda call_id: None)
        member.run_in_thread()
        with pytest.raises(aembus.CallFailed) as caught:
            caller.point("setup").call("c1", timeout=20.0)
    assert "handler(event, *data), data=['c1']" in caught.value.traceback_text


def test_a_type_error_of_the_handlers_own_is_left_as_it_is(bus: str) -> None:
    """What a handler's own code calls wrongly is not taken for a wrong call of the handler."""

    def setup(event: aembus.Event) -> None:
        handler()  # type: ignore[call-arg]

    with aembus.connect(bus) as caller, aembus.connect(bus) as member:
        member.register("setup", setup)
        member.run_in_thread()
        with pytest.raises(aembus.CallFailed) as caught:
            caller.point("setup").call(timeout=20.0)
    assert caught.value.error_type == "TypeError"
    assert "called as" not in caught.value.traceback_text


@pytest.mark.parametrize("deliver", [aembus.Bus.poll, aembus.Bus.run, aembus.Bus.run_in_thread])
def test_a_handler_cannot_deliver(bus: str, deliver: Callable[[aembus.Bus], object]) -> None:
    """A handler that polls or runs its own bus gets an error and does not wait for itself."""
    with aembus.connect(bus) as member:
        said = []

        def polls(event: aembus.Event) -> None:
            with pytest.raises(aembus.AembusError) as caught:
                deliver(member)
            said.append(str(caught.value))

        member.register("p", polls)
        member.activate("p")
        member.poll(20.0)
    assert said == [
        "a handler cannot run or poll its own bus; return, and the next job is delivered"
    ]


@pytest.mark.parametrize("deliver", [aembus.Bus.poll, aembus.Bus.run])
def test_a_bus_that_a_thread_runs_is_run_by_nobody_else(
    bus: str, deliver: Callable[[aembus.Bus], object]
) -> None:
    """Who polls or runs a bus that another thread runs gets an error, and does not wait for it."""
    with aembus.connect(bus) as member:
        seen = []
        member.register("p", lambda event: seen.append(1))
        member.run_in_thread()
        member.activate("p")
        until("the thread runs", lambda: bool(seen))
        with pytest.raises(aembus.AembusError, match="thread='aembus-run'"):
            deliver(member)


def test_points_are_registered_at_by_name_or_as_they_are(bus: str) -> None:
    """`register` and `on` take an activation point as well as its name."""
    with aembus.connect(bus) as member:
        point = member.point("p")
        event = member.register(point, handler)
        assert event.point == "p"
        assert member.on(point, name="decorated")(handler) is handler
        assert point.activate() == 2


def test_a_closed_bus_is_not_asked(bus: str) -> None:
    """A closed bus object says that it is closed, also when asked for its statistics."""
    with aembus.connect(bus) as member:
        pass
    with pytest.raises(aembus.BusClosed):
        member.statistics()
    with pytest.raises(aembus.BusClosed), member:
        pass


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: aembus.WorkerSpec("w", NUMBER), "entry_point=5"),
        (lambda: aembus.Supervisor("b", services="timer"), "services='timer'"),
        (lambda: aembus.Supervisor("b", workers=NUMBER), "workers=5"),
        (lambda: aembus.Supervisor("b", workers=[NUMBER]), "workers=[5]"),
    ],
    ids=["no entry point", "one service", "no list of workers", "a worker that is none"],
)
def test_what_a_supervisor_is_given_is_checked(make: Callable[[], object], says: str) -> None:
    """Whoever makes a supervisor of the wrong things is told which, and how they are written."""
    with pytest.raises(aembus.SupervisorError) as caught:
        make()
    assert says in str(caught.value)


def test_a_bus_is_run_in_one_way_at_a_time(bus: str) -> None:
    """A bus that is served is run by no thread, and the other way round."""

    async def serve(member: aembus.Bus) -> None:
        serving = asyncio.create_task(member.serve())
        await asyncio.sleep(0)  # it begins
        with pytest.raises(aembus.AembusError, match="served already"):
            member.run_in_thread()
        member.stop()
        await serving

    with aembus.connect(bus) as member, aembus.connect(bus) as other:
        asyncio.run(serve(member))
        seen = []
        other.register("p", lambda event: seen.append(1))
        other.run_in_thread()
        other.activate("p")
        until("the thread runs", lambda: bool(seen))
        with pytest.raises(aembus.AembusError, match="a thread runs this bus already"):
            asyncio.run(other.serve())


async def application(bus: aembus.Bus) -> None:
    """An entry point that nobody would await."""


def test_an_entry_point_that_nobody_awaits_is_refused(bus_name: str) -> None:
    """An ``async def`` as entry point ends the start, with what to write in its place."""
    worker = aembus.WorkerSpec("w", f"{__name__}:application")
    with pytest.raises(aembus.SupervisorError, match="an entry point is a plain function"):
        aembus.Supervisor(bus_name, workers=[worker]).__enter__()


def test_a_call_to_oneself_that_nobody_runs_says_so(bus: str) -> None:
    """Who calls a handler of its own process, and runs no thread for it, is told what lacks."""
    with aembus.connect(bus) as member:
        member.register("p", handler)
        with pytest.raises(aembus.CallTimeout, match="so a thread must run its bus"):
            member.point("p").call(timeout=0.01)


def test_a_module_that_starts_its_bus_at_import_is_told(bus_name: str, tmp_path: Path) -> None:
    """Without the guard each worker would start the bus anew; the error says which guard."""
    module = f"unguarded_{bus_name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(
        "import aembus\n"
        f"worker = aembus.WorkerSpec('w', '{module}:main')\n"
        f"aembus.Supervisor('{bus_name}', workers=[worker]).run()\n"
    )
    ended = run_program(tmp_path, [sys.executable, f"{module}.py"])
    assert ended.code == 1
    assert "start that under if __name__ == '__main__'" in ended.error_line


def test_a_time_out_that_is_none_is_told(bus: str) -> None:
    """Where there is no room, `timeout=None` is an error that says how one waits for ever."""
    with aembus.connect(bus) as member:
        member.register("p", handler)
        point = member.point("p")
        while point.try_activate():
            pass
        with pytest.raises(TypeError, match=r"math\.inf: for ever, timeout=None"):
            point.activate(timeout=RESULT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_handler_that_exits_in_a_thread_is_told_of(
    bus: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SystemExit ends a thread without a word, and nothing is delivered any more."""
    with aembus.connect(bus) as member:
        member.register("p", lambda event: sys.exit("as the test wants it"))
        thread = member.run_in_thread()
        member.activate("p")
        thread.join(20.0)
        assert not thread.is_alive()
    assert "has ended the thread" in caplog.text
