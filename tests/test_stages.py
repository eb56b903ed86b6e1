"""Constructors and destructors: what runs right before a handler, and right after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import aembus
from aembus.supervisor.dead_letters import DeadLetters
from tests.support.running import adds_up, statistics, until


class Desk:
    """A constructor, a handler and a destructor, and what they saw."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def construct(self, event: aembus.Event, number: int) -> tuple[int, str]:
        assert event.job is not None
        self.seen.append(("construct", number))
        if number < 0:
            raise aembus.Refused(f"{number} is negative")
        if number > 100:
            raise ValueError("too many")
        return number, f"#{number}"

    def handle(self, event: aembus.Event, number: int, text: str) -> str:
        self.seen.append(("handle", number, text))
        if number == 13:
            raise LookupError("unlucky")
        return text

    def destruct(
        self, event: aembus.Event, result: str | None, error: Exception | None
    ) -> list[str | None]:
        assert event.job is not None
        self.seen.append(("destruct", result, repr(error)))
        return [result]

    def register(self, bus: aembus.Bus, **options: Any) -> aembus.Event:
        return bus.register(
            "p", self.handle, constructor=self.construct, destructor=self.destruct, **options
        )


def test_the_stages_run_in_order(bus: str) -> None:
    """For an activation and for a call, which gets what the destructor returns."""
    with aembus.connect(bus) as member, aembus.connect(bus) as client:
        desk = Desk()
        event = desk.register(member)
        member.run_in_thread()
        once = [("construct", 5), ("handle", 5, "#5"), ("destruct", "#5", "None")]
        client.activate("p", 5)
        until("delivered", lambda: event.statistics().delivered == 1)
        assert desk.seen == once
        assert client.point("p").call(5) == ["#5"]
        assert desk.seen == once * 2
        figures = event.statistics()
        assert (figures.failed, figures.refused) == (0, 0)
        assert figures.timings is not None
        assert figures.timings.constructor_s > 0
        assert figures.timings.handler_s > 0
        assert figures.timings.destructor_s > 0


def test_a_refused_job_is_no_failure(bus: str, tmp_path: Path) -> None:
    """It is done, counted apart, not tried again and no dead letter; a caller is told."""
    with aembus.connect(bus) as member, aembus.connect(bus) as client:
        desk = Desk()
        event = desk.register(member, retries=5)
        member.run_in_thread()
        client.activate("p", -1)
        with pytest.raises(aembus.CallFailed) as failed:
            client.point("p").call(-2)
        assert (failed.value.error_type, failed.value.text) == ("Refused", "-2 is negative")
        assert desk.seen == [("construct", -1), ("construct", -2)]  # neither handled nor destructed
        until("counted", lambda: event.statistics().refused == 2)
        assert (event.statistics().delivered, event.statistics().failed) == (0, 0)
        assert member.statistics().event_struct.refused == 2
        until("done", lambda: statistics(bus)["totals"]["queued"] == 0)
        assert adds_up(statistics(bus)["totals"])
        assert not list(DeadLetters(tmp_path).read())


def test_a_handler_may_refuse_as_well(bus: str) -> None:
    """Without a constructor, too; and nothing is timed there."""
    with aembus.connect(bus) as member, aembus.connect(bus) as client:

        def handler(event: aembus.Event) -> None:
            raise aembus.Refused("closed today")

        event = member.register("p", handler)
        member.run_in_thread()
        with pytest.raises(aembus.CallFailed, match="Refused: closed today"):
            client.point("p").call()
        assert event.statistics() == aembus.EventStatistics(0, 0, refused=1)


def test_the_destructor_sees_the_exception(bus: str, tmp_path: Path) -> None:
    """Whatever it returns the job has failed: it is retried, and becomes a dead letter."""
    with aembus.connect(bus) as member, aembus.connect(bus) as client:
        desk = Desk()
        desk.register(member, retries=1, backoff=0.001)
        member.run_in_thread()
        with pytest.raises(aembus.CallFailed, match="LookupError: unlucky"):
            client.point("p").call(13)
        once = [
            ("construct", 13),
            ("handle", 13, "#13"),
            ("destruct", None, "LookupError('unlucky')"),
        ]
        assert desk.seen == once * 2
        (letter,) = DeadLetters(tmp_path).read()
        assert letter["failures"] == 2


def test_what_else_a_constructor_raises_is_a_failure(bus: str) -> None:
    """So is what is no tuple or list; the handler does not run."""
    with aembus.connect(bus) as member, aembus.connect(bus) as client:
        desk = Desk()
        event = desk.register(member)
        member.register("q", desk.handle, constructor=lambda event: "no tuple")
        member.run_in_thread()
        with pytest.raises(aembus.CallFailed, match="ValueError: too many"):
            client.point("p").call(101)
        with pytest.raises(aembus.CallFailed, match="TypeError: a constructor returns"):
            client.point("q").call()
        assert desk.seen == [("construct", 101)]
        assert event.statistics().failed == 1
