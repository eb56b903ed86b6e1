from __future__ import annotations

from aembus.supervisor.bindings import Bindings, User

ALICE, BOB = User(1, 7), User(2, 8)


def test_users_are_counted_once_and_let_go_once() -> None:
    """Who binds twice lets go at once; who was never bound changes nothing."""
    bindings = Bindings()
    bindings.bind(1, ALICE)
    bindings.bind(1, ALICE)
    bindings.bind(1, BOB)
    bindings.release(2, ALICE)
    assert bindings.users(1) == [ALICE, BOB]
    bindings.release(1, ALICE)
    assert bindings.users(1) == [BOB]


def test_a_process_that_is_gone_lets_go_of_everything() -> None:
    """Its successor in the slot is another user."""
    bindings = Bindings()
    successor = User(ALICE.slot, 9)
    bindings.bind(1, ALICE)
    bindings.bind(2, ALICE)
    bindings.bind(2, successor)
    bindings.release_all(ALICE)
    assert (bindings.users(1), bindings.users(2)) == ([], [successor])


def test_users_move_with_the_state_and_let_go_by_the_number_they_know() -> None:
    """Over several upgrades."""
    bindings = Bindings()
    bindings.bind(1, ALICE)
    bindings.move(1, 2)
    bindings.bind(2, BOB)
    bindings.move(2, 3)
    assert (bindings.users(1), bindings.users(2), bindings.users(3)) == ([], [], [ALICE, BOB])
    bindings.release(1, ALICE)
    bindings.release(2, BOB)
    assert bindings.users(3) == []
