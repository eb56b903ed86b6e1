"""Who receives in a scene: workers, members that are interrupted or serve, and guests.

All of them take jobs of the same group, and write down what they get before and after.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aembus
from tests.crash import poisons
from tests.crash.scene_board import Board
from tests.crash.scene_log import (
    ASK,
    ASK_AGAIN,
    BAD,
    BEGIN,
    END,
    FRAIL,
    GROUP,
    NEWS,
    POINTS,
    POISON,
    PROBE,
    RAISED,
    STAGED,
    WORK,
    LogWriter,
)
from tests.crash.scene_stage import (
    INTERRUPTED,
    RAISE,
    RAISED_TEXT,
    REFUSE,
    WISHES,
    Stage,
    checksum,
    client_names,
    obey_signals,
    receiver_names,
    report,
    say,
)

BREAK_S: Final = 0.02  # between two looks at a bus that is not there
STEPS: Final = 2000  # of a program that is interrupted
PAUSE_S: Final = 0.005  # of such a program; an idle one takes no time from the others


class Handlers:
    """The handlers of one receiver.

    Args:
        log: where it writes down what arrives.
    """

    def __init__(self, log: LogWriter) -> None:
        self._log = log

    def note(
        self, event: aembus.Event, point: int, stream: int, number: int
    ) -> Callable[[int], None]:
        """Write down that a job has come; return what writes down what became of it."""
        job = event.job
        assert job is not None

        def note(kind: int) -> None:
            self._log.received(kind, point, stream, number, job)

        note(BEGIN)
        return note

    def begin(
        self,
        event: aembus.Event,
        point: int,
        stream: int,
        number: int,
        wish: int,
        body: bytes,
        check: int,
    ) -> Callable[[int], None]:
        """Do so and look at what has come; raises if it wants that."""
        note = self.note(event, point, stream, number)
        if checksum(stream, number, wish, body) != check:
            note(BAD)
        if wish == RAISE:
            note(RAISED)
            raise ValueError(RAISED_TEXT)
        return note

    def plain(self, point: int) -> Callable[..., int]:
        """Return a handler; its answer to a call is the job's checksum."""

        def handle(
            event: aembus.Event, stream: int, number: int, wish: int, body: bytes, check: int
        ) -> int:
            note = self.begin(event, point, stream, number, wish, body, check)
            if wish >= WISHES:
                time.sleep(wish / 1e6)  # work
            note(END)
            return check

        return handle

    def awaited(self, point: int) -> Callable[..., Any]:
        """Return a handler that is a coroutine."""

        async def handle(
            event: aembus.Event, stream: int, number: int, wish: int, body: bytes, check: int
        ) -> int:
            note = self.begin(event, point, stream, number, wish, body, check)
            await asyncio.sleep(wish / 1e6 if wish >= WISHES else 0)
            note(END)
            return check

        return handle

    # A staged job begins in its constructor and ends in its destructor.

    def construct(
        self, event: aembus.Event, stream: int, number: int, wish: int, body: bytes, check: int
    ) -> tuple[Callable[[int], None], int]:
        """Constructor of staged jobs."""
        note = self.begin(event, STAGED, stream, number, wish, body, check)
        if wish == REFUSE:
            note(END)  # refused is done
            raise aembus.Refused(RAISED_TEXT)
        return note, wish

    @staticmethod
    def work(event: aembus.Event, note: Callable[[int], None], wish: int) -> Callable[[int], None]:
        """Handler of staged jobs."""
        if wish >= WISHES:
            time.sleep(wish / 1e6)
        return note

    @staticmethod
    def destruct(
        event: aembus.Event, note: Callable[[int], None], error: BaseException | None
    ) -> None:
        """Destructor of staged jobs."""
        assert error is None
        note(END)

    def poisonous(
        self, event: aembus.Event, stream: int, number: int, wish: int, body: bytes, check: int
    ) -> object:
        """Handler of jobs that kill their worker."""
        note = self.note(event, POISON, stream, number)
        result = poisons.take(body.decode())
        note(END)
        return result

    def receive(self, bus: aembus.Bus, handler: Callable[[int], Callable[..., Any]]) -> None:
        """Register for what all receivers of a scene get; `handler` makes one for a point."""
        bus.register(POINTS[WORK], handler(WORK), group=GROUP, name="work")
        bus.register(POINTS[FRAIL], handler(FRAIL), group=GROUP, name="frail", redeliver=False)
        bus.register(POINTS[NEWS], handler(NEWS), name="news")
        bus.register(POINTS[ASK], handler(ASK), group=GROUP, name="ask")
        bus.register(POINTS[ASK_AGAIN], handler(ASK_AGAIN), group=GROUP, name="ask again")
        bus.register(
            POINTS[STAGED], self.work, group=GROUP, name="staged",
            constructor=self.construct, destructor=self.destruct,
        )  # fmt: skip

    def answer_probes(self, bus: aembus.Bus, me: int) -> None:
        """Answer the probes to receiver number `me`."""
        note = self.plain(PROBE)

        def probe(event: aembus.Event, producer: int, *data: Any) -> None:
            note(event, *data)
            bus.activate(f"crash.answer.{producer}", me, data[1])

        bus.register(f"{POINTS[PROBE]}.{bus.member_name}", probe, name="probe")


