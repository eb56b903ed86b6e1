from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from aembus import codec
from aembus.control import pack_frame
from aembus.errors import RegistrationError
from aembus.shm import layout
from aembus.spawning import outcome
from aembus.spawning.child import Task
from aembus.spawning.nursery_process import NurseryProcess, NurseryUseless
from aembus.spawning.outcome import Outcome
from aembus.spawning.recipe import Recipe
from tests.spawning import handlers
from tests.support.running import until

ROOT = str(Path(__file__).parent.parent.parent)
EVENT = 5


class Notes:
    """A parent that writes down what it is told."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.ended: dict[int, int] = {}
        self.lost = False
        self.gone = asyncio.Event()
        self.changed = asyncio.Event()

    def on_begun(self, number: int, pid: int, begun_ns: int) -> None:
        self.begun[number] = pid
        self.changed.set()

    def on_outcome(self, number: int, outcome: Outcome) -> None:
        assert number not in self.ended
        self.outcomes[number] = outcome

    def on_ended(self, number: int, exit_code: int) -> None:
        self.ended[number] = exit_code
        self.changed.set()

    def on_not_begun(self, number: int, text: str) -> None:
        raise AssertionError(text)

    def on_nursery_lost(self, nursery: NurseryProcess) -> None:
        assert not self.lost
        self.lost = True

    def on_nursery_gone(self, nursery: NurseryProcess) -> None:
        self.gone.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def recipe(handler: Any, **stages: Any) -> Recipe:
    """Return how to make an event of a handler."""
    wanted = {"constructor": None, "destructor": None, "data": None, **stages}
    return Recipe.make("point", "the event", None, handler, **wanted)


def task(number: int, made: Recipe, *data: Any, answer: bool = True) -> Task:
    """Return a job, as a call or as a plain one."""
    flags = layout.FLAG_WANTS_REPLY if answer else 0
    kind = layout.KIND_CALL if answer else layout.KIND_JOB
    state = layout.STATE_HELD | 1 << layout.STATE_ATTEMPT_SHIFT
    payload = codec.encode(data)
    if answer:
        payload = struct.pack("=I", 0) + payload
    header = [len(payload), kind, flags, 3, state, 17, 1, 0, 1, 9, 0, EVENT, 99]
    return Task(number, made.to_frame(), EVENT, 4, layout.CLASS_NORMAL, header, payload)


def run(
    made: Recipe,
    use: Callable[[NurseryProcess, Notes], Awaitable[None]],
    late: tuple[str, ...] = (),
) -> None:
    """Start a nursery use it, and end it."""

    async def main() -> None:
        notes = Notes()
        nursery = NurseryProcess(notes, late)
        await nursery.start(made.modules(), made.path)
        try:
            assert await nursery.check(EVENT, made, fresh=False) == (True, "")
            await use(nursery, notes)
        finally:
            await nursery.end()
        assert notes.gone.is_set()

    asyncio.run(main())


def outcome_of(made: Recipe, *data: Any, answer: bool = True, late: tuple[str, ...] = ()) -> Any:
    """Return what comes of one job: its outcome and the child's exit code."""
    found: list[Any] = []

    async def use(nursery: NurseryProcess, notes: Notes) -> None:
        nursery.begin(task(1, made, *data, answer=answer))
        await notes.until(lambda: 1 in notes.ended)
        found.append((notes.outcomes.get(1), notes.ended[1]))

    run(made, use, late)
    return found[0]


def answer_of(made: Recipe, *data: Any, **options: Any) -> Any:
    """Return what a job's handler returned."""
    result, code = outcome_of(made, *data, **options)
    assert (result.kind, code) == (outcome.RETURNED, 0)
    value, event = codec.decode(result.answer)
    assert event == "the event"
    return value


def test_a_child_runs_the_handler() -> None:
    """In a process of its own, a child of the nursery's, with one thread."""
    pid, parent, threads, name, *data = answer_of(recipe(handlers.whoami), 1, "two", [3])
    assert len({pid, parent, os.getpid()}) == 3
    assert (threads, name, data) == (1, "the event", [1, "two", [3]])


def test_the_handler_knows_its_job() -> None:
    """Origin, attempt, key and identity are those of the record."""
    assert answer_of(recipe(handlers.job_of)) == [[3, 9], 1, 99, [4, 0, 3, 17], None]


