from __future__ import annotations

import threading

from aembus.errors import InboxFull
from aembus.gate import Decision, Deferred, Gate


def test_a_signal_handler_publishes_what_its_thread_is_about_to_publish() -> None:
    """What was put aside is published once, in whichever of two nested rounds, and forgotten."""
    gate = Gate()
    published: list[str] = []
    came: list[bool] = []

    def first(decision: Decision) -> None:
        if not came:  # a signal handler comes, and its activation looks, too
            came.append(True)
            gate.publish_deferred()
        if not decision.made:
            decision.made = True
            published.append("first")

    def second(decision: Decision) -> None:
        decision.made = True
        published.append("second")

    gate.deferred += [Deferred(first), Deferred(second)]
    gate.publish_deferred()
    assert published == ["first", "second"]
    assert gate.deferred == []


def test_what_fails_in_a_signal_handlers_round_is_not_tried_again() -> None:
    """An activation that found no room is given up, though another round is about to try it."""
    gate = Gate()
    tried: list[str] = []

    def first(decision: Decision) -> None:
        if not tried:
            tried.append("first")
            gate.publish_deferred()
        if not decision.made:
            raise InboxFull("no room")

    def second(decision: Decision) -> None:
        tried.append("second")
        raise InboxFull("no room")

    gate.deferred += [Deferred(first), Deferred(second)]
    gate.publish_deferred()
    assert tried == ["first", "second"]
    assert gate.deferred == []


def test_what_a_signal_handler_put_aside_is_published_by_its_own_thread() -> None:
    """Another thread leaves it alone: the activation that was interrupted comes first."""
    gate = Gate()
    published: list[int] = []

    def publish(decision: Decision) -> None:
        decision.made = True
        published.append(threading.get_ident())

    gate.deferred.append(Deferred(publish))
    other = threading.Thread(target=gate.publish_deferred)
    other.start()
    other.join()
    assert published == []
    gate.publish_deferred()
    assert published == [threading.get_ident()]
