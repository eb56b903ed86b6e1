from __future__ import annotations

from aembus.errors import InboxFull
from aembus.gate import Decision, Deferred, Gate


def test_a_signal_handler_publishes_what_its_thread_is_about_to_publish() -> None:
    """What was put aside is published once, in whichever of two nested rounds, and forgotten."""
    gate = Gate()
    published: list[str] = []

    def first(decision: Decision) -> None:
        published.append("first")
        gate.publish_deferred()  # a signal handler comes, and its activation looks, too
        decision.made = True

    def second(decision: Decision) -> None:
        published.append("second")
        decision.made = True

    gate.deferred += [Deferred(first), Deferred(second)]
    gate.publish_deferred()
    assert published == ["first", "second"]
    assert gate.deferred == []


def test_what_fails_in_a_signal_handlers_round_is_not_tried_again() -> None:
    """An activation that found no room is given up, though another round had it on its list."""
    gate = Gate()
    tried: list[str] = []

    def first(decision: Decision) -> None:
        gate.publish_deferred()
        decision.made = True

    def second(decision: Decision) -> None:
        tried.append("second")
        raise InboxFull("no room")

    gate.deferred += [Deferred(first), Deferred(second)]
    gate.publish_deferred()
    assert tried == ["second"]
    assert gate.deferred == []