@pytest.mark.parametrize(
    ("handler", "kind", "error"),
    [
        (handlers.hold, outcome.RAISED, "JobNotInHand"),
        (handlers.close, outcome.RAISED, "AembusError"),
        (handlers.unanswerable, outcome.UNANSWERABLE, "TypeError"),
    ],
)
def test_what_a_child_cannot_do_is_refused(handler: Any, kind: str, error: str) -> None:
    """Hold its job, close its event, return what cannot be sent."""
    result, _ = outcome_of(recipe(handler))
    assert (result.kind, result.failure.error_type) == (kind, error)


def test_failures_come_back_as_text() -> None:
    """An exception with its traceback; a refusal as one."""
    raised, _ = outcome_of(recipe(handlers.fail), "no good", answer=False)
    assert raised.kind == outcome.RAISED
    assert raised.failure[:2] == ("ValueError", "no good")
    assert "in fail" in raised.failure.traceback_text
    refused, _ = outcome_of(recipe(handlers.refuse), "not mine")
    assert refused.kind == outcome.REFUSED


@pytest.mark.parametrize(
    ("handler", "data", "code"),
    [
        (handlers.leave, (None,), 0),
        (handlers.leave, (3,), 3),
        (handlers.leave, ("goodbye",), 1),
        (handlers.execute, ("/bin/sh", "-c", "exit 7"), 7),
        (handlers.execute, ("/bin/true",), 0),
        (handlers.kill_self, (), -signal.SIGKILL),
        (handlers.kill_self, (signal.SIGTERM,), -signal.SIGTERM),
    ],
)
def test_an_end_without_an_outcome_has_an_exit_code(handler: Any, data: Any, code: int) -> None:
    """SystemExit, another program's end, and a signal, which has its default effect."""
    assert outcome_of(recipe(handler), *data) == (None, code)


def test_a_large_result_arrives_whole() -> None:
    """Many pieces of several children, mixed in one socket."""

    async def use(nursery: NurseryProcess, notes: Notes) -> None:
        for number in range(4):
            nursery.begin(task(number, made, 1_000_000 + number))
        await notes.until(lambda: len(notes.ended) == 4)
        sizes = [len(codec.decode(notes.outcomes[n].answer)[0]) for n in range(4)]
        assert sizes == [1_000_000, 1_000_001, 1_000_002, 1_000_003]

    made = recipe(handlers.big)
    run(made, use)


def test_other_kinds_of_handlers() -> None:
    """A coroutine, a class's method, stages, a typed point, and one imported by the child."""
    assert answer_of(recipe(handlers.awaits), 1) == 2
    assert answer_of(recipe(handlers.Kept.method)) == "Kept"
    staged = recipe(handlers.plus_one, constructor=handlers.double, destructor=handlers.shown)
    assert answer_of(staged, 5) == "11 None"
    typed = recipe(handlers.order, data=handlers.Order)
    assert answer_of(typed, {"item": "bolt", "pieces": 3}) == ["Order", "bolt", 3]
    late = recipe(handlers.whoami)
    assert answer_of(late, late=(late.handler.module,))[2] == 1


