from __future__ import annotations

from collections.abc import Callable

import pytest

import aembus
from tests.support.running import adds_up, statistics


class _Unspeakable(TypeError):
    """Like a call with wrong arguments, as which it is looked at; but it has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def _holds_and_fails(reason: str) -> Callable[[aembus.Event], None]:
    def handler(event: aembus.Event) -> None:
        assert event.job is not None
        event.job.hold()
        event.job.fail(reason)

    return handler


def _raises(error: Exception) -> Callable[[aembus.Event], None]:
    def handler(event: aembus.Event) -> None:
        raise error

    return handler


HANDLERS = {
    "no text": _raises(_Unspeakable()),
    "longer than any frame": _raises(ValueError("x" * 17_000_000)),
    "surrogates": _raises(ValueError("\udcff\0")),
    "a reason longer than any frame": _holds_and_fails("x" * 17_000_000),
    "a reason of surrogates": _holds_and_fails("\udcff\0"),
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS.keys())
def test_a_job_that_failed_is_a_dead_letter_whatever_the_text(
    bus: str, handler: Callable[[aembus.Event], None]
) -> None:
    """The member goes on, the job is kept with what can be told of it, and all adds up."""
    with aembus.connect(bus) as member:
        member.register("p", handler)
        member.activate("p")
        assert member.poll(5.0) == 1
        member.poll()  # a held job's end is seen at the next turn
        totals = statistics(bus)["totals"]
        assert (totals["dead_lettered"], totals["queued"]) == (1, 0)
        assert adds_up(totals)
