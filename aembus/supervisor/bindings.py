"""Who is bound to which loaded version of a service.  Pure.

A member is bound from its request until it lets go, or until its process is gone.  When a version
passes its state on, its users are the next one's, who know it by the number that they were given.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple


class User(NamedTuple):
    """A process that is bound."""

    slot: int
    incarnation: int


class Bindings:
    """The users of each version, by its number."""

    def __init__(self) -> None:
        self._users: defaultdict[int, set[User]] = defaultdict(set)
        self._moved: dict[int, int] = {}

    def bind(self, number: int, user: User) -> None:
        """Take note that a process uses a version.  Idempotent."""
        self._users[number].add(user)

    def release(self, number: int, user: User) -> None:
        """Take note that it does not any more; `number` is the one that it was given."""
        while number in self._moved:
            number = self._moved[number]
        self._drop(number, user)

    def release_all(self, user: User) -> None:
        """Take note that the process is gone."""
        for number in list(self._users):
            self._drop(number, user)

    def _drop(self, number: int, user: User) -> None:
        users = self._users.get(number, set())
        users.discard(user)
        if not users:
            self._users.pop(number, None)

    def move(self, old: int, new: int) -> None:
        """Let all users of `old` be those of `new`: that has taken its state over."""
        self._moved[old] = new
        self._users[new] |= self._users.pop(old, set())

    def users(self, number: int) -> list[User]:
        """Return who uses a version."""
        return sorted(self._users.get(number, ()))