def worker(bus: aembus.Bus) -> None:
    """Entry point of the workers."""
    stage = Stage(**json.loads(sys.argv[1]))
    obey_signals()
    handlers = Handlers(LogWriter(Path(stage.directory), bus.member_name))
    handlers.receive(bus, handlers.plain)
    bus.register(POINTS[POISON], handlers.poisonous, group=GROUP, name="poison")
    handlers.answer_probes(bus, receiver_names(stage).index(bus.member_name))


def be_a_guest(stage: Stage, name: str) -> None:
    """Join, take jobs of the group as a worker does, and leave when told to."""
    leave = []
    signal.signal(signal.SIGTERM, lambda number, frame: leave.append(number))
    obey_signals()
    handlers = Handlers(LogWriter(Path(stage.directory), name))
    with contextlib.suppress(aembus.BusBroken), aembus.connect(stage.bus) as bus:
        handlers.receive(bus, handlers.plain)
        say("ready")
        while not leave:
            bus.poll(0.02)
    say("left")


# --- clients that receive -------------------------------------------------------------------------


def be_interrupted(bus: aembus.Bus, board: Board) -> None:
    """Be a program that computes, activates and blocks, while jobs interrupt it."""
    bus.publish_registrations()
    while not board.over:
        with bus.masked():
            sum(range(STEPS))
        sum(range(STEPS))
        bus.activate("crash.nobody")  # raises once the bus is broken
        time.sleep(PAUSE_S)


async def serve(bus: aembus.Bus, board: Board) -> None:
    """Be a program with an event loop."""

    async def stop_at_the_end() -> None:
        while True:  # the board is a word in shared memory: nobody posts for it
            await asyncio.sleep(PAUSE_S)
            if board.over:
                bus.stop()

    watching = asyncio.ensure_future(stop_at_the_end())
    try:
        await bus.serve()
    finally:
        watching.cancel()


def be_a_receiver(stage: Stage, number: int) -> None:
    """Receive in one's own way, by the same name on one bus after the other."""
    obey_signals()
    interrupted = stage.clients[number] == INTERRUPTED
    name = {n: name for name, n in client_names(stage).items()}[number]
    board = Board(Path(stage.directory) / "board", len(stage.clients))
    handlers = Handlers(LogWriter(Path(stage.directory), name))
    while not board.over:
        try:
            with aembus.connect(
                stage.bus, name=name, delivery="interrupt" if interrupted else "run"
            ) as bus:
                handlers.receive(bus, handlers.plain if interrupted else handlers.awaited)
                handlers.answer_probes(bus, receiver_names(stage).index(name))
                board.report_connected(number, os.getpid())
                if interrupted:
                    be_interrupted(bus, board)
                else:
                    asyncio.run(serve(bus, board))
        except (aembus.BusBroken, aembus.OpenError, aembus.ControlError) as error:
            if not isinstance(error, aembus.BusNotFound):
                report(f"{name}: {type(error).__name__}: {error}")
        board.report_connected(number, 0)
        time.sleep(BREAK_S)