def test_what_a_handler_has_printed_that_refuses_is_not_lost(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child ends as any process does."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    refused, code = outcome_of(recipe(handlers.say_and_refuse), "not mine")
    assert (refused.kind, code) == (outcome.REFUSED, 0)
    assert capfd.readouterr().out == "not mine\n"


def test_children_end_with_the_nursery(tmp_path: Path) -> None:
    """Killed, it takes each child with it, and that all are gone is told once they are."""
    pids: list[int] = []

    async def use(nursery: NurseryProcess, notes: Notes) -> None:
        for number in range(3):
            nursery.begin(task(number, made, str(tmp_path), number))
        await notes.until(lambda: len(notes.begun) == 3)
        pids.extend(notes.begun.values())
        os.kill(nursery.process.pid, signal.SIGKILL)
        await asyncio.wait_for(notes.gone.wait(), 20)
        # What it said last may be heard behind the end of its children.
        nursery.data_received(pack_frame({"op": "ended", "number": 1, "exit_code": 0}))

    made = recipe(handlers.wait_for_file)
    run(made, use)
    until("init has reaped them", lambda: not any(map(psutil.pid_exists, pids)))


def test_a_dead_nursery_is_asked_nothing_while_a_child_lives_on(tmp_path: Path) -> None:
    """It would never answer, and the end of its children is for later."""

    async def use(nursery: NurseryProcess, notes: Notes) -> None:
        nursery.begin(task(1, made, str(tmp_path), 1))
        until("the child has begun", (tmp_path / "begun-1-1").exists)
        os.kill(nursery.process.pid, signal.SIGKILL)
        try:
            for _ in range(2):
                with pytest.raises(NurseryUseless, match="the nursery ended"):
                    await asyncio.wait_for(nursery.check(EVENT, made, fresh=False), 10)
            assert (notes.lost, notes.gone.is_set()) == (True, False)
        finally:
            (tmp_path / "go-1").touch()
        await asyncio.wait_for(notes.gone.wait(), 20)

    made = recipe(handlers.wait_without_parent)
    run(made, use)


def test_a_retired_nursery_ends_with_its_last_child(tmp_path: Path) -> None:
    """And not before."""

    async def use(nursery: NurseryProcess, notes: Notes) -> None:
        nursery.begin(task(1, made, str(tmp_path), 1))
        await notes.until(lambda: 1 in notes.begun)
        nursery.retire()
        assert nursery.process.poll() is None
        (tmp_path / "go-1").touch()
        await asyncio.wait_for(notes.gone.wait(), 20)
        assert notes.ended == {1: 0}
        assert codec.decode(notes.outcomes[1].answer)[0] == "went-1"

    made = recipe(handlers.wait_for_file)
    run(made, use)


@pytest.mark.parametrize(
    ("source", "text", "threads"),
    [
        ("raise LookupError('no such thing')", "LookupError: no such thing", False),
        ("import os; os._exit(9)", "the nursery ended", False),
        (
            "import threading\nthreading.Timer(60, print).start()",
            "threads",
            True,
        ),
    ],
)
def test_a_module_that_will_not_do_is_told(
    tmp_path: Path, source: str, text: str, threads: bool
) -> None:
    """What it raised, that it ended the process, that it has started threads."""

    async def main() -> None:
        (tmp_path / "unhappy.py").write_text(source + "\n\n\ndef handler(event): pass\n")
        nursery = NurseryProcess(Notes())
        with pytest.raises(NurseryUseless, match=text) as raised:
            await nursery.start([("unhappy", "")], [str(tmp_path)])
        assert raised.value.threads is threads

    asyncio.run(main())


def test_what_a_module_forks_is_not_taken_for_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nursery's death is noticed though a process lives on that importing has started."""
    (tmp_path / "forking.py").write_text(
        "import os, time\n"
        f"if os.getpid() != {os.getpid()} and os.fork() == 0:\n"
        f"    while not os.path.exists({str(tmp_path / 'end')!r}):\n"
        "        time.sleep(0.01)\n"
        "    os._exit(0)\n"
        "def handler(event): return 'done'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import forking  # type: ignore[import-not-found]

    async def use(nursery: NurseryProcess, notes: Notes) -> None:
        try:
            nursery.begin(task(1, made))
            await notes.until(lambda: notes.ended == {1: 0})
            os.kill(nursery.process.pid, signal.SIGKILL)
            await asyncio.wait_for(notes.gone.wait(), 10)
            assert notes.lost
        finally:
            (tmp_path / "end").touch()

    made = recipe(forking.handler)
    run(made, use)


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """Asked for what is fresh, a nursery that has imported an older file does not fit."""

    async def main() -> None:
        file = tmp_path / "changing.py"
        file.write_text("def handler(event): return 1\n")
        sys.path.insert(0, str(tmp_path))
        try:
            import changing  # type: ignore[import-not-found]

            made = recipe(changing.handler)
        finally:
            sys.path.remove(str(tmp_path))
            del sys.modules["changing"]
        nursery = NurseryProcess(Notes())
        await nursery.start(made.modules(), made.path)
        assert await nursery.check(EVENT, made, fresh=True) == (True, "")
        os.utime(file, ns=(1, 1))
        assert await nursery.check(EVENT, made, fresh=False) == (True, "")
        assert await nursery.check(EVENT, made, fresh=True) == (False, "")
        await nursery.end()

    asyncio.run(main())


@pytest.mark.parametrize(
    "handler", [lambda event: None, handlers.Kept().bound, sorted, handlers.Kept(), abs]
)
def test_a_handler_that_cannot_be_found_is_refused(handler: Any) -> None:
    """A lambda, a bound method, an object; but what is found in its module will do."""
    if handler in (sorted, abs):
        assert recipe(handler).handler.module == "builtins"
        return
    with pytest.raises(RegistrationError, match="at the top of a module"):
        recipe(handler)
